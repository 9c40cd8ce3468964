"""The selected features as they are shown: charts that say what to see, a table, a folder with a page."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setdet.analyze.pages import Table, write_analysis
from setdet.analyze.queries import LEVELS, SIZES, QueryAnalysis, spearman
from setdet.report.bars import Bar, bar_chart, stacked_chart
from setdet.report.charts import Chart, Series, line_chart
from setdet.report.findings import Section
from setdet.report.measured import shown
from setdet.report.scatter import Cloud, scatter_chart

DOTS = 2000  # of each detector at most, so that a page of six stays below two megabytes
_SEED = 0


def write_queries(folder: Path, analyses: Mapping[str, QueryAnalysis], *, measured_on: str) -> Path:
    """Writes `queries.json`, `queries.html`, and every chart as SVG.

    Args:
        folder: made if it is not there.
        analyses: of each detector, by a name to show; six at most.
        measured_on: what to call the pictures.

    Returns:
        The page's path.

    Raises:
        WriteError: a file cannot be written.
    """
    first = next(iter(analyses.values()))
    drawn = {name: min(DOTS, len(one.scores)) for name, one in analyses.items()}
    values = {
        "measured_on": measured_on,
        "scatter": {"dots": drawn, "seed": _SEED},
        "detectors": {name: one.to_dict() for name, one in analyses.items()},
    }
    return write_analysis(
        folder,
        "queries",
        values,
        title="Do the best-scored features have the best boxes?",
        lead=f"What the encoder selects as queries: {', '.join(analyses)}, on {first.pictures} pictures with "
        f"{len(first.found_at)} boxes ({measured_on}).",
        figures=_headlines(first) if len(analyses) == 1 else [],
        sections=sections(analyses),
        tables=[_table(analyses)],
    )


def sections(analyses: Mapping[str, QueryAnalysis]) -> tuple[Section, ...]:
    """Score and place, what the selected cover, where they lie."""
    return (_scores(analyses), _recall(analyses), _places(analyses))


def _headlines(analysis: QueryAnalysis) -> list[tuple[str, str]]:
    values = analysis.to_dict()
    return [
        (shown(values["prop_cls"]), "of the selected have a score > 0.5"),
        (shown(values["prop_both"]), "have a score and an IoU > 0.5"),
        (_signed(values["spearman"]), "rank correlation of score and IoU"),
        (shown(values["calibration_error"]), "calibration error of score as IoU"),
        (shown(values["recall"][-1]["recall"]), f"of the boxes are covered by the best {analysis.selected}"),
    ]


def _scores(analyses: Mapping[str, QueryAnalysis]) -> Section:
    clouds = []
    for name, one in analyses.items():
        x, y = one.sample(DOTS, seed=_SEED)
        clouds.append(Cloud(name=name, x=x, y=y, all_x=one.scores, all_y=one.ious))
    lines = [
        Series(
            name,
            [
                (bin_.score, bin_.right)
                for bin_ in one.calibration.bins
                if bin_.score is not None and bin_.right is not None
            ],
        )
        for name, one in analyses.items()
    ]
    diagonal = Series("score = IoU", [(0.0, 0.0), (1.0, 1.0)], style="reference")
    some = [f"{min(DOTS, len(one.scores))} of {len(one.scores)}" for one in analyses.values()]
    return Section(
        title="Score and place",
        note="Each dot is a selected feature: its best class score, and the IoU of its box with the nearest object of "
        "that class (RT-DETR paper, figure 6). Good ones lie to the upper right, and near the dashed line, where the "
        f"score is the IoU. Drawn are {', '.join(some)} features, evenly sampled with seed {_SEED}; the histograms, "
        "under a square root, and all figures are of every one.",
        charts=(
            Chart(
                "score-iou",
                _ranking(analyses),
                scatter_chart(clouds, x_label="class score", y_label="IoU with the nearest object of the class"),
            ),
            Chart(
                "calibration",
                _promise(analyses),
                line_chart([*lines, diagonal], x_label="mean score", y_label="mean IoU", y_max=1.0),
            ),
        ),
    )


def _ranking(analyses: Mapping[str, QueryAnalysis]) -> str:
    found = {name: spearman(one.scores, one.ious) for name, one in analyses.items()}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return "Scores or IoUs are all the same: nothing can be ranked"
    name, best = max(known.items(), key=lambda item: item[1])
    if len(analyses) > 1:
        return f"Score and IoU go together most in {name}: rank correlation {best:.2f}"
    how = "go together" if best >= 0.6 else "go together loosely" if best >= 0.3 else "hardly go together"
    return f"Score and IoU {how}: rank correlation {best:.2f}"


def _promise(analyses: Mapping[str, QueryAnalysis]) -> str:
    errors = {name: one.calibration.error for name, one in analyses.items()}
    known = {name: value for name, value in errors.items() if value is not None}
    if not known:
        return "Nothing was selected"
    name, least = min(known.items(), key=lambda item: item[1])
    if len(analyses) > 1:
        return f"Scores of {name} are nearest to the IoU: {least:.3f} off on average"
    excess = analyses[name].calibration.excess or 0.0
    way = "more than" if excess > 0 else "less than"
    return f"Scores promise {abs(excess):.3f} {way} the IoU keeps; calibration error {least:.3f}"


def _recall(analyses: Mapping[str, QueryAnalysis]) -> Section:
    def line(name: str, found_at: NDArray[np.int32], selected: int) -> Series:
        reached = np.searchsorted(np.sort(found_at), np.arange(1, selected + 1), side="right") / max(1, len(found_at))
        counts = sorted({*range(1, min(selected, 20) + 1), *range(20, selected, 10), selected})
        return Series(name, [(float(count), float(reached[count - 1])) for count in counts] if len(found_at) else [])

    if len(analyses) == 1:
        (one,) = analyses.values()
        lines = [
            line("class right", one.found_at, one.selected),
            line("any class", one.found_at_any_class, one.selected),
        ]
    else:
        lines = [line(name, one.found_at, one.selected) for name, one in analyses.items()]
    bars = [
        Bar(
            f"{name}, {size}" if len(analyses) > 1 else size,
            part["recall"],
            f"{part['boxes']} boxes",
            series=series,
        )
        for series, (name, one) in enumerate(analyses.items())
        for size, part in one.to_dict()["recall_by_size"].items()
    ]
    return Section(
        title="What the selected cover",
        note="Share of the true boxes that one of the best K features has at IoU 0.5 and with the right class. What "
        "is not covered here, the decoder has to find from afar. Sizes are COCO's: small is under 32² pixels, large "
        "over 96².",
        charts=(
            Chart(
                "recall",
                _enough(analyses),
                line_chart(lines, x_label="best K features", y_label="recall", y_max=1.0, markers=False),
            ),
            Chart("recall-by-size", _hardest(analyses), bar_chart(bars, label="recall", full=1.0)),
        ),
    )


def _enough(analyses: Mapping[str, QueryAnalysis]) -> str:
    full_of = {name: one.recall_at(one.selected)["recall"] or 0.0 for name, one in analyses.items()}
    name, full = max(full_of.items(), key=lambda item: item[1])
    one = analyses[name]
    if not full:
        return "No box is covered by a selected feature"
    enough = next(count for count in range(1, one.selected + 1) if np.mean(one.found_at <= count) >= 0.95 * full)
    whose = f"{name}: the" if len(analyses) > 1 else "The"
    return (
        f"{whose} best {enough} of {one.selected} cover {np.mean(one.found_at <= enough):.0%} of the boxes, all "
        f"{full:.0%}"
    )


def _hardest(analyses: Mapping[str, QueryAnalysis]) -> str:
    found = {
        size: np.mean(np.concatenate([one.found_at[one.sizes == index] <= one.selected for one in analyses.values()]))
        for index, size in enumerate(SIZES)
        if any((one.sizes == index).any() for one in analyses.values())
    }
    if len(found) < 2:
        return "Recall of all selected by size of object"
    size, least = min(found.items(), key=lambda item: item[1])
    return f"All selected together cover {size} objects least: {least:.0%}"


def _places(analyses: Mapping[str, QueryAnalysis]) -> Section:
    stacks = {
        f"{name}, {level}" if len(analyses) > 1 else level: (row / max(1, one.places.sum())).tolist()
        for name, one in analyses.items()
        for level, row in zip(LEVELS, one.places, strict=True)
    }
    places = sum((one.places for one in analyses.values()), np.zeros((len(LEVELS), len(SIZES) + 1)))
    total = max(1, places.sum())
    share, level = max(zip((places.sum(axis=1) / total).tolist(), LEVELS, strict=True))
    within = float(places[:, : len(SIZES)].sum() / total)
    return Section(
        title="Where the selected lie",
        note="By level of the encoder: P3 has a cell for every 8 pixels of the input, P4 for 16, P5 for 32. Colours "
        "tell the size of the smallest object that a feature's cell has its centre in.",
        charts=(
            Chart(
                "places",
                f"Most features come from {level} ({share:.0%}), and {within:.0%} of all lie in an object",
                stacked_chart(stacks, parts=[*(f"in {size}" for size in SIZES), "in none"], label="share"),
            ),
        ),
    )


def _table(analyses: Mapping[str, QueryAnalysis]) -> Table:
    rows = []
    for name, one in analyses.items():
        values = one.to_dict()
        last = values["recall"][-1]
        rows.append(
            (
                name,
                str(one.selected),
                *(shown(values[key]) for key in ("prop_cls", "prop_both")),
                _signed(values["spearman"]),
                shown(values["calibration_error"]),
                shown(last["recall"]),
                shown(last["recall_any_class"]),
            )
        )
    return Table(
        title="In figures",
        note="Prop_cls and Prop_both are the paper's (table 4): shares of the selected features with a score above "
        "0.5, and with a score and an IoU above 0.5.",
        columns=("weights", "K", "Prop_cls", "Prop_both", "Spearman", "ECE", "recall at K", "any class"),
        rows=tuple(rows),
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
