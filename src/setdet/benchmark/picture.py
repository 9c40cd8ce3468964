"""Accuracy against time, drawn."""

from collections import defaultdict

from setdet.benchmark.measure import Comparison
from setdet.report.charts import MOST_LINES, Chart, Series, line_chart


def accuracy_over_time(comparison: Comparison) -> Chart | None:
    """AP over the milliseconds of the network alone, one dot a candidate; None if AP was not measured.

    Candidates that differ in their decoder layers alone are one line. Beyond six lines there is one for all.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in comparison.measured.values():
        if one.ap is not None:
            lines[one.line].append((one.alone.median_ms, one.ap))
    if not lines:
        return None
    if len(lines) > MOST_LINES:
        lines = {"all": [point for points in lines.values() for point in points]}
    series = [Series(name, sorted(points)) for name, points in lines.items()]
    return Chart(
        name="benchmark",
        title="Accuracy against time: better is up, faster is left",
        svg=line_chart(series, x_label="milliseconds a picture, the network alone", y_label="AP", from_zero=False),
    )
