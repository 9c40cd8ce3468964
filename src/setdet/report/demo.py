"""The page of the demo."""

from pathlib import Path

from setdet.report.measured import Measured
from setdet.report.page import write_page


def write_demo_report(
    path: Path, *, measured: Measured, weights: str, lead: str, commands: list[tuple[str, str]]
) -> Path:
    """Writes the demo's page.

    Args:
        path: of the page, which is returned.
        measured: what came out.
        weights: what to call the detector.
        lead: what was done, in one or two sentences.
        commands: what to do next: (command, comment).
    """
    boxes = sum(len(record.labels) for record in measured.records)
    return write_page(
        path,
        "demo.html",
        title=f"What {weights} finds on {len(measured.records)} steel surfaces",
        lead=lead,
        figures=[*measured.figures(), (str(boxes), f"defects on {len(measured.records)} pictures")],
        classes=measured.classes(),
        matrix=measured.matrix(),
        pictures=measured.pictures(),
        confidence=measured.confidence,
        commands=commands,
    )
