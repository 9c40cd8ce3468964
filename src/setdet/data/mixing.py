"""Training pictures that are made of several: mosaic, mixup and copy-blend. No torch.

Matching one query to one object gives a detector few positives a picture, and few of them good. More objects in a
picture are more positives at the same cost (Huang et al. 2025, "DEIM", section 3.2, "Dense O2O").
"""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Sample
from setdet.data.transforms import AugmentConfig, color_matrix, turn, vary
from setdet.data.windows import Window, fill, render
from setdet.images import Preprocessing, place

Draw = Callable[[], Sample]

_SEAM = (0.3, 0.7)  # where the four pictures of a mosaic meet, as shares of its sides
_LEAST_VISIBLE = 0.25  # of a box that a mosaic cuts: with less, it is not said to be there
_MIXUP_SHARE = (0.45, 0.55)
_PASTED = 3  # most objects that one picture gets from another
_PASTE_MARGIN = 0.15  # around a pasted object, as a share of its sides, for it to fade in
_MOST_COVERED = 0.2  # of the smaller of a pasted object and one that is there


def augment(
    sample: Sample,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    preprocessing: Preprocessing | None = None,
    another: Draw | None = None,
) -> Sample:
    """One training picture.

    Args:
        sample: the picture that it is about.
        config: what to change, and how often.
        rng: where all random numbers come from.
        preprocessing: brings the result to the network's input at the same time; None keeps the size of what is seen.
        another: draws a further picture of the data set; None: pictures are not mixed.

    Returns:
        The picture with all of its boxes, clipped to what is seen.
    """
    if another is None or preprocessing is None:
        return vary(sample, config, rng, preprocessing=preprocessing)
    whole = _alone_or_mosaic(sample, config, rng, preprocessing=preprocessing, another=another)
    if _happens(config.mixup, rng):
        other = _alone_or_mosaic(another(), config, rng, preprocessing=preprocessing, another=another)
        whole = mixup(whole, other, rng)
    elif _happens(config.copy_blend, rng):
        whole = copy_blend(whole, vary(another(), config, rng, preprocessing=preprocessing), rng)
    return whole


def _happens(probability: float, rng: np.random.Generator) -> bool:
    """Draws only where there is something to decide, so that what is switched off changes nothing else."""
    return probability > 0 and rng.random() < probability


def _alone_or_mosaic(
    sample: Sample, config: AugmentConfig, rng: np.random.Generator, *, preprocessing: Preprocessing, another: Draw
) -> Sample:
    if _happens(config.mosaic, rng):
        return mosaic([sample, another(), another(), another()], config, rng, preprocessing=preprocessing)
    return vary(sample, config, rng, preprocessing=preprocessing)


def mosaic(
    samples: list[Sample], config: AugmentConfig, rng: np.random.Generator, *, preprocessing: Preprocessing
) -> Sample:
    """Four pictures around a point, each a part of it at a scale of its own (Bochkovskiy et al. 2020, "YOLOv4").

    Boxes of which less than a quarter is left are dropped.
    """
    height, width = preprocessing.image_size
    row, column = round(height * rng.uniform(*_SEAM)), round(width * rng.uniform(*_SEAM))
    parts = [(0, row, 0, column), (0, row, column, width), (row, height, 0, column), (row, height, column, width)]
    canvas = np.empty((height, width, 3), dtype=np.uint8)
    tiles = []
    for sample, (top, bottom, left, right) in zip(samples, parts, strict=True):
        tile = _tile(sample, (bottom - top, right - left), config, rng, preprocessing=preprocessing)
        canvas[top:bottom, left:right] = tile.image
        tiles.append(_with_boxes(tile, tile.boxes_xyxy_px + np.array([left, top, left, top], np.float32)))
    return _together(canvas, tiles)


def _tile(
    sample: Sample,
    size: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    preprocessing: Preprocessing,
) -> Sample:
    """A part of the picture that fills a tile of `size` (height, width) pixels."""
    sample = turn(sample, config, rng)
    height, width = sample.image.shape[:2]
    alone = place(height, width, preprocessing)
    scale = max(rng.uniform(*config.mosaic_scale), size[0] / alone.height, size[1] / alone.width)
    seen_height, seen_width = size[0] / (alone.height * scale) * height, size[1] / (alone.width * scale) * width
    left, top = rng.random(2) * (width - seen_width, height - seen_height)
    window = Window(left, top, left + seen_width, top + seen_height).rounded()
    boxes = sample.boxes_xyxy_px
    seen = np.array([window.left, window.top, window.right, window.bottom], np.float32)
    visible = _intersection(boxes, seen) >= _LEAST_VISIBLE * _area(boxes)
    placement = fill(int(window.height), int(window.width), size)
    return render(sample, window, placement, keep=visible, colors=color_matrix(config.photometric, rng))


def mixup(first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
    """Two pictures of one size seen through each other, with the boxes of both (Zhang et al. 2018, "mixup")."""
    share = rng.uniform(*_MIXUP_SHARE)
    blended: NDArray[np.uint8] = cv2.addWeighted(first.image, share, second.image, 1 - share, 0)  # type: ignore[assignment]
    return _together(blended, [first, second])


def copy_blend(base: Sample, donor: Sample, rng: np.random.Generator) -> Sample:
    """Pastes up to three objects of `donor` where they lie there, at the brightness of the place, with soft edges.

    An object that would cover one that is there, or is a crowd or touches one, is left out.
    """
    image = base.image.astype(np.float32)
    size = np.array([image.shape[1], image.shape[0]], np.float32)
    pasted: list[int] = []
    for index in rng.permutation(len(donor.labels))[:_PASTED]:
        box = donor.boxes_xyxy_px[index]
        there = np.concatenate([base.boxes_xyxy_px, donor.boxes_xyxy_px[pasted]])
        smaller = np.minimum(_area(there), _area(box[None]))
        in_crowd = donor.crowd[index] or (_intersection(base.boxes_xyxy_px[base.crowd], box) > 0).any()
        if in_crowd or (_intersection(there, box) > _MOST_COVERED * smaller).any():
            continue
        margin = _PASTE_MARGIN * (box[2:] - box[:2]) + 1
        left, top = np.floor((box[:2] - margin).clip(min=0)).astype(int)
        right, bottom = np.ceil(np.minimum(box[2:] + margin, size)).astype(int)
        _fade_in(image[top:bottom, left:right], donor.image[top:bottom, left:right], box - (left, top, left, top))
        pasted.append(int(index))
    objects = Sample(
        image=donor.image,
        boxes_xyxy_px=donor.boxes_xyxy_px[pasted],
        labels=donor.labels[pasted],
        crowd=donor.crowd[pasted],
        name=donor.name,
    )
    return _together(image.round().clip(0, 255).astype(np.uint8), [base, objects])


def _fade_in(place: NDArray[np.float32], patch: NDArray[np.uint8], box: NDArray[np.float32]) -> None:
    """Draws the patch over the place: wholly inside the box, less and less towards its own edges."""
    rows, columns = (np.arange(length, dtype=np.float32) + 0.5 for length in place.shape[:2])
    across = np.interp(columns, [0, box[0], box[2], place.shape[1]], [0, 1, 1, 0])
    down = np.interp(rows, [0, box[1], box[3], place.shape[0]], [0, 1, 1, 0])
    share = (down[:, None] * across[None])[..., None].astype(np.float32)
    surround = (1 - share) + 1e-3
    difference = ((place - patch) * surround).sum(axis=(0, 1)) / surround.sum(axis=(0, 1))
    place += share * (patch + difference - place)


def _together(image: NDArray[np.uint8], samples: list[Sample]) -> Sample:
    """The boxes of all on one image, under the name of the first."""
    return Sample(
        image=image,
        boxes_xyxy_px=np.concatenate([sample.boxes_xyxy_px for sample in samples]),
        labels=np.concatenate([sample.labels for sample in samples]),
        crowd=np.concatenate([sample.crowd for sample in samples]),
        name=samples[0].name,
    )


def _with_boxes(sample: Sample, boxes_xyxy_px: NDArray[np.float32]) -> Sample:
    return Sample(
        image=sample.image, boxes_xyxy_px=boxes_xyxy_px, labels=sample.labels, crowd=sample.crowd, name=sample.name
    )


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of corners, (n, 4) → (n,)."""
    area: NDArray[np.float32] = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return area


def _intersection(boxes: NDArray[np.float32], box: NDArray[np.float32]) -> NDArray[np.float32]:
    """What boxes (n, 4) share with one (4,), in pixels: (n,)."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared: NDArray[np.float32] = sides.clip(min=0).prod(axis=1)
    return shared
