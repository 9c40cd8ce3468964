"""The encoder's selected features: does the score by which they are picked say how good their boxes are?

RT-DETR paper, section 4.3, figure 6 and table 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from setdet.analyze.watch import Look, looks, sigmoid, token_places, watched_model
from setdet.boxes import box_iou_and_union, cxcywh_to_xyxy
from setdet.data.schema import Record
from setdet.errors import UsageError
from setdet.metrics.calibration import Calibration, calibration
from setdet.models.queries import QuerySelection
from setdet.predict import Predictor

LEVELS = ("P3", "P4", "P5")
SIZES = ("small", "medium", "large")
OUTSIDE = len(SIZES)  # where a selected position lies in no object
RECALL_AT = (1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)

_SIZE_LIMITS_PX = np.array([32.0**2, 96.0**2])  # COCO's: small up to the first, large above the second
_NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Selected:
    """The selected features of one picture, best score first.

    Attributes:
        boxes_xyxy_px: (k, 4) float32, corners in pixels of the picture.
        scores: (k,) float32, of each one's best class, 0 to 1.
        labels: (k,) int64, that class.
        levels: (k,) int64, 0 to 2 for P3 to P5.
        positions_px: (k, 2) the centre of each feature's cell, (x, y) in pixels of the picture.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    levels: NDArray[np.int64]
    positions_px: NDArray[np.float32]


@dataclass(frozen=True)
class QueryAnalysis:
    """What came out for one detector.

    Attributes:
        scores, ious: (n,) float32, of every selected feature that was judged: its best class score, and the IoU of its
            box with the nearest object of that class, 0 where the picture has none.
        found_at: (boxes,) how many of the best features it takes until one has the box's class and an IoU of 0.5 with
            it (from 1); a huge number where none has.
        found_at_any_class: as `found_at`, whatever the feature's class.
        sizes: (boxes,) 0 to 2 for small, medium and large.
        places: (3, 4) how many features lie on each level (P3, P4, P5), at positions in a small, medium or large
            object, or in none.
        selected: the features of one picture.
        pictures: how many there were.
    """

    scores: NDArray[np.float32]
    ious: NDArray[np.float32]
    found_at: NDArray[np.int32]
    found_at_any_class: NDArray[np.int32]
    sizes: NDArray[np.int8]
    places: NDArray[np.int64]
    selected: int
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None where there was nothing to measure."""
        return {
            "pictures": self.pictures,
            "boxes": len(self.found_at),
            "features": len(self.scores),
            "selected_per_picture": self.selected,
            "prop_cls": _mean(self.scores > 0.5),
            "prop_both": _mean((self.scores > 0.5) & (self.ious > 0.5)),
            "spearman": spearman(self.scores, self.ious),
            "calibration_error": self.calibration.error,
            "calibration": [
                {"from": one.low, "to": one.high, "features": one.count, "score": one.score, "iou": one.right}
                for one in self.calibration.bins
            ],
            "recall": [self.recall_at(count) for count in self._counts()],
            "recall_by_size": {
                name: {
                    "boxes": int(np.sum(self.sizes == size)),
                    "recall": _mean(self.found_at[self.sizes == size] <= self.selected),
                    "recall_any_class": _mean(self.found_at_any_class[self.sizes == size] <= self.selected),
                }
                for size, name in enumerate(SIZES)
            },
            "levels": self._levels(),
        }

    def recall_at(self, count: int) -> dict[str, Any]:
        """Share of the true boxes that the best `count` features cover, with the right class and with any."""
        return {
            "k": count,
            "recall": _mean(self.found_at <= count),
            "recall_any_class": _mean(self.found_at_any_class <= count),
        }

    @property
    def calibration(self) -> Calibration:
        """Scores against IoUs, in tenths of the scores; what it calls right is the IoU here."""
        return calibration(self.scores, self.ious)

    def sample(self, count: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores and IoUs of at most `count` features, drawn evenly from all."""
        if len(self.scores) <= count:
            return self.scores, self.ious
        chosen = np.random.default_rng(seed).choice(len(self.scores), size=count, replace=False)
        return self.scores[chosen], self.ious[chosen]

    def _counts(self) -> list[int]:
        return sorted({count for count in RECALL_AT if count < self.selected} | {self.selected})

    def _levels(self) -> list[dict[str, Any]]:
        total = max(1, int(self.places.sum()))
        return [
            {
                "level": name,
                "features": int(row.sum()),
                "share": float(row.sum() / total),
                **{size: int(row[index]) for index, size in enumerate(SIZES)},
                "outside": int(row[OUTSIDE]),
            }
            for name, row in zip(LEVELS, self.places, strict=True)
        ]


class QueryStudy:
    """Takes picture after picture, and keeps eight bytes a feature."""

    def __init__(self) -> None:
        self._scores: list[NDArray[np.float32]] = []
        self._ious: list[NDArray[np.float32]] = []
        self._found: list[NDArray[np.int32]] = []
        self._found_any: list[NDArray[np.int32]] = []
        self._sizes: list[NDArray[np.int8]] = []
        self._places = np.zeros((len(LEVELS), len(SIZES) + 1), dtype=np.int64)
        self._selected = 0

    def add(self, record: Record, selected: Selected) -> None:
        """One picture with its truth, `record.labels` being of the same classes as `selected.labels`.

        A feature that lies in a crowd box of its class, by half of its area or more, and covers no box of its own, is
        not judged: nobody can say whether it is right.
        """
        truth = ~record.crowd
        shape = (len(selected.scores), len(truth))
        iou, share_inside = _overlaps(selected.boxes_xyxy_px, record.boxes_xyxy_px, shape)
        same = selected.labels[:, None] == record.labels[None]
        best = np.where(same & truth, iou, 0).max(axis=1, initial=0)
        in_crowd = np.any(same & record.crowd & (share_inside >= 0.5), axis=1)
        judged = ~in_crowd | (best >= 0.5)
        self._scores.append(selected.scores[judged].astype(np.float32))
        self._ious.append(best[judged].astype(np.float32))

        near = (iou >= 0.5)[:, truth]
        self._found.append(_first(near & same[:, truth]))
        self._found_any.append(_first(near))
        sizes = _sizes(record)
        self._sizes.append(sizes[truth])
        within = _size_around(selected.positions_px, record, sizes)
        np.add.at(self._places, (selected.levels, within), 1)
        self._selected = max(self._selected, len(selected.scores))

    def result(self) -> QueryAnalysis:
        """The figures over all pictures so far.

        Raises:
            UsageError: there was none.
        """
        if not self._scores:
            raise UsageError("No picture was added, so there is nothing to sum up.")
        return QueryAnalysis(
            scores=np.concatenate(self._scores),
            ious=np.concatenate(self._ious),
            found_at=np.concatenate(self._found),
            found_at_any_class=np.concatenate(self._found_any),
            sizes=np.concatenate(self._sizes),
            places=self._places.copy(),
            selected=self._selected,
            pictures=len(self._scores),
        )


def analyze_queries(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    class_names: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> QueryAnalysis:
    """Judges the features that a detector selects on annotated pictures; arguments as in `looks`.

    Raises:
        UsageError: the model's queries are learned, so none are selected; or as `looks`.
        DataError, ImageError: as `looks`.
    """
    model = watched_model(predictor)
    if not isinstance(model.query_selection, QuerySelection):
        raise UsageError(
            f"{model.config.name} has learned queries: it selects no features, so there is nothing to analyse. "
            "Give weights that were trained with query_source=encoder."
        )
    study = QueryStudy()
    stream = looks(predictor, records, class_names=class_names, batch_size=batch_size, progress=progress)
    for look in stream:
        study.add(look.record, selected_on(look))
    return study.result()


def selected_on(look: Look) -> Selected:
    """The selected features of one picture, boxes clipped to it as detections are."""
    inside, placement = look.inside, look.placement
    output = inside.output
    assert output.encoder_logits is not None and output.encoder_boxes_cxcywh is not None and inside.tokens is not None
    scores = sigmoid(output.encoder_logits[0])
    levels, centers = token_places(inside.tokens[0].numpy(), inside.shapes)
    return Selected(
        boxes_xyxy_px=placement.to_original(cxcywh_to_xyxy(output.encoder_boxes_cxcywh[0]).numpy()),
        scores=scores.max(axis=1),
        labels=scores.argmax(axis=1),
        levels=levels,
        positions_px=placement.to_original(np.concatenate([centers, centers], axis=1))[:, :2],
    )


def spearman(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float | None:
    """Rank correlation, −1 to 1, ties sharing their mean rank; None where one of the two is constant."""
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return None
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _overlaps(
    selected: NDArray[np.float32], truth: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """IoU of all pairs, and the share of each selected box that lies inside each true one."""
    if 0 in shape:
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    boxes = torch.from_numpy(selected)
    iou, union = box_iou_and_union(boxes[:, None], torch.from_numpy(truth)[None])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1e-9)
    return iou.numpy(), (iou * union / area[:, None]).numpy()


def _first(hits: NDArray[np.bool_]) -> NDArray[np.int32]:
    """For each column, the number (from 1) of the first row that is true."""
    if not len(hits):
        return np.full(hits.shape[1], _NEVER, np.int32)
    return np.where(hits.any(axis=0), hits.argmax(axis=0) + 1, _NEVER).astype(np.int32)


def _sizes(record: Record) -> NDArray[np.int8]:
    sides = record.boxes_xyxy_px[:, 2:] - record.boxes_xyxy_px[:, :2]
    areas = sides.astype(np.float64).prod(axis=1) if record.areas_px is None else record.areas_px
    return np.searchsorted(_SIZE_LIMITS_PX, areas).astype(np.int8)


def _size_around(positions: NDArray[np.float32], record: Record, sizes: NDArray[np.int8]) -> NDArray[np.int64]:
    """The size of the smallest object whose box each position lies in; `OUTSIDE` where there is none."""
    truth = ~record.crowd
    boxes, sizes = record.boxes_xyxy_px[truth], sizes[truth]
    inside = np.all((boxes[None, :, :2] <= positions[:, None]) & (positions[:, None] < boxes[None, :, 2:]), axis=2)
    return np.where(inside, sizes[None], OUTSIDE).min(axis=1, initial=OUTSIDE).astype(np.int64)


def _mean(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None
