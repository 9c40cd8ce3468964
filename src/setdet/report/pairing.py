"""Which detection found which defect: what confusion matrices, captions and "worst pictures" are made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections


@dataclass(frozen=True)
class Pairing:
    """One picture's truth and detections, paired by place; a pair may differ in class.

    Attributes:
        pairs: (index of the true box, index of the detection).
        missed: indices of true boxes without a detection.
        spurious: indices of detections without a true box.
        wrong_class: how many pairs differ in class.
    """

    pairs: tuple[tuple[int, int], ...]
    missed: tuple[int, ...]
    spurious: tuple[int, ...]
    wrong_class: int

    @property
    def right(self) -> int:
        """True boxes found with the right class."""
        return len(self.pairs) - self.wrong_class

    @property
    def mistakes(self) -> int:
        """Boxes missed, invented, or of the wrong class."""
        return len(self.missed) + len(self.spurious) + self.wrong_class


def pair(record: Record, detections: Detections, *, iou: float = 0.5) -> Pairing:
    """Pairs greedily, best detection first; among the true boxes that overlap enough, its own class goes first.

    Crowd boxes are no truth to be found, and a detection that overlaps nothing else but one is not counted.
    """
    overlaps = _iou(record.boxes_xyxy_px, detections.boxes_xyxy_px)
    free = {int(index) for index in np.flatnonzero(~record.crowd)}
    pairs: list[tuple[int, int]] = []
    spurious: list[int] = []
    for found, label in enumerate(detections.labels):
        candidates = [truth for truth in free if overlaps[truth, found] >= iou]
        if candidates:
            best = max(candidates, key=lambda truth: (record.labels[truth] == label, overlaps[truth, found]))
            free.remove(best)
            pairs.append((best, found))
        elif not np.any(overlaps[record.crowd, found] >= iou):
            spurious.append(found)
    wrong = sum(int(record.labels[truth] != detections.labels[found]) for truth, found in pairs)
    return Pairing(pairs=tuple(pairs), missed=tuple(sorted(free)), spurious=tuple(spurious), wrong_class=wrong)


def confusion_matrix(
    records: Sequence[Record], detections: Sequence[Detections], *, num_classes: int, iou: float = 0.5
) -> NDArray[np.int64]:
    """Counts of boxes, (num_classes + 1, num_classes + 1): rows are the truth, columns what was found.

    The last column counts what was missed, the last row what was invented.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for record, found in zip(records, detections, strict=True):
        pairing = pair(record, found, iou=iou)
        for truth, detection in pairing.pairs:
            counts[record.labels[truth], found.labels[detection]] += 1
        for truth in pairing.missed:
            counts[record.labels[truth], num_classes] += 1
        for detection in pairing.spurious:
            counts[num_classes, found.labels[detection]] += 1
    return counts


def _iou(a_xyxy: NDArray[np.float32], b_xyxy: NDArray[np.float32]) -> NDArray[np.float64]:
    """Overlap of every box of `a` (rows) with every one of `b` (columns), 0 to 1."""
    a, b = a_xyxy.astype(np.float64)[:, None], b_xyxy.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
