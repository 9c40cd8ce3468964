"""The result of a prediction on one picture, validated; to and from COCO, YOLO and CSV. No torch.

The formats' functions are pure: they take and return values and text, and leave files to the caller.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from setdet.config import suggest
from setdet.errors import DataError, UsageError


@dataclass(frozen=True)
class Detections:
    """What was found on one picture, best first.

    Attributes:
        boxes_xyxy_px: (n, 4) float32, corners in pixels of the original picture.
        scores: (n,) float32, 0 to 1, falling.
        labels: (n,) int64, index into `class_names`.
        class_names: names of all classes that the detector knows.
        image_size: (height, width) of the original picture.
        source: the picture's path; "picture N" of what came without one as the Nth of a stream; "" for no name.

    Raises:
        UsageError: shapes, dtypes, order or labels do not fit together.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy_px.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise UsageError(
                f"Detections of {n} scores need boxes of shape ({n}, 4) and labels of shape ({n},); "
                f"found {self.boxes_xyxy_px.shape} and {self.labels.shape}."
            )
        if not (np.all(np.isfinite(self.boxes_xyxy_px)) and np.all(np.isfinite(self.scores))):
            raise UsageError("Detections need finite boxes and scores.")
        if np.any(np.diff(self.scores) > 0):
            raise UsageError("Detections need to be sorted by falling score; Detections.from_arrays sorts them.")
        if n and not (0 <= self.labels.min() and self.labels.max() < len(self.class_names)):
            raise UsageError(
                f"Detections have labels from {self.labels.min()} to {self.labels.max()} "
                f"but {len(self.class_names)} class names."
            )

    @classmethod
    def from_arrays(
        cls,
        *,
        boxes_xyxy_px: ArrayLike,
        scores: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str],
        image_size: tuple[int, int],
        source: str = "",
    ) -> "Detections":
        """Detections from anything like arrays, in any order: converted to the right dtypes and sorted.

        Raises:
            UsageError: the values do not fit together.
        """
        score_array = np.asarray(scores, np.float32).reshape(-1)
        boxes = np.asarray(boxes_xyxy_px, np.float32)
        label_array = np.asarray(labels, np.int64).reshape(-1)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
        if not len(boxes) == len(score_array) == len(label_array):
            raise UsageError(f"There are {len(boxes)} boxes, {len(score_array)} scores and {len(label_array)} labels.")
        order = np.argsort(-score_array, kind="stable")
        return cls(
            boxes_xyxy_px=boxes[order],
            scores=score_array[order],
            labels=label_array[order],
            class_names=tuple(class_names),
            image_size=image_size,
            source=source,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> "Detections":
        """Those with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return Detections(
            boxes_xyxy_px=self.boxes_xyxy_px[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            class_names=self.class_names,
            image_size=self.image_size,
            source=self.source,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: one entry a detection, boxes as [x1, y1, x2, y2] in pixels."""
        return {
            "source": self.source,
            "height": self.image_size[0],
            "width": self.image_size[1],
            "detections": [
                {
                    "class": self.class_names[label],
                    "label": int(label),
                    "score": float(score),
                    "box_xyxy_px": box.tolist(),
                }
                for box, score, label in zip(self.boxes_xyxy_px, self.scores, self.labels, strict=True)
            ],
        }


_CSV_COLUMNS = ("source", "height", "width", "class", "score", "x1", "y1", "x2", "y2")


def to_coco(detections: Sequence[Detections], *, category_ids: Sequence[int] | None = None) -> dict[str, Any]:
    """A COCO document: one image a `Detections`, one annotation (with its score) a detection.

    Ids count from 1. The list under "annotations" is in COCO's results format.

    Args:
        detections: all of one list of classes.
        category_ids: of each class; None: its label plus 1. COCO's own have gaps (`setdet.weights.classes`).

    Raises:
        UsageError: the detections do not share one list of classes.
    """
    class_names = detections[0].class_names if detections else ()
    ids = range(1, len(class_names) + 1) if category_ids is None else category_ids
    annotations: list[dict[str, Any]] = []
    for image_id, found in enumerate(detections, start=1):
        if found.class_names != class_names:
            raise UsageError(
                f"{found.source or f'picture {image_id}'}: its classes are {', '.join(found.class_names)}; those of "
                f"the first picture are {', '.join(class_names)}. One COCO document holds one list of classes."
            )
        for box, score, label in zip(found.boxes_xyxy_px, found.scores, found.labels, strict=True):
            left, top, right, bottom = (float(corner) for corner in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[int(label)],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return {
        "images": [
            {"id": image_id, "file_name": found.source, "height": found.image_size[0], "width": found.image_size[1]}
            for image_id, found in enumerate(detections, start=1)
        ],
        "categories": [{"id": id_, "name": name} for id_, name in zip(ids, class_names, strict=True)],
        "annotations": annotations,
    }


def from_coco(document: Mapping[str, Any]) -> list[Detections]:
    """The detections in a COCO document with scores, in the order of its images.

    Raises:
        DataError: a key is missing, or an annotation names an image or category that is not there.
    """
    try:
        categories = sorted(document["categories"], key=lambda category: int(category["id"]))
        label_of = {category["id"]: label for label, category in enumerate(categories)}
        rows: dict[Any, list[tuple[list[float], float, int]]] = {image["id"]: [] for image in document["images"]}
        for annotation in document["annotations"]:
            left, top, width, height = annotation["bbox"]
            if annotation["image_id"] not in rows or annotation["category_id"] not in label_of:
                raise DataError(
                    f"COCO detections: an annotation is of image {annotation['image_id']} and category "
                    f"{annotation['category_id']}, and the document does not list both."
                )
            label = label_of[annotation["category_id"]]
            rows[annotation["image_id"]].append(([left, top, left + width, top + height], annotation["score"], label))
        return [
            _from_rows(
                rows[image["id"]],
                class_names=[str(category["name"]) for category in categories],
                image_size=(int(image["height"]), int(image["width"])),
                source=str(image["file_name"]),
            )
            for image in document["images"]
        ]
    except KeyError as error:
        raise DataError(f"COCO detections: the key {error} is missing.") from None
    except (TypeError, ValueError) as error:
        raise DataError(f"COCO detections: a value does not fit ({error}).") from None


def to_yolo(detections: Detections) -> str:
    """One picture's YOLO text: a line `label center_x center_y width height score` a detection, shares of the size."""
    height, width = detections.image_size
    lines = []
    for box, score, label in zip(detections.boxes_xyxy_px, detections.scores, detections.labels, strict=True):
        left, top, right, bottom = (float(corner) for corner in box)
        center_x, center_y = (left + right) / 2 / width, (top + bottom) / 2 / height
        box_width, box_height = (right - left) / width, (bottom - top) / height
        lines.append(f"{label} {center_x:.8g} {center_y:.8g} {box_width:.8g} {box_height:.8g} {score:.9g}\n")
    return "".join(lines)


def from_yolo(text: str, *, class_names: Sequence[str], image_size: tuple[int, int], source: str = "") -> Detections:
    """The detections in one picture's YOLO text, as `to_yolo` writes it.

    Raises:
        DataError: a line is not six numbers, or its label is not one of `class_names`.
    """
    height, width = image_size
    rows: list[tuple[list[float], float, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{source or 'YOLO detections'}, line {number}"
        if not line.strip():
            continue
        try:
            label, (center_x, center_y, box_width, box_height, score) = (
                int(line.split()[0]),
                map(float, line.split()[1:]),
            )
        except ValueError:
            raise DataError(
                f"{where}: expected 'label center_x center_y width height score', found '{line}'."
            ) from None
        if not 0 <= label < len(class_names):
            raise DataError(f"{where}: the label {label} is not one of the {len(class_names)} classes (from 0).")
        left, top = (center_x - box_width / 2) * width, (center_y - box_height / 2) * height
        rows.append(([left, top, left + box_width * width, top + box_height * height], score, label))
    return _from_rows(rows, class_names=class_names, image_size=image_size, source=source)


def to_csv(detections: Iterable[Detections]) -> str:
    """A table with a header and a line a detection, boxes in pixels.

    A picture without detections gets one line with empty columns, so that "nothing found" differs from "not looked at".
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for found in detections:
        picture = (found.source, *found.image_size)
        if not len(found):
            writer.writerow((*picture, *[""] * 6))
        for box, score, label in zip(found.boxes_xyxy_px, found.scores, found.labels, strict=True):
            corners = (f"{corner:.9g}" for corner in box)
            writer.writerow((*picture, found.class_names[label], f"{score:.9g}", *corners))
    return table.getvalue()


def from_csv(text: str, *, class_names: Sequence[str]) -> list[Detections]:
    """The detections in a table as `to_csv` writes it, one `Detections` a source, in the order of the lines.

    Raises:
        DataError: the header or a line does not fit, or a class is not one of `class_names`.
    """
    lines = csv.reader(io.StringIO(text))
    header = next(lines, [])
    if tuple(header) != _CSV_COLUMNS:
        raise DataError(f"CSV detections: expected the header '{','.join(_CSV_COLUMNS)}', found '{','.join(header)}'.")
    label_of = {name: label for label, name in enumerate(class_names)}
    pictures: dict[tuple[str, int, int], list[tuple[list[float], float, int]]] = {}
    for number, line in enumerate(lines, start=2):
        try:
            source, height, width, name, score, *corners = line
            rows = pictures.setdefault((source, int(height), int(width)), [])
            if not any((name, score, *corners)):
                continue
            if len(corners) != 4:
                raise ValueError
            row = [float(corner) for corner in corners], float(score)
        except ValueError:
            raise DataError(f"CSV detections, line {number}: '{','.join(line)}' does not fit the header.") from None
        if name not in label_of:
            raise DataError(f"CSV detections, line {number}: unknown class '{name}'.{suggest(name, class_names)}")
        rows.append((*row, label_of[name]))
    return [
        _from_rows(rows, class_names=class_names, image_size=(height, width), source=source)
        for (source, height, width), rows in pictures.items()
    ]


def _from_rows(
    rows: list[tuple[list[float], float, int]],
    *,
    class_names: Sequence[str],
    image_size: tuple[int, int],
    source: str,
) -> Detections:
    return Detections.from_arrays(
        boxes_xyxy_px=[box for box, _, _ in rows],
        scores=[score for _, score, _ in rows],
        labels=[label for _, _, label in rows],
        class_names=class_names,
        image_size=image_size,
        source=source,
    )
