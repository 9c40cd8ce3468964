"""A detection's way as pictures that stand alone, and a page in which any of the best detections is clicked."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from setdet.analyze.attention import DetectionAttention, PictureAttention
from setdet.analyze.pages import write_charts
from setdet.analyze.queries import LEVELS
from setdet.report.charts import Chart, open_svg
from setdet.report.page import data_uri, write_page, write_values

WIDTH = 520  # of the drawings, in their own units
LARGEST = 1280  # side of the picture in a page, pixels
# Okabe and Ito's palette, told apart in this order on grey pictures; white completes the eight heads.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#ffffff")
HEAT = "#d55e00"
_GAP = 8


def write_attention(folder: Path, read: PictureAttention, *, image: Path, number: int) -> Path:
    """Writes `attention.json`, `attention.html`, and the drawings of detection `number` as SVG.

    Args:
        folder: made if it is not there.
        read: what to show.
        image: the picture's path, for titles.
        number: the detection that is drawn, and chosen when the page is opened.

    Returns:
        The page's path.

    Raises:
        WriteError: a file cannot be written.
    """
    values = {"image": str(image), "chosen": number, **read.to_dict()}
    write_values(folder / "attention.json", values)
    picture = _shrunk(read.image)
    address = data_uri(picture)
    write_charts(folder, draw_detection(read, number, address=address))
    return write_page(
        folder / "attention.html",
        "attention.html",
        title=f"Where detections on {image.name} come from",
        address=address,
        values=values,
        levels=LEVELS,
        colors=COLORS,
        heat=HEAT,
        heads=len(read.detection(number).layers[0].points_px),
    )


def draw_detection(read: PictureAttention, number: int, *, address: str) -> list[Chart]:
    """The box through the layers, the sampling points, and AIFI's attention where there is some.

    Args:
        read: what to draw.
        number: of the detection.
        address: of the picture, as `data_uri` gives it.
    """
    one = read.detection(number)
    called = f"{read.class_names[one.label]} {one.score:.2f}"
    charts = [
        Chart("boxes", f"{called}: {_boxes_title(one)}", _boxes(read, one, address)),
        Chart("sampling", f"{called}: {_sampling_title(read, one)}", _sampling(read, one, address)),
    ]
    if len(one.aifi):
        charts.append(Chart("aifi", f"{called}: {_aifi_title(one)}", _aifi(read, one, address)))
    return charts


def _boxes_title(one: DetectionAttention) -> str:
    first, last = one.layers[0], one.layers[-1]
    start, end = first.reference_xyxy_px.astype(np.float64), last.refined_xyxy_px.astype(np.float64)
    centers = (start[:2] + start[2:]) / 2, (end[:2] + end[2:]) / 2
    way = float(np.linalg.norm(centers[1] - centers[0]))
    return f"its centre moves by {way:.0f} pixels through {len(one.layers)} layers, from the thin box to the thick one"


def _boxes(read: PictureAttention, one: DetectionAttention, address: str) -> Markup:
    stages = [("start", one.layers[0].reference_xyxy_px)]
    stages += [(f"layer {index}", layer.refined_xyxy_px) for index, layer in enumerate(one.layers, start=1)]
    height = read.image.shape[0] * WIDTH / read.image.shape[1]
    parts = [open_svg(WIDTH, round(height) + 30, "reference boxes"), *_legend(one, stages)]
    parts.append(_view(read, address, x=0, y=30, width=WIDTH, height=height))
    unit = read.image.shape[1] / WIDTH
    for index, (_, box) in reversed(list(enumerate(stages))):  # the thin ones on top
        thick = (1.2 + 2.4 * index / max(1, len(stages) - 1)) * unit
        parts.append(_rectangle(box, COLORS[index % len(COLORS)], thick))
    if one.token_px is not None:
        parts.append(_cross(*one.token_px, size=6 * unit))
    return Markup("").join([*parts, Markup("</svg></svg>")])


def _legend(one: DetectionAttention, stages: list[tuple[str, NDArray[np.float32]]]) -> list[Markup]:
    parts, x = [], 8.0
    for index, (name, _) in enumerate(stages):
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="9" width="16" height="5" fill="{}" stroke="#5f6670" stroke-width="0.5"/>'
                '<text x="{:.1f}" y="16">{}</text>'
            ).format(x, COLORS[index % len(COLORS)], x + 21, name)
        )
        x += 21 + 7 * len(name) + 10
    if one.token_level is not None:
        text = f"✕ selected on {LEVELS[one.token_level]}"
        parts.append(Markup('<text x="{:.1f}" y="16">{}</text>').format(x, text))
    return parts


def _sampling_title(read: PictureAttention, one: DetectionAttention) -> str:
    share = level_shares(read, one).mean(axis=0)
    level = int(share.argmax())
    return (
        f"its heads look most at {LEVELS[level]} ({share[level]:.0%} of the weight); a colour a head, larger dots "
        "count more"
    )


def level_shares(read: PictureAttention, one: DetectionAttention) -> NDArray[np.float64]:
    """(layers, 3) how much of the heads' weight lies on P3, P4 and P5; a layer's sum to 1."""
    ends = np.cumsum(read.points_per_level)[:-1]
    weights = np.stack([layer.weights for layer in one.layers]).astype(np.float64)
    return np.stack([part.sum(axis=2).mean(axis=1) for part in np.split(weights, ends, axis=2)], axis=1)


def _sampling(read: PictureAttention, one: DetectionAttention, address: str) -> Markup:
    columns, left, head = len(read.points_per_level), 52, 22
    tile = (WIDTH - left - _GAP * (columns - 1)) / columns
    view = _around(read, one)
    height = head + len(one.layers) * (tile + _GAP)
    ends = [0, *np.cumsum(read.points_per_level).tolist()]
    shares = level_shares(read, one)
    # The picture once, and a reference to it in every tile.
    picture = Markup('<defs><image id="tile" width="{}" height="{}" href="{}" preserveAspectRatio="none"/></defs>')
    parts = [
        open_svg(WIDTH, round(height), "sampling points"),
        picture.format(read.image.shape[1], read.image.shape[0], address),
    ]
    unit = view[2] / tile
    for column, name in enumerate(LEVELS[:columns]):
        x = left + column * (tile + _GAP) + tile / 2
        parts.append(Markup('<text class="strong" x="{:.1f}" y="15" text-anchor="middle">{}</text>').format(x, name))
    for row, layer in enumerate(one.layers):
        y = head + row * (tile + _GAP)
        parts.append(Markup('<text class="strong" x="4" y="{:.1f}">layer {}</text>').format(y + tile / 2, row + 1))
        for column in range(columns):
            x = left + column * (tile + _GAP)
            parts.append(
                Markup(
                    '<svg x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" viewBox="{:.1f} {:.1f} {:.1f} {:.1f}">'
                ).format(x, y, tile, tile, *view)
            )
            parts.append(
                Markup('<rect x="{:.1f}" y="{:.1f}" width="100%" height="100%" fill="#202327"/>').format(*view[:2])
            )
            parts.append(Markup('<use href="#tile"/>'))
            parts.append(_rectangle(layer.reference_xyxy_px, "#ffffff", 1.5 * unit, dashed=True))
            parts += _dots(layer.points_px, layer.weights, ends[column], ends[column + 1], unit)
            parts.append(Markup("</svg>"))
            parts.append(
                Markup(
                    '<rect x="{0:.1f}" y="{1:.1f}" width="36" height="17" fill="#ffffff" fill-opacity="0.85"/>'
                    '<text class="strong" x="{2:.1f}" y="{3:.1f}" text-anchor="middle">{4:.0%}</text>'
                ).format(x, y, x + 18, y + 13, shares[row, column])
            )
    return Markup("").join([*parts, Markup("</svg>")])


def _dots(
    points: NDArray[np.float32], weights: NDArray[np.float32], first: int, last: int, unit: float
) -> list[Markup]:
    """The points of one level, the lightest last, so that none hides below a heavier one."""
    dots = [
        (float(weights[head, index]), head, *points[head, index].tolist())
        for head in range(len(points))
        for index in range(first, last)
    ]
    dot = Markup(
        '<circle cx="{:.1f}" cy="{:.1f}" r="{:.2f}" style="fill:{};stroke:#15171a;stroke-width:{:.2f}" '
        'fill-opacity="{:.2f}"/>'
    )
    return [
        dot.format(
            x, y, radius(weight) * unit, COLORS[head % len(COLORS)], 0.6 * unit, 0.35 + 0.65 * min(1, 3 * weight)
        )
        for weight, head, x, y in sorted(dots, reverse=True)
    ]


def radius(weight: float) -> float:
    """Of a sampling point's dot, whose area grows with the weight (0 to 1)."""
    return 1.2 + 8 * weight**0.5


def _around(read: PictureAttention, one: DetectionAttention) -> tuple[float, float, float, float]:
    """A square (left, top, side, side) in pixels with the boxes and nearly all points; of little but the picture."""
    points = np.concatenate([layer.points_px.reshape(-1, 2) for layer in one.layers])
    boxes = np.stack([box for layer in one.layers for box in (layer.reference_xyxy_px, layer.refined_xyxy_px)])
    low = np.minimum(np.quantile(points, 0.02, axis=0), boxes[:, :2].min(axis=0))
    high = np.maximum(np.quantile(points, 0.98, axis=0), boxes[:, 2:].max(axis=0))
    sides = np.array(read.image.shape[1::-1])
    low, high = np.clip(low, 0, sides), np.clip(high, 0, sides)
    side = max(float((high - low).max()) * 1.15, 16.0)
    beside = np.maximum(0, side - sides) + 0.04 * side  # how much of what is no picture may be seen
    left, top = np.clip((low + high - side) / 2, -beside, sides - side + beside).tolist()
    return left, top, side, side


def _aifi_title(one: DetectionAttention) -> str:
    weights = one.aifi[-1].mean(axis=0)
    row, column = one.aifi_cell
    height, width = weights.shape
    near = weights[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].sum()
    return (
        f"from its centre (the outlined cell), AIFI attends with {near:.0%} to the cells around and "
        f"{1 - near:.0%} further away (of {height} × {width}; stronger is more)"
    )


def _aifi(read: PictureAttention, one: DetectionAttention, address: str) -> Markup:
    weights = one.aifi[-1].mean(axis=0)
    height = read.image.shape[0] * WIDTH / read.image.shape[1]
    unit = read.image.shape[1] / WIDTH
    parts = [
        open_svg(WIDTH, round(height), "AIFI attention"),
        _view(read, address, x=0, y=0, width=WIDTH, height=height),
    ]
    xs, ys = (edges.tolist() for edges in read.cells_px)
    most = float(weights.max())
    for row, line in enumerate(weights.tolist()):
        for column, weight in enumerate(line):
            parts.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}" fill-opacity="{:.3f}"/>'
                ).format(
                    xs[column], ys[row], xs[column + 1] - xs[column], ys[row + 1] - ys[row], HEAT, 0.85 * weight / most
                )
            )
    row, column = one.aifi_cell
    cell = np.array([xs[column], ys[row], xs[column + 1], ys[row + 1]])
    parts.append(_rectangle(one.layers[-1].refined_xyxy_px, "#ffffff", 2 * unit, dashed=True))
    parts.append(_rectangle(cell, COLORS[0], 3 * unit))
    return Markup("").join([*parts, Markup("</svg></svg>")])


def _view(read: PictureAttention, address: str, *, x: float, y: float, width: float, height: float) -> Markup:
    """Opens a drawing in the picture's pixels, with the picture in it."""
    tall, wide = read.image.shape[:2]
    return Markup(
        '<svg x="{}" y="{}" width="{:.1f}" height="{:.1f}" viewBox="0 0 {} {}">'
        '<image width="{}" height="{}" href="{}" preserveAspectRatio="none"/>'
    ).format(x, y, width, height, wide, tall, wide, tall, address)


def _rectangle(box: NDArray[Any], color: str, thick: float, *, dashed: bool = False) -> Markup:
    """A box with a dark line under the coloured one, which keeps it visible on any ground."""
    left, top, right, bottom = box.tolist()
    shape = Markup('x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="none"').format(
        left, top, max(0.0, right - left), max(0.0, bottom - top)
    )
    dash = Markup(' stroke-dasharray="{:.1f}"').format(3 * thick) if dashed else Markup("")
    return Markup(
        '<rect {0} style="stroke:#15171a;stroke-width:{1:.2f}" stroke-opacity="0.7"/>'
        '<rect {0} style="stroke:{2};stroke-width:{3:.2f}"{4}/>'
    ).format(shape, 1.9 * thick, color, thick, dash)


def _cross(x: float, y: float, *, size: float) -> Markup:
    left, top, right, bottom = x - size, y - size, x + size, y + size
    path = f"M{left:.1f} {top:.1f}L{right:.1f} {bottom:.1f}M{left:.1f} {bottom:.1f}L{right:.1f} {top:.1f}"
    return Markup(
        '<path d="{0}" style="stroke:#15171a;stroke-width:{1:.2f}"/>'
        '<path d="{0}" style="stroke:#fff;stroke-width:{2:.2f}"/>'
    ).format(path, 0.6 * size, 0.3 * size)


def _shrunk(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = LARGEST / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
