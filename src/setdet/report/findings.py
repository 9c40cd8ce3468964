"""What the page of a run shows of a detector's results: whoever looks into them fills this in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from setdet.data.schema import Record
from setdet.predict import Predictor
from setdet.report.charts import Chart
from setdet.report.measured import Measured


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        title: its heading.
        note: what to make of it, in a sentence or two.
        charts: side by side.
        terms: (name, colour as RGB, meaning) of what they show, for those who don't know it.
    """

    title: str
    note: str
    charts: tuple[Chart, ...]
    terms: tuple[tuple[str, tuple[int, int, int], str], ...] = ()


@dataclass(frozen=True)
class Findings:
    """A detector's results on some pictures, ready to be shown.

    Attributes:
        measured: figures, table of classes, confusion.
        values: every figure as plain values, by analysis.
        sections: what else there is to see.
        worst: drawn pictures with the most mistakes: "address" and "caption" of each.
    """

    measured: Measured
    values: dict[str, Any]
    sections: tuple[Section, ...]
    worst: tuple[dict[str, str], ...]


Look = Callable[[Predictor, Sequence[Record]], Findings]
"""Measures a predictor on records, whose labels are its classes."""
