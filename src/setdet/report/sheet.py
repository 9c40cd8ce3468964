"""Pictures with what was found and what was there, one by one and on one sheet."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.draw import PALETTE, draw_detections
from setdet.errors import UsageError

_INK = (230, 230, 230)
_BACKGROUND = 24  # a neutral dark grey, on which light and dark pictures both stand out


def draw_found_and_true(
    image: NDArray[np.uint8], detections: Detections, record: Record, *, min_side: int = 400
) -> NDArray[np.uint8]:
    """`draw_detections`, over the true boxes as thin dashed white lines."""
    height, width = image.shape[:2]
    factor = max(1, math.ceil(min_side / max(height, width)))
    canvas = np.ascontiguousarray(np.repeat(np.repeat(image, factor, axis=0), factor, axis=1))
    limit = np.array([width, height] * 2) * factor - 1
    for left, top, right, bottom in np.clip(np.rint(record.boxes_xyxy_px * factor), 0, limit).astype(int).tolist():
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        for start, end in zip(corners, (*corners[1:], corners[0]), strict=True):
            _dashed_line(canvas, start, end)
    enlarged = replace(
        detections, boxes_xyxy_px=detections.boxes_xyxy_px * factor, image_size=(height * factor, width * factor)
    )
    return draw_detections(canvas, enlarged, min_side=0)


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], *, columns: int = 6, tile: int = 400, gap: int = 8
) -> NDArray[np.uint8]:
    """Pictures side by side, each scaled to fit a square of `tile` pixels.

    Args:
        pictures: uint8 RGB (height, width, 3), of any sizes.
        columns: pictures in a row.
        tile: side of a picture's square, pixels.
        gap: between squares and around them, pixels.

    Returns:
        uint8 RGB, (rows * (tile + gap) + gap, columns * (tile + gap) + gap, 3).

    Raises:
        UsageError: there is no picture.
    """
    if not pictures:
        raise UsageError("A sheet needs at least one picture.")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    pitch = tile + gap
    sheet = np.full((rows * pitch + gap, columns * pitch + gap, 3), _BACKGROUND, np.uint8)
    for index, picture in enumerate(pictures):
        scale = tile / max(picture.shape[:2])
        height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
        fitted = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        row, column = divmod(index, columns)
        top = gap + row * pitch + (tile - height) // 2
        left = gap + column * pitch + (tile - width) // 2
        sheet[top : top + height, left : left + width] = fitted
    return sheet


def add_legend(sheet: NDArray[np.uint8], *, height: int = 40) -> NDArray[np.uint8]:
    """A sheet of `draw_found_and_true` over a strip that says what its lines mean; (height + strip, width, 3)."""
    strip = np.full((height, sheet.shape[1], 3), _BACKGROUND, np.uint8)
    middle, left = height // 2, 8
    for text, dashed in (("found, with class and score; a colour a class", False), ("truth", True)):
        if dashed:
            _dashed_line(strip, (left, middle), (left + 40, middle))
        else:
            cv2.line(strip, (left, middle), (left + 40, middle), PALETTE[0], 3)
        cv2.putText(strip, text, (left + 50, middle + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
        left += 50 + cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] + 30
    return np.concatenate([sheet, strip])


def encode(image: NDArray[np.uint8], *, kind: Literal["jpeg", "png"] = "png") -> bytes:
    """An RGB uint8 picture (height, width, 3) as the bytes of a file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if kind == "jpeg" else []
    written, data = cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    if not written:  # unreachable with uint8 RGB; OpenCV answers with a flag in place of an exception
        raise RuntimeError(f"OpenCV could not encode a picture of {image.shape} as {kind}.")
    return data.tobytes()


def _dashed_line(canvas: NDArray[np.uint8], start: tuple[int, int], end: tuple[int, int], *, dash: int = 6) -> None:
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
    points = np.linspace(start, end, max(2, length // dash)).astype(int).tolist()
    for first, second in zip(points[::2], points[1::2], strict=False):
        cv2.line(canvas, first, second, (255, 255, 255), 1)
