"""AP by size and by shape of the boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from setdet.analyze.groups import SHAPES, SIZES, Group
from setdet.analyze.ledger import THRESHOLDS, Entries


@dataclass(frozen=True)
class GroupMetrics:
    """AP of the boxes of one group, None where there is none.

    Attributes:
        group: which boxes.
        boxes: how many of them.
        ap: mean over IoU 0.50 to 0.95 and over the classes that have such boxes.
        ap50: at IoU 0.50.
    """

    group: Group
    boxes: int
    ap: float | None
    ap50: float | None


def by_size(entries: Entries) -> tuple[GroupMetrics, ...]:
    """COCO's AP small, medium and large."""
    return _measured(entries, SIZES, first=1)


def by_shape(entries: Entries) -> tuple[GroupMetrics, ...]:
    """As by size, by width through height: boxes of other shapes, and what finds those, count for nothing."""
    return _measured(entries, SHAPES, first=1 + len(SIZES))


def class_aps(entries: Entries, *, group: int = 0) -> tuple[tuple[float | None, float | None], ...]:
    """(AP over IoU 0.50 to 0.95, AP50) of each class among the boxes of a group, 0 being all."""
    rows: list[tuple[float | None, float | None]] = []
    for label in range(len(entries.class_names)):
        of_threshold = [
            entries.curve(label, group=group, threshold=threshold).average_precision()
            for threshold in range(len(THRESHOLDS))
        ]
        rows.append((mean(of_threshold), of_threshold[0]))
    return tuple(rows)


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that were measured; None where none was."""
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None


def _measured(entries: Entries, groups: Sequence[Group], *, first: int) -> tuple[GroupMetrics, ...]:
    rows = []
    for number, group in enumerate(groups, start=first):
        aps = class_aps(entries, group=number)
        boxes = np.count_nonzero(~entries.truth_crowd & ~entries.truth_outside[:, number])
        rows.append(
            GroupMetrics(
                group=group,
                boxes=int(boxes),
                ap=mean([ap for ap, _ in aps]),
                ap50=mean([ap50 for _, ap50 in aps]),
            )
        )
    return tuple(rows)
