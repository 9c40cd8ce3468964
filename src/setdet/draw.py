"""Draws detections on a picture. No torch."""

import math
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.detections import Detections
from setdet.errors import UsageError

# Okabe and Ito's palette, which people with any kind of colour vision can tell apart, in RGB. Its black is left
# out (lost on dark surfaces) and its brightest colours come first.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_Rectangle = tuple[int, int, int, int]  # left, top, right, bottom


def draw_detections(image: NDArray[np.uint8], detections: Detections, *, min_side: int = 400) -> NDArray[np.uint8]:
    """A copy of a picture with a box, a class name and a score for every detection.

    Args:
        image: uint8, (height, width, 3), RGB, of the size that `detections` is for.
        detections: what to draw; the best is drawn last, on top.
        min_side: a picture whose longer side has fewer pixels than this is enlarged by a whole factor first, or
            there would be no room for legible labels. 0 keeps every size.

    Returns:
        uint8, (height, width, 3), RGB; a whole multiple of the picture's size.

    Raises:
        UsageError: the picture is not uint8 RGB, or not of the detections' size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UsageError(f"Drawing needs a uint8 RGB picture (height, width, 3); found {image.shape} of {image.dtype}.")
    height, width = image.shape[:2]
    if (height, width) != detections.image_size:
        raise UsageError(
            f"The picture is {height} x {width} pixels (height x width), but the detections are for one of "
            f"{detections.image_size[0]} x {detections.image_size[1]}."
        )
    labels = detections.labels.tolist()
    texts = [
        f"{printable(detections.class_names[label], label)} {score:.2f}"
        for label, score in zip(labels, detections.scores.tolist(), strict=True)
    ]
    colors = [PALETTE[label % len(PALETTE)] for label in labels]
    return draw_boxes(image, detections.boxes_xyxy_px, texts=texts, colors=colors, min_side=min_side)


def draw_boxes(
    image: NDArray[np.uint8],
    boxes_xyxy_px: NDArray[np.float32],
    *,
    texts: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    min_side: int = 400,
) -> NDArray[np.uint8]:
    """A copy of a picture with boxes, each with a text beside it.

    Args:
        image: uint8, (height, width, 3), RGB.
        boxes_xyxy_px: (n, 4), corners in its pixels; the first is drawn last, on top.
        texts: of each box, in the letters of `printable`.
        colors: of each box and its text's plate, RGB.
        min_side: see `draw_detections`.

    Returns:
        uint8, (height, width, 3), RGB; a whole multiple of the picture's size.
    """
    height, width = image.shape[:2]
    factor = max(1, math.ceil(min_side / max(height, width)))
    canvas = np.ascontiguousarray(np.repeat(np.repeat(image, factor, axis=0), factor, axis=1))
    thickness = max(2, round(max(canvas.shape) / 400))
    corners = np.rint(boxes_xyxy_px * factor).astype(np.int64)
    limit = np.array([canvas.shape[1], canvas.shape[0]] * 2) - 1
    boxes: list[_Rectangle] = [tuple(box) for box in np.clip(corners, 0, limit).tolist()]
    for box, color in reversed(list(zip(boxes, colors, strict=True))):
        # A dark line under the coloured one keeps the box visible on any background.
        cv2.rectangle(canvas, box[:2], box[2:], (0, 0, 0), thickness + 2)
        cv2.rectangle(canvas, box[:2], box[2:], color, thickness)
    taken: list[_Rectangle] = []
    for box, text, color in zip(boxes, texts, colors, strict=True):
        taken.append(_write_label(canvas, text, box, color, taken))
    return canvas


def _write_label(
    canvas: NDArray[np.uint8], text: str, box: _Rectangle, color: tuple[int, int, int], taken: list[_Rectangle]
) -> _Rectangle:
    """Writes `text` on a plate beside `box`, where no other label is if there is such a place; returns the plate."""
    height, width = canvas.shape[:2]
    scale = max(0.5, max(height, width) / 1600)
    (text_width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, 0.97 * width / (text_width + 6))  # a narrow picture: smaller rather than cut off
    stroke = max(1, round(scale * 1.5))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    plate_width, plate_height = text_width + 6, text_height + baseline + 4
    left, top, right, bottom = box
    candidates = (
        (left, top - plate_height),
        (left, bottom),
        (right - plate_width, top - plate_height),
        (right - plate_width, bottom),
        (left, top),
        (left, bottom - plate_height),
    )
    inside = [(x, y) for x, y in candidates if 0 <= y <= height - plate_height] or [(left, 0)]
    starts = ((max(0, min(x, width - plate_width)), y) for x, y in inside)
    plates = [(x, y, x + plate_width, y + plate_height) for x, y in starts]
    plate = next((plate for plate in plates if not any(_overlap(plate, other) for other in taken)), plates[0])
    # Black or white, whichever stands out (luma of ITU-R BT.601).
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 110
    cv2.rectangle(canvas, plate[:2], plate[2:], color, cv2.FILLED)
    position = (plate[0] + 3, plate[1] + 2 + text_height)
    cv2.putText(canvas, text, position, _FONT, scale, (255, 255, 255) if dark else (0, 0, 0), stroke, cv2.LINE_AA)
    return plate


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def printable(name: str, label: int) -> str:
    """The name in the letters that OpenCV's font has, without accents; `#label` where it has none of them."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    return plain or f"#{label}"
