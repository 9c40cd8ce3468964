"""Clouds of dots over two shares, with histograms along both axes, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from setdet.report.charts import open_svg, ticks

_WIDTH, _LEFT, _STRIP, _GAP, _BOTTOM = 520, 58, 66, 8, 42
_ROW = 18
_BINS = 25


@dataclass(frozen=True)
class Cloud:
    """The dots of one colour.

    Attributes:
        name: for the legend.
        x, y: (n,) of the dots that are drawn, 0 to 1.
        all_x, all_y: (m,) of all that they stand for, for the histograms.
    """

    name: str
    x: NDArray[np.floating[Any]]
    y: NDArray[np.floating[Any]]
    all_x: NDArray[np.floating[Any]]
    all_y: NDArray[np.floating[Any]]


def scatter_chart(clouds: Sequence[Cloud], *, x_label: str, y_label: str) -> Markup:
    """Up to six clouds in the unit square with its diagonal, coloured by the page's classes s0 to s5.

    Histograms, above and to the right, are shares of each cloud under a square root, so that a few high values are
    seen beside many low ones.
    """
    top = 10 + _ROW * len(clouds) + _STRIP + _GAP
    side = _WIDTH - _LEFT - _STRIP - _GAP - 8
    height = top + side + _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return round(_LEFT + x * side, 1), round(top + (1 - y) * side, 1)

    parts = [open_svg(_WIDTH, height, f"{y_label} over {x_label}")]
    for index, cloud in enumerate(clouds):
        middle = 12 + _ROW * index
        parts.append(
            Markup('<circle class="s{}" cx="{}" cy="{}" r="5"/><text class="strong" x="{}" y="{}">{}</text>').format(
                index, _LEFT + 5, middle, _LEFT + 18, middle + 4, cloud.name
            )
        )
    for tick in ticks(0, 1):
        (x, y), (end, _) = place(tick, tick), place(1, 0)
        parts += [
            Markup('<path class="grid" d="M{0} {1}H{2}M{3} {4}V{5}"/>').format(_LEFT, y, end, x, top, top + side),
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, f"{tick:g}"),
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, top + side + 17, f"{tick:g}"),
        ]
    # Clouds in turns, so that none of them covers the others.
    longest = max((len(cloud.x) for cloud in clouds), default=0)
    for number in range(longest):
        for index, cloud in enumerate(clouds):
            if number < len(cloud.x):
                x, y = place(float(cloud.x[number]), float(cloud.y[number]))
                dot = '<circle class="s{}" cx="{}" cy="{}" r="2.2" fill-opacity="0.4"/>'
                parts.append(Markup(dot).format(index, x, y))
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(Markup('<path class="reference" d="M{} {}L{} {}"/>').format(x0, y0, x1, y1))
    parts += _histograms(clouds, top=top, side=side)
    center = top + side / 2
    parts += [
        Markup('<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _LEFT + side / 2, height - 6, x_label
        ),
        Markup('<text class="label" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            center, y_label
        ),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


def _histograms(clouds: Sequence[Cloud], *, top: int, side: int) -> list[Markup]:
    parts = []
    for index, cloud in enumerate(clouds):
        for values, upright in ((cloud.all_x, True), (cloud.all_y, False)):
            if not len(values):
                continue
            counts, _ = np.histogram(values, bins=_BINS, range=(0, 1))
            heights = np.sqrt(counts / len(values)) * (_STRIP - 2)
            corners = []
            for number, tall in enumerate(heights.tolist()):
                for edge in (number / _BINS, (number + 1) / _BINS):
                    if upright:
                        corners.append(f"{_LEFT + edge * side:.1f},{top - _GAP - tall:.1f}")
                    else:
                        corners.append(f"{_LEFT + side + _GAP + tall:.1f},{top + (1 - edge) * side:.1f}")
            parts.append(Markup('<polyline class="s{}" points="{}"/>').format(index, " ".join(corners)))
    return parts
