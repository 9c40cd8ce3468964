"""Line charts as inline SVG: they scale, follow the page's light or dark colours, and need no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 38  # room for the axes' texts


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend.
        points: (x, y), by rising x; points that are not finite are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = True, y_max: float | None = None
) -> Markup:
    """A chart of up to six lines, coloured by the page's classes s0 to s5.

    Args:
        series: what to draw; without any finite point the chart says so.
        x_label, y_label: what the axes show, with unit.
        from_zero: whether the y axis begins at 0.
        y_max: largest value that the y axis has to reach; None: that of the data.
    """
    lines = [(line.name, [p for p in line.points if all(map(math.isfinite, p))]) for line in series]
    points = [point for _, kept in lines for point in kept]
    if not points:
        return Markup('<p class="quiet">Nothing was measured.</p>')
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
    y_low = 0.0 if from_zero else min(y for _, y in points)
    y_ticks = ticks(y_low, max(y for _, y in points) if y_max is None else y_max)
    x_low, x_high = min(x_ticks[0], *(x for x, _ in points)), max(x_ticks[-1], *(x for x, _ in points))
    bottom, top = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - bottom) / ((top - bottom) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{} over {}">').format(
            _WIDTH, _HEIGHT, y_label, x_label
        )
    ]
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT))
        parts.append(Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, f"{tick:g}"))
    for tick in x_ticks:
        x, y = place(tick, bottom)
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, y + 16, f"{tick:g}"))
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _WIDTH - _RIGHT, _HEIGHT - 5, x_label
        )
    )
    for index, (name, kept) in enumerate(lines):
        placed = [place(x, y) for x, y in kept]
        path = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(Markup('<polyline class="s{}" points="{}"/>').format(index, path))
        for (x, y), (x_value, y_value) in zip(placed, kept, strict=True):
            text = f"{name}: {y_value:.4g} at {x_value:.4g} {x_label}"
            parts.append(
                Markup('<circle class="s{}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>').format(
                    index, x, y, text
                )
            )
    parts.append(Markup("</svg>"))
    if len(lines) == 1:  # the caption says it
        return Markup("").join(parts)
    legend = Markup("").join(
        Markup('<span class="key s{}">{}</span>').format(index, escape(name)) for index, (name, _) in enumerate(lines)
    )
    return Markup('<div class="legend">{}</div>{}').format(legend, Markup("").join(parts))


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """About that many round numbers (1, 2, 5 times a power of ten) that span low to high."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
