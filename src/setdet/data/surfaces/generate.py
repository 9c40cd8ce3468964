"""Whole pictures: a plate, its defects, the camera; and data sets of them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.data import coco, voc, yolo
from setdet.data.schema import Sample
from setdet.data.surfaces import defects, texture
from setdet.data.surfaces.defects import Defect
from setdet.data.surfaces.texture import Field
from setdet.errors import OutputError, UsageError
from setdet.folders import put_in_place

Draw = Callable[[np.random.Generator, int], Defect]
Plate = Callable[[np.random.Generator, int], Field]

# Name → (how one is drawn, the plate that it is seen on, how often a picture has 1, 2, 3 … of them).
_KINDS: dict[str, tuple[Draw, Plate, tuple[float, ...]]] = {
    "crazing": (defects.crazing, texture.rough_plate, (0.2, 0.5, 0.25, 0.05)),
    "inclusion": (defects.inclusion, texture.smooth_plate, (0.28, 0.24, 0.2, 0.13, 0.08, 0.04, 0.03)),
    "patches": (defects.patches, texture.rough_plate, (0.22, 0.3, 0.28, 0.14, 0.06)),
    "pitted_surface": (defects.pitted_surface, texture.lit_plate, (0.72, 0.28)),
    "rolled-in_scale": (defects.rolled_in_scale, texture.brushed_plate, (0.2, 0.55, 0.2, 0.05)),
    "scratches": (defects.scratches, texture.dark_plate, (0.47, 0.33, 0.15, 0.05)),
}
CLASS_NAMES = tuple(_KINDS)

_MOST_OVERLAP = 0.15  # of the smaller of two boxes of one picture: more, and nobody could tell them apart
_LEAST_CONTRAST = 1.0  # of a defect, in deviations of the plate's grain: a box around nothing teaches nothing
_LEAST_SIDE = 0.03  # of a box, as a share of the picture
_TRIALS = 4


def generate(index: int, *, seed: int, size: int = 200) -> Sample:
    """One picture, a pure function of `seed` and `index`.

    Kinds take turns: of six pictures in a row each shows another kind.

    Args:
        index: which picture of the endless stream, 0 or more.
        seed: of the stream.
        size: height and width in pixels.

    Returns:
        RGB (three equal channels) with one to seven defects of one kind and the boxes of their pixels.
    """
    if index < 0 or size < 32:
        raise UsageError(f"Surfaces need an index of 0 or more and 32 pixels or more; found {index} and {size}.")
    rng = np.random.default_rng([seed, index])
    label = index % len(CLASS_NAMES)
    draw, plate, counts = _KINDS[CLASS_NAMES[label]]
    picture = plate(rng, size)
    roughness = float((picture - cv2.GaussianBlur(picture, (0, 0), 6 * size / 200)).std())
    boxes: list[NDArray[np.float32]] = []
    for _ in range(1 + int(rng.choice(len(counts), p=counts))):
        for _ in range(_TRIALS):
            defect = draw(rng, size)
            box = _box_of(defect.mask)
            if box is None or float(np.abs(defect.change[defect.mask]).mean()) < _LEAST_CONTRAST * roughness:
                continue
            if all(_overlap(box, other) <= _MOST_OVERLAP for other in boxes):
                boxes.append(box)
                picture = picture + defect.change
                break
    if not boxes:
        # All trials fell outside the picture: draw the picture of another stream, which is as good.
        return generate(index, seed=seed + 1_000_003, size=size)
    return Sample(
        image=_photograph(rng, picture),
        boxes_xyxy_px=np.stack(boxes),
        labels=np.full(len(boxes), label, dtype=np.int64),
        crowd=np.zeros(len(boxes), dtype=np.bool_),
        name=f"{CLASS_NAMES[label]}_{seed}_{index:06d}",
    )


def make(
    directory: Path,
    *,
    count: int,
    seed: int = 0,
    format: Literal["voc", "coco", "yolo"] = "voc",
    val_share: float = 0.2,
    size: int = 200,
) -> None:
    """Writes a data set of `count` pictures in one of the known formats, the last `val_share` of them as val.

    Nothing is left behind where writing fails.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be made.
        UsageError: fewer than two pictures, or a share of all or none.
    """
    val = round(count * val_share)
    if count < 2 or not 0 < val < count:
        raise UsageError(
            f"{count} pictures with a val share of {val_share} leave a split empty; ask for more pictures."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputError(f"{directory}: is in use. Name a new folder, or empty this one first.")
    directory = directory.resolve()  # the folder behind "." or a link
    write = {"voc": voc, "coco": coco, "yolo": yolo}[format].write
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    except OSError as error:
        raise OutputError(f"{directory}: cannot be made ({error.strerror}). Choose another folder.") from None
    try:
        for split, numbers in (("train", range(count - val)), ("val", range(count - val, count))):
            write(unfinished, split=split, samples=_stream(numbers, seed=seed, size=size), class_names=CLASS_NAMES)
        put_in_place(unfinished, directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _stream(numbers: range, *, seed: int, size: int) -> Iterator[Sample]:
    return (generate(number, seed=seed, size=size) for number in numbers)


def _photograph(rng: np.random.Generator, picture: Field) -> NDArray[np.uint8]:
    """Lens, sensor and compression: uint8, (height, width, 3)."""
    blurred = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7))
    noisy = blurred + rng.uniform(0.5, 2.5) * rng.standard_normal(picture.shape, dtype=np.float32)
    grey = np.clip(noisy, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        _, encoded = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 97))])
        grey = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), dtype=np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _box_of(mask: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Corners of the tightest box around a mask, half-open; None where it is empty or too small to be seen."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    least = _LEAST_SIDE * len(mask)
    if not len(rows) or min(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 < least:
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection of two boxes as a share of the smaller one."""
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return float(sides.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))
