"""What pages say of a detector's results on a set of pictures: figures, table of classes, confusion, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.evaluate import evaluate
from setdet.images import read_image
from setdet.predict import Predictor
from setdet.report.page import data_uri
from setdet.report.pairing import confusion_matrix, pair
from setdet.report.sheet import draw_found_and_true


@dataclass(frozen=True)
class Measured:
    """A detector's results on some pictures.

    Attributes:
        values: the measures, as `Evaluation.to_dict()` gives them.
        records: the pictures and their true boxes.
        detections: what was found on each, from the score of best mean F1 up.
        class_names: of the records' labels and the detections'.
    """

    values: dict[str, Any]
    records: tuple[Record, ...]
    detections: tuple[Detections, ...]
    class_names: tuple[str, ...]

    @property
    def confidence(self) -> float:
        """The lowest score of the detections."""
        return float(self.values["confidence"])

    def figures(self) -> list[tuple[str, str]]:
        """The headline measures, (value, what it is)."""
        names = {
            "ap50": "AP50 (IoU 0.5)",
            "ap": "AP (IoU 0.5 to 0.95)",
            "precision": "precision",
            "recall": "recall",
        }
        return [(shown(self.values[key]), label) for key, label in names.items()]

    def classes(self) -> list[dict[str, Any]]:
        """A row a class, weakest first; classes without a box last."""
        return sorted(self.values["per_class"], key=lambda row: (not row["boxes"], row["ap50"] or 0))

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Counts of boxes, see `confusion_matrix`."""
        return confusion_matrix(self.records, self.detections, num_classes=len(self.class_names))

    def matrix(self) -> dict[str, Any]:
        """The confusion matrix for a page: each row's cells with their text, and how strongly to colour them."""
        nothing, counts = len(self.class_names), self.confusion
        totals = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
        rows = [
            {
                "name": name,
                "cells": [
                    {
                        # Nothing there and nothing found has no count.
                        "text": "" if row == column == nothing else str(count) if count else "·",
                        "strength": 0.12 + 0.6 * share if count else None,
                        "right": row == column,
                    }
                    for column, (count, share) in enumerate(zip(counts[row], shares[row], strict=True))
                ],
            }
            for row, name in enumerate((*self.class_names, "(nothing there)"))
        ]
        return {"columns": (*self.class_names, "(not found)"), "rows": rows}

    def pictures(self) -> list[dict[str, str]]:
        """Drawn pictures with their captions, for a page."""
        items = []
        for index, (record, found) in enumerate(zip(self.records, self.detections, strict=True)):
            drawn = draw_found_and_true(read_image(record.image), found, record)
            items.append({"address": data_uri(drawn), "caption": f"{record.image.name}: {self.caption(index)}"})
        return items

    def caption(self, index: int) -> str:
        """What happened on a picture, as in "2 of 3 found, 1 invented"."""
        record = self.records[index]
        pairing = pair(record, self.detections[index])
        parts = [f"{pairing.right} of {int((~record.crowd).sum())} found"]
        if pairing.wrong_class:
            parts.append(f"{pairing.wrong_class} of the wrong class")
        if pairing.spurious:
            parts.append(f"{len(pairing.spurious)} invented")
        return ", ".join(parts)


def measure(predictor: Predictor, records: Sequence[Record]) -> Measured:
    """Evaluates, and keeps what was found on every picture.

    Args:
        predictor: whose classes are those of the records' labels.
        records: what to measure on.

    Raises:
        DataError: there is no record.
        ImageError: a picture cannot be read.
    """
    found: list[Detections] = []
    values = evaluate(predictor, records, on_result=lambda _, detections: found.append(detections)).to_dict()
    if values["confidence"] is None:  # no picture has a box
        values["confidence"] = 0.5
    return Measured(
        values=values,
        records=tuple(records),
        detections=tuple(detections.above(float(values["confidence"])) for detections in found),
        class_names=predictor.class_names,
    )


def shown(value: float | None) -> str:
    """A measure with three decimals; a dash where there is none."""
    return "–" if value is None or not value >= 0 else f"{value:.3f}"
