"""Charts of lines as inline SVG: they scale, follow the page's light or dark colours, and need no script."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 520, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 38  # room for the axes' texts
_LETTER, _ROW = 6.6, 18  # about the width of a letter and the height of a line of the legend, in the chart's units
MOST_LINES = 6  # colours of lines, the page's classes s0 to s5

# What the page's style sheet says of charts, for files that stand alone. In black on white, with room around.
_STYLE = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
text { fill: #4d545d; } text.title { fill: #1c1e21; font-size: 15px; font-weight: 600; } text.strong { fill: #1c1e21; }
.paper { fill: #ffffff; } .grid { stroke: #e2e4e7; } .reference { stroke: #5f6670; stroke-dasharray: 5 4; fill: none; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; } circle { stroke: none; }
polyline.strong { stroke: #1c1e21; stroke-width: 3.5; } polyline:is(.s3, .s4, .s5) { stroke-dasharray: 6 2; }
polyline.pale { stroke: #c3c8ce; } rect.pale { fill: #c3c8ce; }
.gap { fill: none; stroke: #d55e00; stroke-width: 1.5; stroke-dasharray: 3 2; }
text.count { font-size: 10px; paint-order: stroke; stroke: #ffffff; stroke-width: 3; }
""" + " ".join(
    f".s{index} {{ stroke: {color}; }} circle.s{index}, rect.s{index} {{ fill: {color}; stroke: none; }}"
    for index, color in enumerate(("#0072b2", "#c2410c", "#00805d", "#a2467f", "#8a6100", "#3b7ea1"))
)


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: for the legend.
        points: (x, y), by rising x; points that are not finite are left out.
        style: a class of the page: "strong" is thick and in the colour of the text, as a mean over the others is;
            "reference" thin and dashed, as what the others are held against; None: the next of s0 to s5.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str | None = None


@dataclass(frozen=True)
class Chart:
    """A chart for a page and for a file of its own.

    Attributes:
        name: of the file, without ending.
        title: what to see.
        svg: the drawing.
    """

    name: str
    title: str
    svg: Markup

    def file(self) -> str:
        """The text of an SVG file: the chart below its title, on white."""
        size = re.match(r'<svg class="chart" viewBox="0 0 (\d+) (\d+)"', self.svg)
        width, height = (int(side) for side in size.groups()) if size else (_WIDTH, 40)
        drawing = self.svg if size else Markup('<svg><text x="12" y="24">{}</text></svg>').format(self.svg.striptags())
        lines = _wrapped(self.title, width=width - 24, letter=9.5)  # of the widest of the fonts, bold
        head = 14 + 20 * len(lines)
        parts = [
            Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{2}" height="{3}">').format(
                width, head + height, 2 * width, 2 * (head + height)
            ),
            Markup("<title>{}</title><style>{}</style>").format(self.title, Markup(_STYLE)),
            Markup('<rect class="paper" width="100%" height="100%"/>'),
            *(
                Markup('<text class="title" x="12" y="{}">{}</text>').format(24 + 20 * index, line)
                for index, line in enumerate(lines)
            ),
            Markup('<svg y="{}" width="{}" height="{}" ').format(head, width, height) + drawing[len("<svg ") :],
            Markup("</svg>\n"),
        ]
        return str(Markup("").join(parts))


class Frame:
    """Axes with round numbers, around the place where a chart is drawn.

    Args:
        x_ticks, y_ticks: the numbers beside the axes.
        x_low, x_high: where the horizontal axis begins and ends.
        x_label, y_label: what the axes show, with unit.
        keys: names in the legend, with the class of each.
    """

    def __init__(
        self,
        *,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_low: float,
        x_high: float,
        x_label: str,
        y_label: str,
        keys: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._x, self._y = (x_low, x_high), (y_ticks[0], y_ticks[-1])
        names, rows = legend(keys)
        self._top = _TOP + _ROW * rows
        height = _HEIGHT + _ROW * rows
        self._bottom = height - _BOTTOM
        self._parts = [open_svg(_WIDTH, height, f"{y_label} over {x_label}"), *names]
        for tick in y_ticks:
            _, y = self.place(x_low, tick)
            self._parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT))
            self._parts.append(
                Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 6, y + 4, f"{tick:g}")
            )
        for tick in x_ticks:
            x, y = self.place(tick, y_ticks[0])
            self._parts.append(
                Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, y + 16, f"{tick:g}")
            )
        self._parts.append(
            Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
                _WIDTH - _RIGHT, height - 5, x_label
            )
        )
        upwards = '<text class="label" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
        self._parts.append(Markup(upwards).format((self._top + self._bottom) / 2, y_label))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the data lies on the drawing."""
        (x_low, x_high), (y_low, y_high) = self._x, self._y
        across = (x - x_low) / ((x_high - x_low) or 1) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / ((y_high - y_low) or 1) * (self._bottom - self._top)
        return round(_LEFT + across, 1), round(self._bottom - up, 1)

    def add(self, part: Markup) -> None:
        """Draws something, over what is there."""
        self._parts.append(part)

    def svg(self) -> Markup:
        """The chart."""
        return Markup("").join([*self._parts, Markup("</svg>")])


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    from_zero: bool = True,
    y_max: float | None = None,
    markers: bool = True,
) -> Markup:
    """A chart of up to six lines, coloured by the page's classes s0 to s5, besides those with a style.

    Args:
        series: what to draw; without any finite point the chart says so.
        x_label, y_label: what the axes show, with unit.
        from_zero: whether the y axis begins at 0.
        y_max: largest value that the y axis has to reach; None: that of the data.
        markers: whether each point is a dot that says its value.
    """
    lines = [(line, [p for p in line.points if all(map(math.isfinite, p))]) for line in series]
    points = [point for _, kept in lines for point in kept]
    if not points:
        return Markup('<p class="quiet">Nothing was measured.</p>')
    whole = all(float(x).is_integer() for x, _ in points)  # such as epochs and layers, of which there are no halves
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), least=1 if whole else 0)
    y_low = 0.0 if from_zero else min(y for _, y in points)
    y_ticks = ticks(y_low, max(y for _, y in points) if y_max is None else y_max)
    colors = iter(range(MOST_LINES))
    classes = [line.style or f"s{next(colors)}" for line in series]
    frame = Frame(
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_low=min(x_ticks[0], *(x for x, _ in points)),
        x_high=max(x_ticks[-1], *(x for x, _ in points)),
        x_label=x_label,
        y_label=y_label,
        # A single line is named by the caption.
        keys=[(line.name, style) for line, style in zip(series, classes, strict=True)] if len(series) > 1 else (),
    )
    for (line, kept), style in zip(lines, classes, strict=True):
        placed = [frame.place(x, y) for x, y in kept]
        path = " ".join(f"{x},{y}" for x, y in placed)
        frame.add(Markup('<polyline class="{}" points="{}"/>').format(style, path))
        for (x, y), (x_value, y_value) in zip(placed, kept, strict=True) if markers else ():
            text = f"{line.name}: {y_value:.4g} at {x_value:.4g} {x_label}"
            frame.add(
                Markup('<circle class="{}" cx="{}" cy="{}" r="2.5"><title>{}</title></circle>').format(
                    style, x, y, text
                )
            )
    return frame.svg()


def open_svg(width: int, height: int, label: str) -> Markup:
    """The opening of a chart's element."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)


def ticks(low: float, high: float, *, about: int = 5, least: float = 0) -> list[float]:
    """About that many round numbers (1, 2, 5 times a power of ten) that span low to high, `least` or more apart."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = max((high - low) / about, least)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def legend(keys: Sequence[tuple[str, str]]) -> tuple[list[Markup], int]:
    """Names, each with the class of its colour, as a legend above a chart, and how many rows that takes."""
    parts, x, row = [], float(_LEFT), 0
    for name, style in keys:
        wide = 22 + _LETTER * len(name) + 14
        if x > _LEFT and x + wide > _WIDTH - _RIGHT:
            x, row = float(_LEFT), row + 1
        y = 6 + _ROW * row
        parts.append(
            Markup('<polyline class="{}" points="{:.1f},{} {:.1f},{}"/><text x="{:.1f}" y="{}">{}</text>').format(
                style, x, y + 2, x + 16, y + 2, x + 22, y + 6, name
            )
        )
        x += wide
    return parts, row + 1 if parts else 0


def _wrapped(text: str, *, width: float, letter: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and letter * len(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
