"""Measures a predictor on annotated pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from setdet.data.schema import Record, check_size
from setdet.detections import Detections
from setdet.errors import DataError, UsageError
from setdet.metrics.coco import CocoMetrics, coco_metrics
from setdet.metrics.curves import ClassCurve, OperatingPoint, class_curves, operating_point
from setdet.metrics.inputs import check_labels
from setdet.predict import Predictor


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        coco: average precision and recall by COCO's rules.
        best: precision, recall and F1 (class means at IoU 0.5) at the confidence of the best mean F1; None without
            any box.
        confidence: that was asked for; None where none was.
        given: as `best`, at that confidence.
        curves: of every class, for reports.
        images, boxes: how many were measured on; crowd boxes are not counted.
    """

    coco: CocoMetrics
    best: OperatingPoint | None
    confidence: float | None
    given: OperatingPoint | None
    curves: tuple[ClassCurve, ...]
    images: int
    boxes: int

    @property
    def ap(self) -> float | None:
        """AP over IoU 0.50 to 0.95."""
        return self.coco.ap

    @property
    def ap50(self) -> float | None:
        """AP at IoU 0.50."""
        return self.coco.ap50

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `setdet val --json` prints them; None where there was nothing to measure."""
        asked = {} if self.confidence is None else {"at_confidence": _point(self.given, self.confidence)}
        return {
            **{name: value for name, value in asdict(self.coco).items() if name != "per_class"},
            **_point(self.best, None),
            **asked,
            "per_class": self._per_class(),
            "images": self.images,
            "boxes": self.boxes,
        }

    def _per_class(self) -> list[dict[str, Any]]:
        at_best = {name: values for name, *values in self.best.per_class} if self.best else {}
        rows = []
        for one in self.coco.per_class:
            precision, recall, f1 = at_best.get(one.name, (None, None, None))
            rows.append({**asdict(one), "precision": precision, "recall": recall, "f1": f1})
        return rows


def evaluate(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    class_names: Sequence[str] | None = None,
    confidence: float | None = None,
    progress: bool = False,
    batch_size: int = 16,
    on_result: Callable[[Record, Detections], None] | None = None,
) -> Evaluation:
    """Predicts every record's picture and measures.

    Args:
        predictor: with its class names.
        records: the truth; nothing is trained or chosen on it here.
        class_names: of the records' labels, matched to the predictor's by name; None: they are the predictor's.
        confidence: also report precision, recall and F1 at this score, 0 to 1.
        progress: show a bar, on stderr.
        batch_size: pictures that go through the network at once.
        on_result: called with every record (its labels the predictor's) and what was found on it.

    Raises:
        DataError: there is nothing to measure on, the data has classes that the predictor doesn't know, or a picture
            has another size than its annotations declare.
        UsageError: the confidence is no score, or a label is beyond the predictor's classes.
        ImageError: a picture cannot be read.
    """
    if confidence is not None and not 0 <= confidence <= 1:
        raise UsageError(f"The confidence is {confidence}; expected a score from 0 to 1.")
    if class_names is not None:
        records = match_classes(records, class_names, predictor.class_names)
    detections = []
    for record, found in results(predictor, records, batch_size=batch_size, progress=progress):
        detections.append(found)
        if on_result is not None:
            on_result(record, found)
    curves = class_curves(records, detections, predictor.class_names)
    return Evaluation(
        coco=coco_metrics(records, detections, predictor.class_names),
        best=operating_point(curves),
        confidence=confidence,
        given=None if confidence is None else operating_point(curves, confidence),
        curves=curves,
        images=len(records),
        boxes=int(sum(np.sum(~record.crowd) for record in records)),
    )


def results(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    batch_size: int = 16,
    progress: bool = False,
    doing: str = "evaluating",
) -> Iterator[tuple[Record, Detections]]:
    """Every record with all that was found on its picture, from score 0 up, one after the other.

    Args:
        predictor: whose classes are those of the records' labels.
        records: the pictures and their truth.
        batch_size: pictures that go through the network at once.
        progress: show a bar, on stderr.
        doing: what the bar says.

    Raises:
        DataError: there is no record, or a picture has another size than its annotations declare.
        UsageError: a label is beyond the predictor's classes.
        ImageError: a picture cannot be read.
    """
    if not records:
        raise DataError("There are no pictures to evaluate on. Choose a split that has some.")
    check_labels(records, predictor.class_names)
    stream = predictor.stream([record.image for record in records], threshold=0.0, batch_size=batch_size)
    shown = track(stream, description=doing, total=len(records), disable=not progress, console=Console(stderr=True))
    for record, found in zip(records, shown, strict=True):
        check_size(record, *found.image_size)
        yield record, found


def match_classes(records: Sequence[Record], data_names: Sequence[str], known_names: Sequence[str]) -> list[Record]:
    """The records with labels that are indices into `known_names`, matched by name.

    Raises:
        DataError: a class that has boxes is not among the known names.
    """
    index = {name: position for position, name in enumerate(known_names)}
    used = sorted({int(label) for record in records for label in record.labels})
    unknown = [data_names[label] for label in used if data_names[label] not in index]
    if unknown:
        raise DataError(
            f"The data has classes that the weights don't know: {', '.join(unknown)}. They know: "
            f"{', '.join(known_names)}. Rename the classes in the annotations, or train on this data."
        )
    to_known = np.array([index.get(name, -1) for name in data_names], dtype=np.int64)
    return [replace(record, labels=to_known[record.labels]) for record in records]


def _point(point: OperatingPoint | None, confidence: float | None) -> dict[str, float | None]:
    """The figures of a point; None each where there is none, but for the `confidence` that was asked for."""
    return {
        "precision": point.precision if point else None,
        "recall": point.recall if point else None,
        "f1": point.f1 if point else None,
        "confidence": point.confidence if point else confidence,
    }
