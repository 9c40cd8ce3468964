"""COCO: one JSON file a split, for all pictures.

Read from a JSON file, or from a folder with `annotations/instances_<split>.json` or `<split>/_annotations.coco.json`.
Pictures are looked for in the split's own folder first. Category ids may have gaps: classes are ordered by id.
`iscrowd` is kept as `crowd`, `area` as `areas_px`. Boxes without an area are left out, with a note. No torch.
"""

import json
import math
import os.path
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from setdet.data.records import RawBox, RecordBuilder, check_class_names, normalize_split, read_text
from setdet.data.schema import Dataset, Record, Sample
from setdet.data.writing import PictureFolder, write_atomically
from setdet.errors import DataError, UnknownFormatError

T = TypeVar("T")

_ROBOFLOW = "_annotations.coco.json"
_KEYS = ("images", "annotations", "categories")


def recognizes(path: Path) -> bool:
    """Whether `path` is a JSON file or a folder in one of this format's layouts."""
    return path.suffix.lower() == ".json" if path.is_file() else any(_files(path).values())


def read(path: Path, *, problems: list[DataError] | None = None) -> Dataset:
    """Reads a COCO file or folder.

    Args:
        path: the file or folder.
        problems: see `RecordBuilder`.

    Raises:
        DataError: a file is broken, a picture is missing, an id leads nowhere.
    """
    found = _files(path)
    files = {file: split for file, split in found.items() if split is not None}
    if not files:
        raise UnknownFormatError(
            f"{path}: holds no COCO data set (annotations/instances_<split>.json or <split>/{_ROBOFLOW})."
        )
    builder = RecordBuilder(problems=problems)
    contents: dict[Path, dict[str, list[dict[str, Any]]]] = {}
    for file in files:
        with builder.guarded():
            contents[file] = _load(file)
    names_by_id: dict[int, str] = {}
    for file, content in contents.items():
        for category_id, name in _categories(file, content).items():
            if names_by_id.setdefault(category_id, name) != name:
                raise DataError(
                    f"{file}: category {category_id} is '{name}', but '{names_by_id[category_id]}' in another file "
                    f"of {path}. Export all splits together."
                )
    ids = sorted(names_by_id)
    class_names = check_class_names([names_by_id[category_id] for category_id in ids], source=str(path))
    label_by_id = {category_id: label for label, category_id in enumerate(ids)}
    splits: dict[str, tuple[Record, ...]] = {}
    for file, content in contents.items():
        split = files[file]
        records = _Reader(file, split, label_by_id, class_names).records(content, builder)
        splits[split] = tuple(sorted((*splits.get(split, ()), *records), key=lambda record: record.image))
    notes = builder.notes()
    if left_out := [file.relative_to(path).as_posix() for file in found if file not in files]:
        notes += (f"Left out, because their names stand for no split: {', '.join(left_out)}.",)
    return Dataset(root=path, format="coco", class_names=class_names, splits=splits, notes=notes)


def write(directory: Path, *, split: str, samples: Iterable[Sample], class_names: Sequence[str]) -> None:
    """Writes one split as `images/<split>/*.png` and `annotations/instances_<split>.json`, the JSON last and whole.

    Raises:
        DataError: two samples have one name.
        OutputError: the split is there already, or the folder cannot be written.
    """
    pictures = PictureFolder(directory / "images" / split)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sample in samples:
        path = pictures.save(sample)
        height, width = sample.image.shape[:2]
        images.append({"id": len(images) + 1, "file_name": path.name, "height": height, "width": width})
        for box, label, crowd in zip(
            sample.boxes_xyxy_px.tolist(), sample.labels.tolist(), sample.crowd.tolist(), strict=True
        ):
            left, top, right, bottom = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": label + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": int(crowd),
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_atomically(directory / "annotations" / f"instances_{split}.json", json.dumps(content))


def _files(path: Path) -> dict[Path, str | None]:
    """The annotation files and the split that each one is; None where its name says none."""
    if path.is_file():
        return {path: _split_of(path) or "train"}
    found = {file: _split_of(file) for file in sorted(path.glob("annotations/instances_*.json"))}
    found |= {file: normalize_split(file.parent.name) for file in sorted(path.glob(f"*/{_ROBOFLOW}"))}
    if len(found) == 1:  # one file for everything, such as CVAT's instances_default.json
        return {file: split or "train" for file, split in found.items()}
    return found


def _split_of(file: Path) -> str | None:
    """The split that a file's name stands for: val for `instances_val2017.json` or `valid/_annotations.coco.json`."""
    stem = file.parent.name if file.name == _ROBOFLOW else file.stem
    return normalize_split(re.sub(r"\d*$", "", stem.removeprefix("instances_")))


def _load(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or a number of thousands of digits
        raise DataError(f"{file}: is not JSON ({error}). Export it again.") from None
    if not isinstance(content, dict) or not all(_is_list_of_objects(content.get(key)) for key in _KEYS):
        raise DataError(f"{file}: is no COCO file: expected lists of objects under {', '.join(_KEYS)}.")
    return content


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _categories(file: Path, content: dict[str, list[dict[str, Any]]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in content["categories"]:
        category_id = _field(category, "id", int, f"{file}: a category")
        name = _field(category, "name", str, f"{file}: category {category_id}")
        if category_id in names:
            raise DataError(f"{file}: two categories have the id {category_id}. Give each an id of its own.")
        names[category_id] = name
    return names


def _field(entry: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "is missing" if key not in entry else f"is {value!r}"
        raise DataError(f"{where}: '{key}' {found}, expected {kind.__name__}. Correct it, or export the file again.")
    return value


class _Reader:
    """Makes records of one annotation file."""

    def __init__(self, file: Path, split: str, label_by_id: dict[int, int], class_names: Sequence[str]) -> None:
        self._file = file
        self._label_by_id = label_by_id
        self._class_names = class_names
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        own_name = file.stem.removeprefix("instances_")  # COCO's own folders are called train2017, val2017
        # Those that fit best first; a name may be found in two of one row only if that is the same file.
        rows = [[root / name, root / "images" / name] for name in (own_name, split)]
        rows.append([root, root / "images", file.parent])
        self._rows = [[folder for folder in dict.fromkeys(row) if folder.is_dir()] for row in rows]

    def records(self, content: dict[str, list[dict[str, Any]]], builder: RecordBuilder) -> list[Record]:
        """One record for each entry of `images`."""
        boxes: dict[int, list[RawBox]] = {}
        images: dict[int, dict[str, Any]] = {}
        for image in content["images"]:
            with builder.guarded():
                image_id = _field(image, "id", int, f"{self._file}: an image")
                if image_id in images:
                    raise DataError(f"{self._file}: two images have the id {image_id}. Give each an id of its own.")
                images[image_id], boxes[image_id] = image, []
        for number, annotation in enumerate(content["annotations"]):
            where = f"annotation {annotation.get('id', f'number {number}')}"
            with builder.guarded():
                image_id = _field(annotation, "image_id", int, f"{self._file}: {where}")
                if image_id not in images:
                    raise DataError(
                        f"{self._file}: {where} is of image {image_id}, which is not in the list. Remove it."
                    )
                box = self._box(annotation, f"{where} of {images[image_id].get('file_name')}", builder)
                if box is not None:
                    boxes[image_id].append(box)
        records = []
        for image_id, image in images.items():
            with builder.guarded():
                records.append(self._record(image, boxes[image_id], builder))
        return records

    def _record(self, image: dict[str, Any], boxes: list[RawBox], builder: RecordBuilder) -> Record:
        where = f"{self._file}: image {image['id']}"
        size = None
        if image.get("height") is not None and image.get("width") is not None:
            size = (_field(image, "height", int, where), _field(image, "width", int, where))
        path = self._find(_field(image, "file_name", str, where))
        return builder.record(path, size=size, boxes=boxes, source=self._file)

    def _find(self, name: str) -> Path:
        spellings = dict.fromkeys((name, name.replace("\\", "/")))  # as Windows writes it
        for row in self._rows:
            paths = (folder / spelling for folder in row for spelling in spellings)
            found = [path for path in paths if os.path.isfile(path)]  # false for a name that is too long, too
            for other in found[1:]:
                if not other.samefile(found[0]):
                    raise DataError(
                        f"{self._file}: its picture '{name}' may be {found[0]} or {other}. "
                        "Rename or remove one of them, or write the folder in 'file_name', too."
                    )
            if found:
                return found[0]
        places = ", ".join(dict.fromkeys(str(folder) for row in self._rows for folder in row))
        raise DataError(
            f"{self._file}: its picture '{name}' is missing in {places}. Put it there, or remove its entry."
        )

    def _box(self, annotation: dict[str, Any], where: str, builder: RecordBuilder) -> RawBox | None:
        """The box of an annotation; None where it has no area."""
        category_id = _field(annotation, "category_id", int, f"{self._file}: {where}")
        if category_id not in self._label_by_id:
            known = ", ".join(str(known_id) for known_id in self._label_by_id)
            raise DataError(
                f"{self._file}: {where} is of the unknown class {category_id}. Known categories: {known}. "
                "Correct it, or add the category."
            )
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)):
            raise DataError(f"{self._file}: {where} needs 'bbox': [left, top, width, height], found {box!r}.")
        try:
            left, top, width, height = (float(value) for value in box)
        except OverflowError:
            raise DataError(f"{self._file}: {where} has a number in 'bbox' that is too large. Correct it.") from None
        if min(width, height) == 0:
            builder.remarks["{count} boxes have no width or no height and are left out."] += 1
            return None
        crowd = annotation.get("iscrowd")
        if crowd not in (None, 0, 1):
            raise DataError(f"{self._file}: {where}: 'iscrowd' is {crowd!r}, expected 0 or 1. Correct it.")
        label = self._label_by_id[category_id]
        return RawBox(
            label=label,
            xyxy_px=(left, top, left + width, top + height),
            where=f"{where} ({self._class_names[label]})",
            crowd=bool(crowd),
            area_px=_area(annotation.get("area"), builder),
        )


def _area(stated: object, builder: RecordBuilder) -> float | None:
    """The area that an annotation states; None, for that of its box, where it states none that makes sense."""
    if stated is None:
        return None
    try:
        area = float(stated) if isinstance(stated, int | float) and not isinstance(stated, bool) else math.nan
    except OverflowError:
        area = math.inf
    if 0 <= area < math.inf:
        return area
    builder.remarks["{count} areas are no number of pixels; those of the boxes stand in for them."] += 1
    return None
