"""What an error analysis keeps of every detection and every true box: numbers in arrays, some 70 bytes each."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from setdet.analyze.groups import areas, outside_each, shapes
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.metrics.curves import ClassCurve
from setdet.metrics.matching import match, overlap

# COCO's, for AP over IoU 0.50 to 0.95, and its most detections of a class on a picture.
THRESHOLDS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
_MOST = 100
_FOREGROUND, _BACKGROUND = 0.5, 0.1  # TIDE's IoUs
_COLUMN_OF_SCORE = 2
_BITS = (1 << np.arange(len(THRESHOLDS))).astype(np.uint16)


class Kind(IntEnum):
    """What a detection is, after TIDE (Bolya et al. 2020, section 2.2)."""

    RIGHT = 0
    WRONG_CLASS = 1
    BAD_BOX = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    LEFT_OUT = 6
    """In a crowd, or beyond the 100 best of its class on its picture: AP doesn't count it."""


@dataclass(frozen=True)
class Entries:
    """All n detections, by falling score whatever the picture, and all m true boxes, picture after picture.

    Attributes:
        class_names: of the labels.
        image_sizes: (pictures, 2) height and width of each picture, in pixels.
        picture: (n,) which one it is on.
        label: (n,) index into `class_names`.
        score: (n,) 0 to 1.
        boxes_xyxy_px: (n, 4).
        kind: (n,) a `Kind`.
        truth: (n,) index of the true box that it found, or that its error is about; −1: none.
        beyond: (n,) not among the 100 best of its class on its picture, which are all that AP looks at.
        hits: (n, 1 + groups) bits, one for each of `THRESHOLDS`: it found a box there.
        unseen: (n, 1 + groups) bits: it is ignored there, for lying in a crowd or outside of the group.
        truth_picture, truth_label: (m,) as above, of the true boxes.
        truth_crowd: (m,) whether it stands for a group, and is not to be found.
        truth_outside: (m, 1 + groups) whether it is not to be found there: not of the group.
    """

    class_names: tuple[str, ...]
    image_sizes: NDArray[np.int32]
    picture: NDArray[np.int32]
    label: NDArray[np.int16]
    score: NDArray[np.float32]
    boxes_xyxy_px: NDArray[np.float32]
    kind: NDArray[np.int8]
    truth: NDArray[np.int32]
    beyond: NDArray[np.bool_]
    hits: NDArray[np.uint16]
    unseen: NDArray[np.uint16]
    truth_picture: NDArray[np.int32]
    truth_label: NDArray[np.int16]
    truth_crowd: NDArray[np.bool_]
    truth_outside: NDArray[np.bool_]

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len(self.image_sizes)

    def curve(self, label: int, *, group: int = 0, threshold: int = 0, all_scores: bool = False) -> ClassCurve:
        """One class's detections and boxes as one way of looking counts them.

        Args:
            label: of the class.
            group: 0: all boxes; then the groups of `outside_each`.
            threshold: index into `THRESHOLDS`.
            all_scores: also those beyond the 100 best a picture, as precision and recall at a confidence have them.
        """
        bit, mine = _BITS[threshold], self._of_class[label]
        kept = self.unseen[mine, group] & bit == 0
        if not all_scores:
            kept &= ~self.beyond[mine]
        mine = mine[kept]
        boxes = (self.truth_label == label) & ~self.truth_crowd & ~self.truth_outside[:, group]
        return ClassCurve(
            name=self.class_names[label],
            scores=self.score[mine],
            hits=self.hits[mine, group] & bit != 0,
            boxes=int(np.count_nonzero(boxes)),
        )

    @cached_property
    def _of_class(self) -> list[NDArray[np.intp]]:
        """Where each class's detections are; asked for hundreds of times."""
        return [np.flatnonzero(self.label == label) for label in range(len(self.class_names))]

    def unfound(self, among: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """(m,) true boxes that no detection finds; `among`: indices of the detections to look at, None: all."""
        return self._without((Kind.RIGHT,), among)

    def missed(self, among: NDArray[np.intp] | None = None) -> NDArray[np.bool_]:
        """(m,) true boxes that none finds or comes near enough to be wrong about: TIDE's missed; see `unfound`."""
        return self._without((Kind.RIGHT, Kind.WRONG_CLASS, Kind.BAD_BOX), among)

    def _without(self, kinds: Sequence[Kind], among: NDArray[np.intp] | None) -> NDArray[np.bool_]:
        kind, truth = (self.kind, self.truth) if among is None else (self.kind[among], self.truth[among])
        left = ~self.truth_crowd
        left[truth[np.isin(kind, kinds)]] = False
        return left


class Ledger:
    """Takes detections and truth picture by picture, keeps what the analyses need, and forgets the rest."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._found: list[tuple[NDArray[np.generic], ...]] = []
        self._true: list[tuple[NDArray[np.generic], ...]] = []
        self._sizes: list[tuple[int, int]] = []
        self._truths = 0

    def add(self, record: Record, found: Detections) -> None:
        """One picture: its truth, labels among the ledger's classes, and what was found on it from score 0 up."""
        n, m = len(found), len(record.labels)
        crowd = record.crowd
        overlaps = overlap(found.boxes_xyxy_px, record.boxes_xyxy_px, crowd)
        truth_areas = areas(record.boxes_xyxy_px) if record.areas_px is None else record.areas_px
        outside = outside_each(truth_areas, shapes(record.boxes_xyxy_px))
        box = np.full((len(THRESHOLDS), len(outside), n), -1, dtype=np.int64)
        beyond = np.zeros(n, dtype=np.bool_)
        for label in np.unique(found.labels):
            mine, its = np.flatnonzero(found.labels == label), np.flatnonzero(record.labels == label)
            beyond[mine[_MOST:]] = True
            taken = match(
                overlaps[np.ix_(mine, its)], crowd[its], thresholds=THRESHOLDS, ignored=crowd[its] | outside[:, its]
            )
            box[..., mine] = np.append(its, -1)[taken]
        # One more column, for −1: no box. What took none is ignored where it is outside of the group itself.
        ignored = np.pad(outside | crowd, ((0, 0), (0, 1)))[np.arange(len(outside))[None, :, None], box]
        own_outside = outside_each(areas(found.boxes_xyxy_px), shapes(found.boxes_xyxy_px))
        kind, truth = _kinds(overlaps, found.labels, record, box[0, 0], ignored[0, 0] | beyond)
        number = np.int32(len(self._sizes))
        self._sizes.append(found.image_size)
        self._found.append(
            (
                np.full(n, number),
                found.labels.astype(np.int16),
                found.scores,
                found.boxes_xyxy_px,
                kind,
                np.where(truth >= 0, truth + self._truths, -1).astype(np.int32),
                beyond,
                _pack((box >= 0) & ~ignored),
                _pack(np.where(box >= 0, ignored, own_outside)),
            )
        )
        self._true.append((np.full(m, number), record.labels.astype(np.int16), crowd, outside.T))
        self._truths += m

    def entries(self) -> Entries:
        """All of at least one picture, in one piece; the ledger is empty then, so nothing is held twice for long."""
        found, true = list(zip(*self._found, strict=True)), list(zip(*self._true, strict=True))
        sizes = np.array(self._sizes, dtype=np.int32)
        self._found, self._true, self._sizes, self._truths = [], [], [], 0
        names = [field.name for field in fields(Entries) if field.name not in ("class_names", "image_sizes")]
        # Of equal scores, the earlier picture's comes first, as in COCO.
        order = np.argsort(-np.concatenate(found[_COLUMN_OF_SCORE]), kind="stable")
        columns = []
        while found:
            columns.append(np.concatenate(found.pop(0))[order])
        columns += [np.concatenate(parts) for parts in true]
        return Entries(class_names=self._class_names, image_sizes=sizes, **dict(zip(names, columns, strict=True)))


def _kinds(
    overlaps: NDArray[np.float64],
    labels: NDArray[np.int64],
    record: Record,
    box: NDArray[np.int64],
    left_out: NDArray[np.bool_],
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """(n,) the kind of each detection, and the true box it is about, −1: none.

    The kinds are tried in the order of TIDE's program: a box that is nearly right for its class comes before a class
    that is wrong for a box.
    """
    real = np.where(record.crowd, 0.0, overlaps)
    same = labels[:, None] == record.labels
    # One more column, so that there is a best one on pictures without truth.
    own, other = (np.pad(np.where(of, real, 0.0), ((0, 0), (0, 1))) for of in (same, ~same))
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    kind = np.select(
        [
            left_out,
            box >= 0,
            (best_own >= _BACKGROUND) & (best_own < _FOREGROUND),
            best_other >= _FOREGROUND,
            best_own >= _FOREGROUND,
            np.maximum(best_own, best_other) < _BACKGROUND,
        ],
        [Kind.LEFT_OUT, Kind.RIGHT, Kind.BAD_BOX, Kind.WRONG_CLASS, Kind.DUPLICATE, Kind.BACKGROUND],
        Kind.BOTH,
    )
    nearest = np.isin(kind, (Kind.BAD_BOX, Kind.DUPLICATE))
    truth = np.select(
        [kind == Kind.RIGHT, nearest, kind == Kind.WRONG_CLASS], [box, own.argmax(axis=1), other.argmax(axis=1)], -1
    )
    return kind.astype(np.int8), truth


def _pack(flags: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """(thresholds, groups, n) as (n, groups) bits."""
    return np.einsum("tgn,t->ng", flags, _BITS, dtype=np.uint16, casting="unsafe")
