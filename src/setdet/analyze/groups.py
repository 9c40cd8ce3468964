"""Boxes by size and by shape: the groups that AP is measured in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Group:
    """Boxes of one kind.

    Attributes:
        name: in a few words.
        low, high: of the property, both included as in COCO; the last group's end is infinite.
    """

    name: str
    low: float
    high: float

    def outside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which values the group does not have."""
        return (values < self.low) | (values > self.high)


# COCO's, by area in pixels.
SIZES = (
    Group("small, under 32² px", 0.0, 32.0**2),
    Group("medium", 32.0**2, 96.0**2),
    Group("large, over 96² px", 96.0**2, np.inf),
)
# By width through height.
SHAPES = (
    Group("very tall, under 1:3", 0.0, 1 / 3),
    Group("tall, 1:3 to 2:3", 1 / 3, 2 / 3),
    Group("about square", 2 / 3, 3 / 2),
    Group("wide, 3:2 to 3:1", 3 / 2, 3.0),
    Group("very wide, over 3:1", 3.0, np.inf),
)


def areas(boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) in pixels."""
    return np.prod(_sides(boxes_xyxy_px), axis=1)


def shapes(boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,) width through height; infinite where there is no height, 1 where there is no width either."""
    width, height = _sides(boxes_xyxy_px).T
    return np.divide(width, height, out=np.where(width > 0, np.inf, 1.0), where=height > 0)


def outside_each(area_px: NDArray[np.float64], shape: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(1 + groups, n) which boxes each way of looking leaves out: all of them first, then `SIZES`, then `SHAPES`."""
    everything = np.zeros((1, len(area_px)), dtype=np.bool_)
    by_size = [group.outside(area_px)[None] for group in SIZES]
    by_shape = [group.outside(shape)[None] for group in SHAPES]
    return np.concatenate([everything, *by_size, *by_shape])


def _sides(boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.float64]:
    return boxes_xyxy_px[:, 2:].astype(np.float64) - boxes_xyxy_px[:, :2]
