"""Loops that Numba compiles: sampling of rows for deformable attention, where a CPU trains. No torch.

PyTorch's `grid_sample` adds a sample's gradient to one channel at a time. Here the channels of a token lie next to
each other and move together. Each block (one head of one picture) is computed by itself, so results don't depend on
the number of threads.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., None])


# Sums may be reordered; not-a-number keeps its meaning, or it would be cast to an address.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def _compiled(function: F) -> F:
    compiled: Any
    try:
        compiled = njit(cache=True, nogil=True, fastmath=_FAST)(function)
    except RuntimeError:  # there is nowhere to keep the machine code: every process compiles it
        compiled = njit(nogil=True, fastmath=_FAST)(function)
    return compiled


@_compiled
def sample_rows(
    first: int,
    last: int,
    shapes: NDArray[np.int64],
    ends: NDArray[np.int64],
    value: NDArray[np.floating],
    locations: NDArray[np.floating],
    weights: NDArray[np.floating],
    out: NDArray[np.floating],
) -> None:
    """Weighted sums of bilinear samples, zeros outside, for blocks `first` to `last` of (batch · heads).

    Args:
        first, last: the blocks to compute; block n is head n % heads of picture n // heads.
        shapes: (levels, 2), height and width of each level.
        ends: (levels,), the number of points on this level and those before it.
        value: (batch, tokens, heads · channels), the levels' tokens one after the other.
        locations: (batch, queries, heads, points, 2), (x, y) as shares of the picture.
        weights: (batch, queries, heads, points).
        out: (batch, queries, heads · channels), written.
    """
    queries, heads = locations.shape[1], locations.shape[2]
    channels = value.shape[2] // heads
    total = np.empty(channels, value.dtype)
    half = value.dtype.type(0.5)
    for block in range(first, last):
        batch, head = block // heads, block % heads
        left, right = head * channels, (head + 1) * channels
        for query in range(queries):
            total[:] = 0
            start, point = 0, 0
            for level in range(len(shapes)):
                height, width = shapes[level]
                while point < ends[level]:
                    x = locations[batch, query, head, point, 0] * width - half
                    y = locations[batch, query, head, point, 1] * height - half
                    if -1 < x < width and -1 < y < height:
                        weight = weights[batch, query, head, point]
                        x0, y0 = int(np.floor(x)), int(np.floor(y))
                        x_share, y_share = x - x0, y - y0
                        # A corner outside weighs nothing; any token stands in for it.
                        wx0, wx1 = (1 - x_share) * (x0 >= 0), x_share * (x0 + 1 < width)
                        wy0, wy1 = weight * (1 - y_share) * (y0 >= 0), weight * y_share * (y0 + 1 < height)
                        x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
                        x0, y0 = max(x0, 0), max(y0, 0)
                        row00 = value[batch, start + y0 * width + x0, left:right]
                        row01 = value[batch, start + y0 * width + x1, left:right]
                        row10 = value[batch, start + y1 * width + x0, left:right]
                        row11 = value[batch, start + y1 * width + x1, left:right]
                        w00, w01, w10, w11 = wy0 * wx0, wy0 * wx1, wy1 * wx0, wy1 * wx1
                        # Two by two: the compiler makes vector code of this, and not of all four in one loop.
                        for channel in range(channels):
                            total[channel] += w00 * row00[channel] + w01 * row01[channel]
                        for channel in range(channels):
                            total[channel] += w10 * row10[channel] + w11 * row11[channel]
                    point += 1
                start += height * width
            out[batch, query, left:right] = total


@_compiled
def sample_rows_backward(
    first: int,
    last: int,
    shapes: NDArray[np.int64],
    ends: NDArray[np.int64],
    value: NDArray[np.floating],
    locations: NDArray[np.floating],
    weights: NDArray[np.floating],
    gradient: NDArray[np.floating],
    value_gradient: NDArray[np.floating],
    locations_gradient: NDArray[np.floating],
    weights_gradient: NDArray[np.floating],
) -> None:
    """The gradients of `sample_rows` by `value`, `locations` and `weights`, given that by `out`; all written."""
    queries, heads = locations.shape[1], locations.shape[2]
    tokens, channels = value.shape[1], value.shape[2] // heads
    rows = np.empty((tokens, channels), value.dtype)  # of the block's value_gradient
    zero, half = value.dtype.type(0), value.dtype.type(0.5)
    for block in range(first, last):
        batch, head = block // heads, block % heads
        left, right = head * channels, (head + 1) * channels
        rows[:] = 0
        for query in range(queries):
            given = gradient[batch, query, left:right]
            start, point = 0, 0
            for level in range(len(shapes)):
                height, width = shapes[level]
                while point < ends[level]:
                    x = locations[batch, query, head, point, 0] * width - half
                    y = locations[batch, query, head, point, 1] * height - half
                    by_weight, by_x, by_y = zero, zero, zero
                    if -1 < x < width and -1 < y < height:
                        weight = weights[batch, query, head, point]
                        x0, y0 = int(np.floor(x)), int(np.floor(y))
                        for corner in range(4):
                            right_side, lower_side = corner % 2, corner // 2
                            column, line = x0 + right_side, y0 + lower_side
                            if not (0 <= column < width and 0 <= line < height):
                                continue
                            x_share = x - x0 if right_side else 1 - (x - x0)
                            y_share = y - y0 if lower_side else 1 - (y - y0)
                            token = start + line * width + column
                            row, row_gradient = value[batch, token, left:right], rows[token]
                            scale, product = weight * x_share * y_share, zero
                            for channel in range(channels):
                                product += given[channel] * row[channel]
                                row_gradient[channel] += scale * given[channel]
                            by_weight += product * x_share * y_share
                            by_x += product * y_share if right_side else -product * y_share
                            by_y += product * x_share if lower_side else -product * x_share
                        by_x *= weight * width
                        by_y *= weight * height
                    weights_gradient[batch, query, head, point] = by_weight
                    locations_gradient[batch, query, head, point, 0] = by_x
                    locations_gradient[batch, query, head, point, 1] = by_y
                    point += 1
                start += height * width
        value_gradient[batch, :, left:right] = rows
