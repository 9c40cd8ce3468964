"""Charts of bars as inline SVG: quantities side by side, and scores against how often they are right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from setdet.metrics.calibration import Calibration
from setdet.report.charts import Frame, legend, open_svg, ticks

_WIDTH, _PITCH, _THICK = 520, 30, 18
_ABOVE = 6
_LONGEST = 36  # letters of a name
_SPAN = 160  # least room for the longest bar


@dataclass(frozen=True)
class Bar:
    """One quantity.

    Attributes:
        name: what it is of.
        value: its length, 0 or more; None where it was not measured.
        note: said behind the name, such as a count; "" for nothing.
        color: RGB; None: the page's class of `series`.
        series: 0 to 5 for s0 to s5, as the lines of charts.
    """

    name: str
    value: float | None
    note: str = ""
    color: tuple[int, int, int] | None = None
    series: int = 0


def bar_chart(bars: Sequence[Bar], *, label: str, full: float | None = None, signed: bool = False) -> Markup:
    """Bars from left to right, each with its name, its note and its value.

    Args:
        bars: from the top down.
        label: what the lengths are, for those who hear the page.
        full: value of a bar over the whole width; None: the largest of them.
        signed: whether values have a plus in front, as gains do.
    """
    notes = max((len(bar.note) for bar in bars), default=0)
    left = _room([bar.name for bar in bars]) + (round(14 + 6.4 * notes) if notes else 0)
    span = _SPAN if left > _WIDTH - 60 - _SPAN else _WIDTH - left - 60
    width = left + span + 60
    longest = full if full is not None else max((bar.value or 0 for bar in bars), default=0)
    height = 2 * _ABOVE + _PITCH * len(bars)
    parts = [open_svg(width, height, label)]
    for row, bar in enumerate(bars):
        top = _ABOVE + _PITCH * row + (_PITCH - _THICK) // 2
        middle = top + _THICK // 2 + 4
        length = 0.0 if not bar.value or not longest else max(2.0, min(1.0, bar.value / longest) * span)
        fill = Markup('class="s{}"').format(bar.series)
        if bar.color is not None:
            fill = Markup('fill="rgb{}"').format(str(bar.color))
        text = "–" if bar.value is None else f"{bar.value:+.3f}" if signed else f"{bar.value:.3f}"
        parts += [
            _name(bar.name, middle),
            Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, middle, bar.note),
            Markup('<path class="grid" d="M{} {}V{}"/>').format(left, top - 5, top + _THICK + 5),
            Markup('<rect {} x="{}" y="{}" width="{:.1f}" height="{}" rx="3"/>').format(
                fill, left, top, length, _THICK
            ),
            Markup('<text class="strong" x="{:.1f}" y="{}">{}</text>').format(left + length + 6, middle, text),
        ]
    return Markup("").join([*parts, Markup("</svg>")])


def stacked_chart(stacks: Mapping[str, Sequence[float]], *, parts: Sequence[str], label: str) -> Markup:
    """Bars of parts that lie end to end, coloured s0, s1 and so on, the last one pale: what is left.

    Args:
        stacks: the lengths of each bar's parts, by its name, from the top down.
        parts: what they are called.
        label: what the lengths are, for those who hear the page.
    """
    styles = [*(f"s{index}" for index in range(len(parts) - 1)), "pale"]
    keys, rows = legend(list(zip(parts, styles, strict=True)))
    left = _room(list(stacks))
    longest = max((sum(lengths) for lengths in stacks.values()), default=0) or 1
    scale = (_WIDTH - left - 60) / longest
    first = 2 * _ABOVE + 18 * rows
    drawn = [open_svg(_WIDTH, first + _PITCH * len(stacks) + _ABOVE, label), *keys]
    for row, (name, lengths) in enumerate(stacks.items()):
        top, x = first + _PITCH * row + (_PITCH - _THICK) // 2, float(left)
        middle = top + _THICK // 2 + 4
        drawn.append(_name(name, middle))
        for part, style, length in zip(parts, styles, lengths, strict=True):
            drawn.append(
                Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
                    style, x, top, length * scale, _THICK, f"{part}: {length:.3f}"
                )
            )
            x += length * scale
        text = f"{sum(lengths):.3f}"
        drawn.append(Markup('<text class="strong" x="{:.1f}" y="{}">{}</text>').format(x + 6, middle, text))
    return Markup("").join([*drawn, Markup("</svg>")])


def reliability_chart(measured: Calibration) -> Markup:
    """A reliability diagram: solid bars are the shares that are right, dashed outlines what is missing to, or too much
    for, the mean score, and the dashed line is where bars end if scores mean what they say.
    """
    axis = ticks(0, 1)
    frame = Frame(
        x_ticks=axis,
        y_ticks=axis,
        x_low=0,
        x_high=1,
        x_label="score",
        y_label="share that is right",
        keys=(("right at IoU 0.5", "s0"), ("what the score promised", "gap")),
    )
    counts = []
    for share in measured.bins:
        if share.right is None or share.score is None:
            continue
        inset = 0.06 * (share.high - share.low)
        (left, top), (right, bottom) = frame.place(share.low + inset, share.right), frame.place(share.high - inset, 0)
        _, promised = frame.place(0, share.score)
        text = f"{share.count} detections, mean score {share.score:.3f}, {share.right:.3f} of them right"
        frame.add(
            Markup('<g><title>{}</title><rect class="s0" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/>').format(
                text, left, top, right - left, bottom - top
            )
        )
        frame.add(
            Markup('<rect class="gap" x="{}" y="{}" width="{:.1f}" height="{:.1f}"/></g>').format(
                left, min(top, promised), right - left, abs(top - promised)
            )
        )
        counts.append(
            Markup('<text class="count" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                (left + right) / 2, min(top, promised) - 4, short(share.count)
            )
        )
    (x0, y0), (x1, y1) = frame.place(0, 0), frame.place(1, 1)
    frame.add(Markup('<path class="reference" d="M{} {}L{} {}"/>').format(x0, y0, x1, y1))
    frame.add(Markup("").join(counts))
    return frame.svg()


def _room(names: Sequence[str]) -> int:
    """Where bars begin, behind names of at most `_LONGEST` letters."""
    return round(20 + 7.2 * min(_LONGEST, max((len(name) for name in names), default=0)))


def _name(name: str, y: float) -> Markup:
    """A name in front of its bar; the middle of a long one is left to the title."""
    half = _LONGEST // 2
    seen = name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}"
    return Markup('<text class="strong" x="8" y="{}"><title>{}</title>{}</text>').format(y, name, seen)


def short(count: int) -> str:
    """A count in at most four letters or so, such as 950, 1.2k, 31k or 2.4M."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= unit:
            value = count / unit
            return f"{value:.1f}{letter}" if value < 10 else f"{value:.0f}{letter}"
    return str(count)
