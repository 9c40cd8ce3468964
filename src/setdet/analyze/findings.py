"""The error analysis as it is shown: charts that say what to see, drawn pictures, a folder of them with a page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.analyze.errors import CONFIDENCES, ErrorAnalysis
from setdet.analyze.kinds import KINDS, MISSED, RIGHT
from setdet.analyze.ledger import Kind
from setdet.analyze.pages import write_charts
from setdet.analyze.pictures import draw_errors
from setdet.analyze.strata import GroupMetrics
from setdet.analyze.tide import WRONG_KINDS
from setdet.data.writing import write_atomically
from setdet.draw import printable
from setdet.images import read_image
from setdet.metrics.curves import RECALLS
from setdet.report.bars import Bar, bar_chart, reliability_chart
from setdet.report.charts import MOST_LINES, Chart, Series, line_chart
from setdet.report.findings import Findings, Section
from setdet.report.measured import shown
from setdet.report.page import data_uri, write_page, write_values
from setdet.report.sheet import encode

_WORST = 12
_LONGEST_STEM = 100  # bytes, of the name that a drawing has after its picture
_SMALLEST_GROUP = 10  # boxes; the AP of fewer is not called the weakest


def error_findings(analysis: ErrorAnalysis) -> Findings:
    """The errors, for the page of a run.

    Raises:
        ImageError: a picture cannot be read.
    """
    drawn = [(draw_picture(analysis, index), caption(analysis, index)) for index in analysis.worst(_WORST)]
    worst = tuple({"address": data_uri(picture), "caption": text} for picture, text in drawn)
    return Findings(
        measured=analysis.measured, values={"errors": analysis.to_dict()}, sections=sections(analysis), worst=worst
    )


def write_errors(folder: Path, analysis: ErrorAnalysis, *, title: str, lead: str, worst: int = _WORST) -> Path:
    """Writes `errors.json`, `errors.html`, every chart as SVG, the worst pictures and, if chosen, `thresholds.json`.

    Args:
        folder: made if it is not there.
        analysis: what to show.
        title, lead: of the page: whose errors, and on which pictures.
        worst: how many pictures with the most mistakes to draw, at most.

    Returns:
        The page's path.

    Raises:
        ImageError: a picture cannot be read.
        WriteError: a file cannot be written.
    """
    values = analysis.to_dict()
    parts = sections(analysis)
    values["worst"], items = [], []
    for rank, index in enumerate(analysis.worst(worst), start=1):
        drawn, errors = draw_picture(analysis, index), analysis.pictures[index]
        stem = os.fsdecode(os.fsencode(analysis.records[index].image.stem)[:_LONGEST_STEM])
        place = Path("worst") / f"{rank:02d}-{stem}.png"
        write_atomically(folder / place, encode(drawn))
        items.append({"address": data_uri(drawn), "caption": caption(analysis, index)})
        kinds = {KINDS[kind].key: count for kind, count in errors.kinds.items()} | {MISSED.key: errors.missed}
        entry = {"image": str(analysis.records[index].image), "picture": place.as_posix(), "boxes": errors.boxes}
        values["worst"].append({**entry, "right": errors.right, "errors": kinds})
    write_values(folder / "errors.json", values)
    write_charts(folder, [chart for part in parts for chart in part.charts])
    if analysis.chosen:
        write_values(folder / "thresholds.json", analysis.chosen.to_dict())
    measured = analysis.measured
    return write_page(
        folder / "errors.html",
        "errors.html",
        title=title,
        lead=lead,
        figures=measured.figures(),
        sections=parts,
        worst=items,
        matrix=measured.matrix(),
        classes=measured.classes(),
        shown_from=shown_from(analysis),
        chosen=analysis.chosen,
    )


def draw_picture(analysis: ErrorAnalysis, index: int) -> NDArray[np.uint8]:
    """One picture, truth beside what was found, uint8 RGB.

    Raises:
        ImageError: it cannot be read.
    """
    record = analysis.records[index]
    return draw_errors(
        read_image(record.image),
        record,
        analysis.measured.detections[index],
        kinds=[Kind(kind) for kind in analysis.entries.kind[analysis.of_picture(index)]],
        missed=analysis.unfound[analysis.truths_of(index)],
        title=f"{printable(record.image.stem, index)}: {analysis.pictures[index].summary()}",
    )


def caption(analysis: ErrorAnalysis, index: int) -> str:
    """A picture's name and what happened on it."""
    return f"{analysis.records[index].image.name}: {analysis.pictures[index].summary()}"


def shown_from(analysis: ErrorAnalysis) -> str:
    """From which scores up detections are shown, as in "from a score of 0.42 up"."""
    if analysis.chosen:
        return "from each class's chosen score up"
    return f"from a score of {analysis.measured.confidence:.3g} up, where the mean F1 over the classes is best"


def sections(analysis: ErrorAnalysis) -> tuple[Section, ...]:
    """What the mistakes cost, precision and recall, calibration, size and shape."""
    return (_cost(analysis), _curves(analysis), _scores(analysis), _groups(analysis))


def _cost(analysis: ErrorAnalysis) -> Section:
    costs, counts = analysis.costs, analysis.counts()
    named = [(KINDS[kind], costs.kinds[kind]) for kind in WRONG_KINDS] + [(MISSED, costs.missed)]
    named.sort(key=lambda pair: -(pair[1] or 0.0))
    bars = [Bar(kind.name, cost, _boxes(counts[kind.key]["shown"]), kind.color) for kind, cost in named]
    (first, most), positives, negatives = named[0], costs.false_positives, costs.false_negatives
    sides = [
        Bar("wrong detections", positives, color=KINDS[Kind.BACKGROUND].color),
        Bar("boxes not found", negatives, color=MISSED.color),
    ]
    if not most:
        what = "No kind of error costs any AP50"
    else:
        what = f"{first.name.capitalize()} costs the most: without it, AP50 would be {shown(most)} higher"
    sums = [(positives or 0.0, "wrong detections"), (negatives or 0.0, "boxes that are not found")]
    (heavy, more), (_, less) = sorted(sums, reverse=True)
    terms = (RIGHT, *(KINDS[kind] for kind in WRONG_KINDS), MISSED)
    return Section(
        title="What the mistakes cost",
        note="The AP50 to be won by mending one kind of error and nothing else (TIDE, Bolya et al. 2020), over all "
        "scores, as AP goes; costs overlap, so they need not add up. The counts are of what is shown, "
        f"{shown_from(analysis)}.",
        charts=(
            Chart("cost", what, bar_chart(bars, label="AP50 that each kind of error costs", signed=True)),
            Chart(
                "sides",
                f"{more.capitalize()} cost more AP50 than {less}" if heavy else "Nothing is invented, nothing is lost",
                bar_chart(sides, label="AP50 that all wrong detections and all boxes not found cost", signed=True),
            ),
        ),
        terms=tuple((one.name, one.color, one.meaning) for one in terms),
    )


def _curves(analysis: ErrorAnalysis) -> Section:
    precision, f1 = analysis.precision_curves(), analysis.f1_curves()
    weakest = [row["name"] for row in analysis.measured.classes() if row["boxes"]][:MOST_LINES]
    some = "" if len(precision["per_class"]) <= MOST_LINES else f", and of the {MOST_LINES} weakest classes"

    def lines(along: Sequence[float], values: dict[str, Any]) -> list[Series]:
        drawn = [Series(name, list(zip(along, values["per_class"][name], strict=True))) for name in sorted(weakest)]
        if values["mean"]:
            drawn.append(Series("mean", list(zip(along, values["mean"], strict=True)), style="strong"))
        return drawn

    best = analysis.best
    at_best = "" if best is None else f": best, {best.f1:.2f}, from a score of {best.confidence:.3g} up"
    return Section(
        title="Precision, recall, and which score to ask for",
        note="Along a curve to the right, more is found and more of it is wrong. Where F1 is flat around its top, the "
        "choice of the score matters little; where classes have their tops far apart, give each a score of its own.",
        charts=(
            Chart(
                "precision-recall",
                f"Precision over recall{some}: the mean's area is AP50, {shown(analysis.costs.ap50)}",
                line_chart(
                    lines(RECALLS.tolist(), precision), x_label="recall", y_label="precision", y_max=1.0, markers=False
                ),
            ),
            Chart(
                "f1",
                f"F1 over the lowest score{some}{at_best}",
                line_chart(
                    lines(CONFIDENCES.tolist(), f1), x_label="lowest score", y_label="F1", y_max=1.0, markers=False
                ),
            ),
        ),
    )


def _scores(analysis: ErrorAnalysis) -> Section:
    every, few = analysis.calibration, analysis.calibration_shown
    if few.excess is None or few.error is None:
        what = "Nothing is found from the lowest score up"
    elif abs(few.excess) < 0.02:
        what = f"What is shown is right as often as its scores say; expected calibration error {shown(few.error)}"
    else:
        way = "less" if few.excess > 0 else "more"
        what = (
            f"What is shown is right {way} often than its scores say, by {abs(few.excess):.2f}; "
            f"expected calibration error {shown(few.error)}"
        )
    return Section(
        title="Whether scores mean what they say",
        note="Of the detections with a score near 0.7, seven in ten should be right at IoU 0.5: bars then end on the "
        "diagonal. Below it, scores promise too much. Over each bar, how many detections it stands for. The title is "
        f"about what is shown; over all scores, most of them near 0, the error is {shown(every.error)}.",
        charts=(Chart("calibration", what, reliability_chart(every)),),
    )


def _groups(analysis: ErrorAnalysis) -> Section:
    def chart(name: str, groups: Sequence[GroupMetrics], what: str) -> Chart:
        bars = [Bar(one.group.name, one.ap50, _boxes(one.boxes)) for one in groups]
        rated = [one for one in groups if one.ap50 is not None and one.boxes >= _SMALLEST_GROUP]
        title = f"AP50 by {what}"
        if len(rated) > 1:
            weakest = min(rated, key=lambda one: one.ap50 or 0.0)
            title += f": weakest on boxes that are {weakest.group.name.partition(',')[0]}"
        return Chart(name, title, bar_chart(bars, label=f"AP50 by {what}", full=1.0))

    return Section(
        title="Which boxes are hard",
        note="AP50 of the boxes of one size or shape alone; AP by size is COCO's. Groups with few boxes are rough.",
        charts=(
            chart("sizes", analysis.sizes, "size"),
            chart("shapes", analysis.shapes, "shape (width : height)"),
        ),
    )


def _boxes(count: int) -> str:
    return f"{count} box{'' if count == 1 else 'es'}"
