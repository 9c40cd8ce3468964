"""The types that every format is read into. No torch."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setdet.errors import DataError


@dataclass(frozen=True)
class Record:
    """One annotated picture, not yet decoded.

    Attributes:
        image: path of the picture.
        height, width: its size in pixels as it is decoded (after EXIF orientation).
        boxes_xyxy_px: corners in pixels, origin at the outer corner of the first pixel, half-open (0 to width).
        labels: class index of every box, into the data set's `class_names`.
        crowd: boxes that stand for a group (COCO `iscrowd`): no target in training, an ignore region in AP.
        areas_px: (n,) float64, what AP calls small, medium and large by: COCO's `area`, which is that of the segment;
            None: that of the boxes.
    """

    image: Path
    height: int
    width: int
    boxes_xyxy_px: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas_px: NDArray[np.float64] | None = None


def check_size(record: Record, height: int, width: int) -> None:
    """Compares the declared size with that of the decoded picture.

    Raises:
        DataError: they differ, so boxes would not lie where they belong.
    """
    if (record.height, record.width) != (height, width):
        raise DataError(
            f"{record.image}: the annotations declare {record.width}×{record.height} pixels (width×height), but the "
            f"picture has {width}×{height}. Correct the annotation, or put the annotated picture back."
        )


@dataclass(frozen=True)
class Dataset:
    """A data set in any format.

    Attributes:
        root: the folder or file that was given.
        format: "voc", "coco" or "yolo".
        class_names: in the order of the class indices.
        splits: the records of each split ("train", "val", "test"), sorted by picture path.
        notes: what the reader had to decide or repair, one line each, to be shown to the user.
    """

    root: Path
    format: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Sample:
    """One decoded picture with its boxes, what transforms take and return.

    Attributes:
        image: uint8, (height, width, 3), RGB.
        boxes_xyxy_px: (n, 4) float32, corners in pixels of `image`.
        labels: (n,) int64.
        crowd: (n,) bool, see `Record`.
        name: what to call the picture in messages.
    """

    image: NDArray[np.uint8]
    boxes_xyxy_px: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    name: str
