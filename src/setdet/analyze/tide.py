"""What each kind of error costs in AP, after TIDE: Bolya et al., *A General Toolbox for Identifying Object Detection
Errors*, ECCV 2020 (arXiv 2008.08115).

Each kind is fixed alone and AP50 is measured again; the difference is its cost. As kinds share the cost of a mistake,
the costs need not add up to what is missing. Section 2.3 says how each is fixed. The authors' program keeps, of all
wrong classes and bad boxes about one true box, a single one whichever kind is fixed; here, as in the paper, it is the
best of the kind. On random cases the counts of every kind are those of their program (tidecv 1.0.1), and the other
costs agree to 0.002.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from setdet.analyze.ledger import Entries, Kind
from setdet.metrics.curves import ClassCurve

WRONG_KINDS = (Kind.WRONG_CLASS, Kind.BAD_BOX, Kind.BOTH, Kind.DUPLICATE, Kind.BACKGROUND)
"""Of detections; true boxes that are missed are the sixth kind."""


@dataclass(frozen=True)
class Costs:
    """AP50 to be won, 0 to 1, None where there is no box to measure on.

    Attributes:
        ap50: as it is.
        kinds: of each of `WRONG_KINDS`.
        missed: of true boxes that nothing found or came near.
        false_positives: of all wrong detections together: AP50 if there were none.
        false_negatives: of all true boxes that are not found, together: AP50 if they were not there.
    """

    ap50: float | None
    kinds: dict[Kind, float | None]
    missed: float | None
    false_positives: float | None
    false_negatives: float | None


@dataclass(frozen=True)
class _Counted:
    """What AP50 is made of.

    Attributes:
        label: (n,) class of each detection.
        hit: (n,) whether it is right.
        kept: (n,) whether it is there at all.
        boxes: (classes,) how many there are to be found.
    """

    label: NDArray[np.int16]
    hit: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    boxes: NDArray[np.int64]


def costs(entries: Entries) -> Costs:
    """Fixes each kind alone and measures AP50 again."""
    classes = len(entries.class_names)
    labels = entries.truth_label[~entries.truth_crowd]
    now = _Counted(
        label=entries.label,
        hit=entries.kind == Kind.RIGHT,
        kept=entries.kind != Kind.LEFT_OUT,
        boxes=np.bincount(labels, minlength=classes),
    )
    measured = now.boxes > 0

    def gain(fixed: _Counted) -> float | None:
        after = _ap50(entries, fixed, measured=measured)
        return None if ap50 is None or after is None else after - ap50

    def without(gone: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(now.boxes - np.bincount(entries.truth_label[gone], minlength=classes))

    ap50 = _ap50(entries, now, measured=measured)
    kinds = {kind: gain(_fixed(entries, now, kind)) for kind in WRONG_KINDS}
    return Costs(
        ap50=ap50,
        kinds=kinds,
        missed=gain(_Counted(now.label, now.hit, now.kept, without(entries.missed()))),
        false_positives=gain(_Counted(now.label, now.hit, now.kept & now.hit, now.boxes)),
        false_negatives=gain(_Counted(now.label, now.hit, now.kept, without(entries.unfound()))),
    )


def _fixed(entries: Entries, now: _Counted, kind: Kind) -> _Counted:
    """The class or box of errors of this kind set right, where that finds a box that nothing found; others dropped."""
    wrong = entries.kind == kind
    label, hit = now.label.copy(), now.hit.copy()
    if kind in (Kind.WRONG_CLASS, Kind.BAD_BOX):
        free = entries.unfound()
        candidates = np.flatnonzero(wrong)
        candidates = candidates[free[entries.truth[candidates]]]
        # The first about each true box is the best: entries fall in score.
        _, first = np.unique(entries.truth[candidates], return_index=True)
        repaired = candidates[first]
        label[repaired] = entries.truth_label[entries.truth[repaired]]
        hit[repaired] = True
    return _Counted(label, hit, now.kept & (hit | ~wrong), now.boxes)


def _ap50(entries: Entries, counted: _Counted, *, measured: NDArray[np.bool_]) -> float | None:
    """Mean over the classes that have boxes.

    A class whose boxes a fix has all taken away is at 1 if nothing is said to be of it either, else at 0.
    """
    values = []
    for label in np.flatnonzero(measured):
        mine = np.flatnonzero(counted.kept & (counted.label == label))
        curve = ClassCurve(
            name=entries.class_names[label],
            scores=entries.score[mine],
            hits=counted.hit[mine],
            boxes=int(counted.boxes[label]),
        )
        ap = curve.average_precision()
        values.append(float(not len(mine)) if ap is None else ap)
    return float(np.mean(values)) if values else None
