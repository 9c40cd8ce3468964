"""What a detector gets wrong, what that costs, and whether its scores can be trusted."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.analyze.kinds import KINDS, MISSED
from setdet.analyze.ledger import Entries, Kind, Ledger
from setdet.analyze.strata import GroupMetrics, by_shape, by_size, class_aps, mean
from setdet.analyze.thresholds import ChosenThresholds
from setdet.analyze.tide import WRONG_KINDS, Costs, costs
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.evaluate import match_classes, results
from setdet.metrics.calibration import Calibration, calibration
from setdet.metrics.curves import RECALLS, ClassCurve, OperatingPoint, operating_point
from setdet.predict import Predictor
from setdet.report.measured import Measured
from setdet.thresholds import lowest_scores

# Confidences that curves of F1 are drawn over.
CONFIDENCES: NDArray[np.float64] = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class PictureErrors:
    """What happened on one picture, from the chosen scores up.

    Attributes:
        right: true boxes found.
        boxes: true boxes, crowds left out.
        kinds: wrong detections of each kind.
        missed: true boxes that nothing found or came near.
    """

    right: int
    boxes: int
    kinds: dict[Kind, int]
    missed: int

    @property
    def mistakes(self) -> int:
        """Wrong detections and missed boxes."""
        return sum(self.kinds.values()) + self.missed

    def summary(self) -> str:
        """As in "2 of 3 found; 1 wrong class, 2 background"."""
        parts = [f"{count} {KINDS[kind].name}" for kind, count in self.kinds.items() if count]
        parts += [f"{self.missed} {MISSED.name}"] if self.missed else []
        return f"{self.right} of {self.boxes} found" + (f"; {', '.join(parts)}" if parts else "")


@dataclass(frozen=True)
class ErrorAnalysis:
    """The figures; what is computed late is computed once.

    Attributes:
        entries: every detection and every true box.
        records: the pictures, labels as the detector's.
        chosen: thresholds that were chosen elsewhere; None: everything is shown from one score up, that of the best
            mean F1 on these pictures.
    """

    entries: Entries
    records: tuple[Record, ...]
    chosen: ChosenThresholds | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.entries.class_names

    @cached_property
    def curves(self) -> tuple[ClassCurve, ...]:
        """Of every class, all scores, as `Evaluation.curves`."""
        return tuple(self.entries.curve(label, all_scores=True) for label in range(len(self.class_names)))

    @cached_property
    def best(self) -> OperatingPoint | None:
        """The point of the best mean F1; None without any box."""
        return operating_point(self.curves)

    @cached_property
    def lowest(self) -> NDArray[np.float32]:
        """(classes,) the score from which up detections are shown."""
        alone = 0.5 if self.best is None else self.best.confidence
        return lowest_scores(self.chosen.thresholds if self.chosen else alone, self.class_names)

    @cached_property
    def costs(self) -> Costs:
        """What each kind of error costs."""
        return costs(self.entries)

    @cached_property
    def sizes(self) -> tuple[GroupMetrics, ...]:
        """AP by size."""
        return by_size(self.entries)

    @cached_property
    def shapes(self) -> tuple[GroupMetrics, ...]:
        """AP by width through height."""
        return by_shape(self.entries)

    @cached_property
    def calibration(self) -> Calibration:
        """Of all detections that AP counts."""
        counted = self.entries.kind != Kind.LEFT_OUT
        return calibration(self.entries.score[counted], self.entries.kind[counted] == Kind.RIGHT)

    @cached_property
    def calibration_shown(self) -> Calibration:
        """Of those that are shown: almost all the others have scores near 0, and are wrong as they say."""
        shown = self.shown[self.entries.kind[self.shown] != Kind.LEFT_OUT]
        return calibration(self.entries.score[shown], self.entries.kind[shown] == Kind.RIGHT)

    @cached_property
    def shown(self) -> NDArray[np.intp]:
        """Indices of the entries from the lowest scores up, picture after picture, best first."""
        kept = np.flatnonzero(self.entries.score >= self.lowest[self.entries.label])
        return kept[np.argsort(self.entries.picture[kept], kind="stable")]

    @cached_property
    def unfound(self) -> NDArray[np.bool_]:
        """(true boxes,) those that nothing shown finds."""
        return self.entries.unfound(self.shown)

    @cached_property
    def missed(self) -> NDArray[np.bool_]:
        """(true boxes,) those that nothing shown finds or comes near."""
        return self.entries.missed(self.shown)

    def of_picture(self, index: int) -> NDArray[np.intp]:
        """The indices in `shown` that are on one picture."""
        first, last = np.searchsorted(self._shown_pictures, [index, index + 1])
        return self.shown[first:last]

    def truths_of(self, index: int) -> slice:
        """Where the true boxes of one picture are."""
        first, last = np.searchsorted(self.entries.truth_picture, [index, index + 1])
        return slice(int(first), int(last))

    @cached_property
    def _shown_pictures(self) -> NDArray[np.int32]:
        return self.entries.picture[self.shown]

    @cached_property
    def pictures(self) -> tuple[PictureErrors, ...]:
        """What happened on each picture."""
        rows = []
        for index in range(self.entries.pictures):
            kinds = np.bincount(self.entries.kind[self.of_picture(index)], minlength=len(Kind)).tolist()
            truths = self.truths_of(index)
            rows.append(
                PictureErrors(
                    right=kinds[Kind.RIGHT],
                    boxes=int(np.count_nonzero(~self.entries.truth_crowd[truths])),
                    kinds={kind: kinds[kind] for kind in WRONG_KINDS},
                    missed=int(np.count_nonzero(self.missed[truths])),
                )
            )
        return tuple(rows)

    def worst(self, count: int) -> list[int]:
        """Indices of the pictures with the most mistakes, at most `count`, pictures without any left out."""
        order = sorted(range(len(self.pictures)), key=lambda index: -self.pictures[index].mistakes)
        return [index for index in order[:count] if self.pictures[index].mistakes]

    @cached_property
    def measured(self) -> Measured:
        """The headline figures, and what is shown on each picture."""
        return Measured(
            values=self._values(),
            records=self.records,
            detections=tuple(self._detections(index) for index in range(self.entries.pictures)),
            class_names=self.class_names,
        )

    def _detections(self, index: int) -> Detections:
        mine = self.of_picture(index)
        height, width = self.entries.image_sizes[index].tolist()
        return Detections(
            boxes_xyxy_px=self.entries.boxes_xyxy_px[mine],
            scores=self.entries.score[mine],
            labels=self.entries.label[mine].astype(np.int64),
            class_names=self.class_names,
            image_size=(height, width),
            source=str(self.records[index].image),
        )

    def _values(self) -> dict[str, Any]:
        """As `Evaluation.to_dict()`, what pages show of it; precision, recall and F1 from the lowest scores up."""
        rows: list[dict[str, Any]] = []
        for curve, (ap, ap50), lowest in zip(self.curves, class_aps(self.entries), self.lowest, strict=True):
            point = operating_point([curve], float(lowest))
            rows.append(
                {
                    "name": curve.name,
                    "ap": ap,
                    "ap50": ap50,
                    "boxes": curve.boxes,
                    "precision": point.precision if point else None,
                    "recall": point.recall if point else None,
                    "f1": point.f1 if point else None,
                    "from_score": float(lowest),
                }
            )
        return {
            **{key: mean([row[key] for row in rows]) for key in ("ap", "ap50", "precision", "recall", "f1")},
            "confidence": 0.5 if self.best is None else self.best.confidence,
            "per_class": rows,
            "images": self.entries.pictures,
            "boxes": sum(curve.boxes for curve in self.curves),
        }

    def counts(self) -> dict[str, dict[str, int]]:
        """Of each kind by its key: "shown" from the lowest scores up, "all" whatever the score."""
        every = np.bincount(self.entries.kind, minlength=len(Kind)).tolist()
        shown = np.bincount(self.entries.kind[self.shown], minlength=len(Kind)).tolist()
        found = {KINDS[kind].key: {"shown": shown[kind], "all": every[kind]} for kind in WRONG_KINDS}
        missed = {"shown": int(self.missed.sum()), "all": int(self.entries.missed().sum())}
        return {**found, MISSED.key: missed}

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain values for JSON; None where there was nothing to measure."""
        cost = {KINDS[kind].key: self.costs.kinds[kind] for kind in WRONG_KINDS} | {MISSED.key: self.costs.missed}
        return {
            **self.measured.values,
            "errors": {key: {"cost_ap50": cost[key], **count} for key, count in self.counts().items()},
            "cost_of_all_false_positives": self.costs.false_positives,
            "cost_of_all_false_negatives": self.costs.false_negatives,
            "confusion": {
                "rows_true": [*self.class_names, None],
                "columns_found": [*self.class_names, None],
                "counts": self.measured.confusion.tolist(),
            },
            "precision_over_recall": {"recall": RECALLS.tolist(), **self.precision_curves()},
            "f1_over_confidence": {"confidence": CONFIDENCES.tolist(), **self.f1_curves()},
            "calibration": {"all": asdict(self.calibration), "shown": asdict(self.calibration_shown)},
            "by_size": [_group(one) for one in self.sizes],
            "by_width_through_height": [_group(one) for one in self.shapes],
            "thresholds": self.chosen.to_dict() if self.chosen else None,
        }

    def precision_curves(self) -> dict[str, Any]:
        """Precision at `RECALLS`: the "mean" over classes that have boxes, and "per_class" by name."""
        curves = [curve for curve in self._counted_curves if curve.boxes]
        return _with_mean({curve.name: curve.precision_at(RECALLS) for curve in curves})

    def f1_curves(self) -> dict[str, Any]:
        """F1 at `CONFIDENCES`, as `precision_curves`."""
        values = {}
        for curve in self.curves:
            if curve.boxes:
                found, kept = curve.counts(CONFIDENCES)
                values[curve.name] = 2 * found / (kept + curve.boxes)
        return _with_mean(values)

    @cached_property
    def _counted_curves(self) -> tuple[ClassCurve, ...]:
        """Those whose area is AP50."""
        return tuple(self.entries.curve(label) for label in range(len(self.class_names)))


def analyze_errors(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    class_names: Sequence[str] | None = None,
    chosen: ChosenThresholds | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> ErrorAnalysis:
    """Predicts every record's picture and takes stock of what is wrong, in some 70 bytes a detection.

    Args:
        predictor: with its class names, on any engine.
        records: the truth; crowd boxes are ignore regions, as in `evaluate`.
        class_names: of the records' labels, matched to the predictor's by name; None: they are the predictor's.
        chosen: thresholds to show detections from, chosen on other pictures.
        batch_size: pictures that go through the network at once.
        progress: show a bar, on stderr.

    Raises:
        DataError: there is nothing to measure on, the data has classes that the predictor doesn't know, or a picture
            has another size than its annotations declare.
        UsageError: a label is beyond the predictor's classes.
        ImageError: a picture cannot be read.
    """
    if class_names is not None:
        records = match_classes(records, class_names, predictor.class_names)
    ledger = Ledger(predictor.class_names)
    for record, found in results(predictor, records, batch_size=batch_size, progress=progress, doing="looking"):
        ledger.add(record, found)
    return ErrorAnalysis(entries=ledger.entries(), records=tuple(records), chosen=chosen)


def _group(one: GroupMetrics) -> dict[str, Any]:
    return {
        "name": one.group.name,
        "low": one.group.low,
        "high": None if np.isinf(one.group.high) else one.group.high,
        "boxes": one.boxes,
        "ap": one.ap,
        "ap50": one.ap50,
    }


def _with_mean(values: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    average = np.mean(list(values.values()), axis=0).tolist() if values else None
    return {"mean": average, "per_class": {name: curve.tolist() for name, curve in values.items()}}
