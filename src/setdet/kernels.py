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

F = TypeVar("F", bound=Callable[..., Any])

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
def _beside(position: np.floating, size: int, one: np.floating) -> tuple[int, int, Any, Any, Any, Any]:
    """The two tokens beside a position on a line of `size`: their places, their shares, and 1 where they are there.

    One outside weighs nothing; its place is that of its neighbour. `one` has the position's type, as all shares do.
    """
    floor = np.floor(position)
    low, share = int(floor), position - floor
    low_there, high_there = one * (low >= 0), one * (low + 1 < size)
    return max(low, 0), min(low + 1, size - 1), (one - share) * low_there, share * high_there, low_there, high_there


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

    All arrays are contiguous.

    Args:
        first, last: the blocks to compute; block n is head n % heads of picture n // heads.
        shapes: (levels, 2), height and width of each level.
        ends: (levels,), the number of points on this level and those before it.
        value: (batch, tokens, heads · channels), the levels' tokens one after the other.
        locations: (batch, queries, heads, points, 2), (x, y) as shares of the picture.
        weights: (batch, queries, heads, points).
        out: (batch, queries, heads · channels), written.
    """
    queries, heads, points = weights.shape[1:]
    tokens, row = value.shape[1:]
    channels = row // heads
    one, half, sizes = value.dtype.type(1), value.dtype.type(0.5), shapes.astype(value.dtype)
    # Flat, and with indices that are unsigned: others are asked each time whether they count from the end.
    values, places, shares = value.reshape(-1), locations.reshape(-1), weights.reshape(-1)
    total = np.empty(channels, value.dtype)
    for block in range(first, last):
        batch, head = block // heads, block % heads
        for query in range(queries):
            total[:] = 0
            point, first_point = 0, ((batch * queries + query) * heads + head) * points
            start = batch * tokens * row + head * channels  # of the level's first token
            for level in range(len(shapes)):
                height, width = shapes[level]
                while point < ends[level]:
                    at = np.uint64(first_point + point)
                    x = places[at + at] * sizes[level, 1] - half
                    y = places[at + at + np.uint64(1)] * sizes[level, 0] - half
                    if -1 < x < width and -1 < y < height:
                        x0, x1, left, right, _, _ = _beside(x, width, one)
                        y0, y1, upper, lower, _, _ = _beside(y, height, one)
                        weight = shares[at]
                        w00, w01 = weight * upper * left, weight * upper * right
                        w10, w11 = weight * lower * left, weight * lower * right
                        row00, row01 = start + (y0 * width + x0) * row, start + (y0 * width + x1) * row
                        row10, row11 = start + (y1 * width + x0) * row, start + (y1 * width + x1) * row
                        for channel in range(channels):
                            above = w00 * values[np.uint64(row00 + channel)] + w01 * values[np.uint64(row01 + channel)]
                            below = w10 * values[np.uint64(row10 + channel)] + w11 * values[np.uint64(row11 + channel)]
                            total[channel] += above + below
                    point += 1
                start += height * width * row
            out[batch, query, head * channels : (head + 1) * channels] = total


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
    queries, heads, points = weights.shape[1:]
    tokens, row = value.shape[1:]
    channels = row // heads
    zero, one, half = value.dtype.type(0), value.dtype.type(1), value.dtype.type(0.5)
    sizes = shapes.astype(value.dtype)
    values, places, shares = value.reshape(-1), locations.reshape(-1), weights.reshape(-1)
    by_places, by_shares = locations_gradient.reshape(-1), weights_gradient.reshape(-1)
    given = np.empty(channels, value.dtype)
    added = np.empty(tokens * channels, value.dtype)  # the block's value_gradient
    for block in range(first, last):
        batch, head = block // heads, block % heads
        first_row = batch * tokens * row + head * channels
        added[:] = 0
        for query in range(queries):
            given[:] = gradient[batch, query, head * channels : (head + 1) * channels]
            point, first_point = 0, ((batch * queries + query) * heads + head) * points
            start = 0
            for level in range(len(shapes)):
                height, width = shapes[level, 0], shapes[level, 1]
                high, wide = sizes[level, 0], sizes[level, 1]
                while point < ends[level]:
                    at = np.uint64(first_point + point)
                    at_x, at_y = np.uint64(2 * (first_point + point)), np.uint64(2 * (first_point + point) + 1)
                    x, y = places[at_x] * wide - half, places[at_y] * high - half
                    by_share, by_x, by_y = zero, zero, zero
                    if -1 < x < wide and -1 < y < high:
                        x0, x1, left, right, left_there, right_there = _beside(x, width, one)
                        y0, y1, upper, lower, upper_there, lower_there = _beside(y, height, one)
                        token00, token01 = start + y0 * width + x0, start + y0 * width + x1
                        token10, token11 = start + y1 * width + x0, start + y1 * width + x1
                        row00, row01 = np.uint64(first_row + token00 * row), np.uint64(first_row + token01 * row)
                        row10, row11 = np.uint64(first_row + token10 * row), np.uint64(first_row + token11 * row)
                        by00, by01, by10, by11 = zero, zero, zero, zero
                        for channel in range(np.uint64(channels)):
                            g = given[channel]
                            by00 += g * values[row00 + channel]
                            by01 += g * values[row01 + channel]
                            by10 += g * values[row10 + channel]
                            by11 += g * values[row11 + channel]
                        weight = shares[at]
                        w00, w01 = weight * upper * left, weight * upper * right
                        w10, w11 = weight * lower * left, weight * lower * right
                        row00, row01 = np.uint64(token00 * channels), np.uint64(token01 * channels)
                        row10, row11 = np.uint64(token10 * channels), np.uint64(token11 * channels)
                        # One after the other: a corner that is outside stands on its neighbour.
                        for channel in range(np.uint64(channels)):
                            added[row00 + channel] += w00 * given[channel]
                        for channel in range(np.uint64(channels)):
                            added[row01 + channel] += w01 * given[channel]
                        for channel in range(np.uint64(channels)):
                            added[row10 + channel] += w10 * given[channel]
                        for channel in range(np.uint64(channels)):
                            added[row11 + channel] += w11 * given[channel]
                        by_share = upper * (left * by00 + right * by01) + lower * (left * by10 + right * by11)
                        by_x = upper * (right_there * by01 - left_there * by00)
                        by_x = weight * wide * (by_x + lower * (right_there * by11 - left_there * by10))
                        by_y = left * (lower_there * by10 - upper_there * by00)
                        by_y = weight * high * (by_y + right * (lower_there * by11 - upper_there * by01))
                    by_shares[at], by_places[at_x], by_places[at_y] = by_share, by_x, by_y
                    point += 1
                start += height * width
        value_gradient[batch, :, head * channels : (head + 1) * channels] = added.reshape(tokens, channels)
