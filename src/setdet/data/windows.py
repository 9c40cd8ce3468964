"""What is seen of a picture, and how that is drawn: once, straight to its place, with boxes on their very pixels."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Sample
from setdet.images import Placement, Preprocessing, place, resize

LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Window:
    """What is seen of the picture: corners in its pixels, which may lie outside of it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def rounded(self) -> "Window":
        """The window on whole pixels, at least one each way: at its own size it shows the very pixels."""
        left, top = round(self.left), round(self.top)
        return Window(left, top, max(round(self.right), left + 1), max(round(self.bottom), top + 1))

    def placed(self, preprocessing: Preprocessing | None) -> Placement:
        """Where a window on whole pixels goes in the network's input; None: it is drawn at its own size, alone."""
        height, width = int(self.height), int(self.width)
        if preprocessing is None:
            return fill(height, width, (height, width))
        return place(height, width, preprocessing)


def fill(height: int, width: int, size: tuple[int, int]) -> Placement:
    """A picture of this height and width over all of a canvas of `size`."""
    return Placement(original_size=(height, width), input_size=size, top=0, left=0, height=size[0], width=size[1])


def render(
    sample: Sample,
    window: Window,
    placement: Placement,
    *,
    keep: NDArray[np.bool_],
    colors: NDArray[np.float64] | None,
) -> Sample:
    """Draws what the window shows, and moves the boxes along with the very pixels they lie on.

    Args:
        sample: the picture and its boxes.
        window: what of it is seen, on whole pixels.
        placement: where the window goes on the canvas; what of the canvas it leaves free is black.
        keep: (n,), which boxes go along; of these, the ones less than 1 pixel wide or high are dropped.
        colors: an affine map of colours, (3, 4); see `color_matrix`.
    """
    rows = _span(window.top, window.bottom, sample.image.shape[0], placement.top, placement.height)
    columns = _span(window.left, window.right, sample.image.shape[1], placement.left, placement.width)
    patch = sample.image[rows.source, columns.source]
    patch = resize(patch, rows.target.stop - rows.target.start, columns.target.stop - columns.target.start)
    if colors is not None:
        patch = _recolor(patch, colors)
    if patch.shape[:2] != placement.input_size:
        canvas = np.zeros((*placement.input_size, 3), dtype=np.uint8)
        canvas[rows.target, columns.target] = patch
        patch = canvas
    boxes = sample.boxes_xyxy_px.astype(np.float64)
    boxes[:, 0::2] = columns.move(boxes[:, 0::2])
    boxes[:, 1::2] = rows.move(boxes[:, 1::2])
    keep = keep & (boxes[:, 2:] - boxes[:, :2] >= 1.0).all(axis=1)
    return Sample(
        image=patch,
        boxes_xyxy_px=boxes[keep].astype(np.float32),
        labels=sample.labels[keep],
        crowd=sample.crowd[keep],
        name=sample.name,
    )


@dataclass(frozen=True)
class _Span:
    """One side of the drawing: which whole pixels of the picture go to which whole pixels of the canvas."""

    source: slice
    target: slice

    def move(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions in the picture → positions on the canvas, clipped to what is drawn."""
        scale = (self.target.stop - self.target.start) / (self.source.stop - self.source.start)
        moved: NDArray[np.float64] = (positions - self.source.start) * scale + self.target.start
        return moved.clip(self.target.start, self.target.stop)


def _span(low: float, high: float, size: int, start: int, length: int) -> _Span:
    """Maps the window from `low` to `high` of a picture of `size` pixels to `length` pixels of canvas from `start`.

    On the canvas both ends are rounded to whole pixels and boxes follow the rounded ones: the scale is off by less than
    a pixel over the whole side, but boxes never slip against the pixels.
    """
    first = min(max(0, int(low)), size - 1)
    last = max(min(size, int(high)), first + 1)
    scale = length / (high - low)
    to = min(max(0, round((first - low) * scale)), length - 1)
    end = max(min(length, round((last - low) * scale)), to + 1)
    return _Span(source=slice(first, last), target=slice(start + to, start + end))


def _recolor(image: NDArray[np.uint8], colors: NDArray[np.float64]) -> NDArray[np.uint8]:
    matrix = colors.copy()
    if matrix[0, 3]:
        matrix[:, 3] *= float(LUMA @ np.asarray(cv2.mean(image)[:3]))
    return cv2.transform(image, matrix)  # type: ignore[return-value]
