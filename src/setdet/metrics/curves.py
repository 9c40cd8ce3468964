"""Precision and recall over confidence at one IoU, and the confidence at which the mean F1 is best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.metrics.inputs import check_inputs
from setdet.metrics.matching import match, overlap

_LEAST_IOU = 0.5  # that finds a box

# Where COCO reads the curve of precision over recall.
RECALLS: NDArray[np.float64] = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ClassCurve:
    """One class's detections, best first, crowd ones left out.

    Attributes:
        name: of the class.
        scores: (n,) falling.
        hits: (n,) whether each detection found a box.
        boxes: how many boxes there are to be found.
    """

    name: str
    scores: NDArray[np.float32]
    hits: NDArray[np.bool_]
    boxes: int

    def counts(self, confidence: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(found boxes, detections) at each confidence."""
        # In float32 as `Detections.above` compares: a score of 0.9 is not below a confidence of 0.9.
        kept = np.searchsorted(-self.scores, -confidence.astype(np.float32), side="right")
        return np.concatenate([[0], np.cumsum(self.hits)])[kept], kept

    def precision_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n,) precision and (n,) recall with the best 1, 2 … n detections; recall is 0 where there is no box."""
        found = np.cumsum(self.hits)
        return found / np.arange(1, len(found) + 1), found / max(self.boxes, 1)

    def precision_at(self, recall: NDArray[np.float64]) -> NDArray[np.float64]:
        """The best precision with at least each recall, 0 where it is not reached: COCO's interpolated curve."""
        precision, reached = self.precision_recall()
        best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        return best_from_here[np.searchsorted(reached, recall)]

    def average_precision(self) -> float | None:
        """The mean of `precision_at` over `RECALLS`, as COCO's AP at one IoU; None where there is no box."""
        return float(self.precision_at(RECALLS).mean()) if self.boxes else None


@dataclass(frozen=True)
class OperatingPoint:
    """Means over the classes that have boxes, at one confidence; a class that detects nothing has precision 0."""

    confidence: float
    precision: float
    recall: float
    f1: float
    per_class: tuple[tuple[str, float, float, float], ...]
    """(name, precision, recall, F1) of each class that has boxes."""


def class_curves(
    records: Sequence[Record], detections: Sequence[Detections], class_names: Sequence[str]
) -> tuple[ClassCurve, ...]:
    """Matches each class by itself at IoU 0.5, best score first, each detection to the free box that it overlaps most.

    A detection that finds no box of its own, but lies in a crowd box, is left out.

    Args:
        records: the truth; labels are indices into `class_names`.
        detections: of each record, in the same order.
        class_names: of both.

    Raises:
        UsageError: records, detections and class names don't belong together.
    """
    check_inputs(records, detections, class_names)
    scores: list[list[NDArray[np.float32]]] = [[] for _ in class_names]
    hits: list[list[NDArray[np.bool_]]] = [[] for _ in class_names]
    boxes = np.zeros(len(class_names), dtype=np.int64)
    for record, found in zip(records, detections, strict=True):
        overlaps = overlap(found.boxes_xyxy_px, record.boxes_xyxy_px, record.crowd)
        for label in np.union1d(record.labels, found.labels):
            truth, mine = record.labels == label, found.labels == label
            crowd = record.crowd[truth]
            pairs = overlaps[np.ix_(mine, truth)]
            box = match(pairs, crowd, thresholds=np.array([_LEAST_IOU]), ignored=crowd[None])[0, 0]
            in_crowd = np.append(crowd, False)[box]  # −1, for no box, is the last one
            scores[label].append(found.scores[mine][~in_crowd])
            hits[label].append(box[~in_crowd] >= 0)
            boxes[label] += int(np.sum(~record.crowd[truth]))
    curves = []
    for label, name in enumerate(class_names):
        score = np.concatenate([*scores[label], np.zeros(0, dtype=np.float32)])
        order = np.argsort(-score, kind="stable")
        hit = np.concatenate([*hits[label], np.zeros(0, dtype=np.bool_)])[order]
        curves.append(ClassCurve(name=name, scores=score[order], hits=hit, boxes=int(boxes[label])))
    return tuple(curves)


def operating_point(curves: Sequence[ClassCurve], confidence: float | None = None) -> OperatingPoint | None:
    """Precision, recall and F1 at a confidence; None: at the one with the best mean F1 (of the grid 0, 0.001 … 1).

    None where no class has a box.
    """
    curves = [curve for curve in curves if curve.boxes]
    if not curves:
        return None
    grid = np.linspace(0, 1, 1001) if confidence is None else np.array([confidence])
    found, kept = (np.stack(part) for part in zip(*(curve.counts(grid) for curve in curves), strict=True))
    boxes = np.array([curve.boxes for curve in curves])[:, None]
    precision, recall, f1 = found / np.maximum(kept, 1), found / boxes, 2 * found / (kept + boxes)
    best = int(f1.mean(axis=0).argmax())
    return OperatingPoint(
        confidence=float(grid[best]),
        precision=float(precision[:, best].mean()),
        recall=float(recall[:, best].mean()),
        f1=float(f1[:, best].mean()),
        per_class=tuple(
            (curve.name, float(precision[row, best]), float(recall[row, best]), float(f1[row, best]))
            for row, curve in enumerate(curves)
        ),
    )
