"""Which detection found which defect: what confusion matrices, captions and "worst pictures" are made from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.metrics.matching import overlap


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

    Crowd boxes are no truth to be found, and a detection that finds nothing else but lies in one is not counted.
    """
    overlaps = overlap(detections.boxes_xyxy_px, record.boxes_xyxy_px, record.crowd)
    free = {int(index) for index in np.flatnonzero(~record.crowd)}
    pairs: list[tuple[int, int]] = []
    spurious: list[int] = []
    for found, label in enumerate(detections.labels):
        candidates = [truth for truth in free if overlaps[found, truth] >= iou]
        if candidates:
            best = max(candidates, key=lambda truth: (record.labels[truth] == label, overlaps[found, truth]))
            free.remove(best)
            pairs.append((best, found))
        elif not np.any(overlaps[found, record.crowd] >= iou):
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
