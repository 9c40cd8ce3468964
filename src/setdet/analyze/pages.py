"""An analysis as a folder: its figures as JSON, its charts as SVG files, and a page with all of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setdet.data.writing import write_atomically
from setdet.report.charts import Chart
from setdet.report.findings import Section
from setdet.report.page import write_page, write_values


@dataclass(frozen=True)
class Table:
    """A table of a page, its cells as they are shown.

    Attributes:
        title: its heading.
        note: what to make of it.
        columns: names; the first one is that of the rows' names.
        rows: cells.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_analysis(
    folder: Path,
    name: str,
    values: dict[str, Any],
    *,
    title: str,
    lead: str,
    figures: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    tables: Sequence[Table],
) -> Path:
    """Writes `NAME.json`, `NAME.html` and every chart.

    Args:
        folder: made if it is not there.
        name: of the analysis.
        values: every figure, as plain values.
        title, lead: of the page.
        figures: headline figures, (value, what it is).
        sections, tables: what the page shows.

    Returns:
        The page's path.

    Raises:
        WriteError: a file cannot be written.
    """
    write_values(folder / f"{name}.json", values)
    write_charts(folder, [chart for section in sections for chart in section.charts])
    return write_page(
        folder / f"{name}.html",
        "analysis.html",
        title=title,
        lead=lead,
        figures=figures,
        sections=sections,
        tables=tables,
    )


def write_charts(folder: Path, charts: Sequence[Chart]) -> None:
    """Writes each chart as an SVG file that stands alone.

    Raises:
        WriteError: a file cannot be written.
    """
    for chart in charts:
        write_atomically(folder / f"{chart.name}.svg", chart.file())
