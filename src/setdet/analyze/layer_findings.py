"""The decoder's layers as they are shown: charts that say what to see, a table, a folder with a page."""

import math
from pathlib import Path

from setdet.analyze.layers import MOVED_BELOW, LayerAnalysis, Movement, Stage
from setdet.analyze.pages import Table, write_analysis
from setdet.report.charts import Chart, Series, line_chart
from setdet.report.findings import Section
from setdet.report.measured import shown


def write_layers(folder: Path, analysis: LayerAnalysis, *, name: str, measured_on: str) -> Path:
    """Writes `layers.json`, `layers.html`, and every chart as SVG.

    Args:
        folder: made if it is not there.
        analysis: what to show.
        name: of the detector.
        measured_on: what to call the pictures.

    Returns:
        The page's path.

    Raises:
        WriteError: a file cannot be written.
    """
    return write_analysis(
        folder,
        "layers",
        {"detector": name, "measured_on": measured_on, **analysis.to_dict()},
        title="What each decoder layer adds",
        lead=f"{name} on {analysis.pictures} pictures with {analysis.boxes} boxes ({measured_on}). Every layer has "
        "heads of its own, so the model can be read out after any of them: --decoder-layers.",
        figures=[],
        sections=[_accuracy(analysis), _movement(analysis)],
        tables=[_table(analysis)],
    )


def _accuracy(analysis: LayerAnalysis) -> Section:
    stages = analysis.stages
    charts = [
        Chart(
            "accuracy",
            _enough(analysis),
            line_chart(
                [
                    Series("AP50", [(stage.layers, _number(stage.ap50)) for stage in stages]),
                    Series("AP", [(stage.layers, _number(stage.ap)) for stage in stages]),
                ],
                x_label="decoder layers (0: the selection itself)",
                y_label="AP",
            ),
        )
    ]
    timing = analysis.timing
    note = ""
    if timing is not None:
        timed = [(stage.latency_ms, _number(stage.ap)) for stage in stages if stage.latency_ms is not None]
        height, width = timing["image_size"]
        charts.append(
            Chart(
                "time",
                _price(stages),
                line_chart(
                    [Series("AP", sorted(timed))], x_label="milliseconds a picture", y_label="AP", from_zero=False
                ),
            )
        )
        note = (
            f" Times are medians of {timing['rounds']} rounds in which all depths take turns, one picture of "
            f"{height} × {width} at a time, from pixels to boxes, on {timing['device']} with "
            f"{timing['threads']} thread{'' if timing['threads'] == 1 else 's'}."
        )
    return Section(
        title="Accuracy and time",
        note="Where the curve is flat, later layers can be left out." + note,
        charts=tuple(charts),
    )


def _movement(analysis: LayerAnalysis) -> Section:
    stages = [stage for stage in analysis.stages if stage.layers]

    def chart(name: str, title: str, movements: list[tuple[int, Movement | None]]) -> Chart:
        lines = [
            Series(
                f"IoU with before < {limit:g}",
                [(layer, one.below[str(limit)]) for layer, one in movements if one is not None],
            )
            for limit in MOVED_BELOW
        ]
        svg = line_chart(lines, x_label="decoder layer", y_label="share of boxes", y_max=1.0)
        return Chart(name, title, svg)

    last = stages[-1]
    every = [(stage.layers, stage.moved) for stage in stages]
    matched = [(stage.layers, stage.moved_matched) for stage in stages]
    changed = [(stage.layers, stage.match_changed) for stage in analysis.stages if stage.match_changed is not None]
    charts = [
        chart("moved", f"All boxes: {_still(last.moved)}", every),
        chart("moved-matched", f"Boxes matched to an object: {_still(last.moved_matched)}", matched),
    ]
    if changed:
        _, share = changed[-1]
        charts.append(
            Chart(
                "matches",
                f"{share:.0%} of the objects change their query in the last layer",
                line_chart(
                    [Series("changed", [(float(at), value) for at, value in changed])],
                    x_label="decoder layer",
                    y_label="share of objects",
                    y_max=1.0,
                ),
            )
        )
    return Section(
        title="How boxes and assignments move",
        note="A box has moved if its IoU with itself one layer before is low; the first layer starts from the "
        "selection's box. Objects are assigned to queries as in training, by least cost; each change makes two queries "
        "learn the opposite of what the layer before taught them (DN-DETR, section 3.1).",
        charts=tuple(charts),
    )


def _enough(analysis: LayerAnalysis) -> str:
    best = max((stage.ap or 0.0 for stage in analysis.stages), default=0.0)
    if not best:
        return "AP is 0 at every layer"
    first = next(stage for stage in analysis.stages if (stage.ap or 0.0) >= 0.99 * best)
    last = analysis.stages[-1]
    if first is last:
        return f"Every layer adds to the AP: {shown(last.ap)} after {last.name}"
    return f"{first.name.capitalize()} already has the AP of the best, or nearly: {shown(first.ap)} of {best:.3f}"


def _price(stages: tuple[Stage, ...]) -> str:
    timed = [stage.latency_ms for stage in stages if stage.latency_ms is not None]
    if len(timed) < 2:
        return f"One layer takes {timed[0]:.1f} ms a picture" if timed else "Nothing was timed"
    each = (timed[-1] - timed[0]) / (len(timed) - 1)
    return f"A layer costs {each:.1f} ms of {timed[-1]:.1f} ms a picture"


def _still(movement: Movement | None) -> str:
    if movement is None:
        return "there are none"
    return f"{movement.below['0.9']:.0%} still move in the last layer (IoU < 0.9)"


def _table(analysis: LayerAnalysis) -> Table:
    rows = []
    for stage in analysis.stages:
        moved, matched = stage.moved, stage.moved_matched
        rows.append(
            (
                stage.name + (" (default)" if stage.layers == analysis.default_layers else ""),
                shown(stage.ap),
                shown(stage.ap50),
                "–" if stage.latency_ms is None else f"{stage.latency_ms:.1f}",
                *(shown(None if moved is None else moved.below[str(limit)]) for limit in MOVED_BELOW),
                shown(None if moved is None else moved.shift),
                shown(None if matched is None else matched.shift),
                shown(stage.match_changed),
            )
        )
    return Table(
        title="In figures",
        note="Shifts are the mean way of a box's centre in units of its sides, of all boxes and of those matched to an "
        "object. The last column is the share of the objects matched to another query than one stage before.",
        columns=(
            "read out at",
            "AP",
            "AP50",
            "ms",
            *(f"IoU < {limit:g}" for limit in MOVED_BELOW),
            "shift",
            "shift, matched",
            "matches changed",
        ),
        rows=tuple(rows),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
