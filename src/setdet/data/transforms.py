"""Augmentation of one picture: RT-DETR's published transforms, drawn from a given random generator. No torch.

Zoom-out and crop do not touch pixels: they move a window over the picture (which may reach out of it). Only what the
window shows is resized, once, straight to the network's input, so that a picture enlarged four times costs nothing
and everything passes through the one filter. Colours change last, on the few pixels that remain.
"""

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from setdet.config import Config
from setdet.data.schema import Sample
from setdet.data.windows import LUMA, Window, render
from setdet.images import Preprocessing

Probability = Annotated[float, Field(ge=0.0, le=1.0)]

# After SSD (Liu et al. 2016, section 2.2), as RT-DETR trains: the least IoU of the crop with some box; 1 keeps all.
_CROP_MIN_IOU = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_CROP_TRIALS = 40
_CROP_ROUNDS = 20
_CROP_MIN_SIDE = 0.3
_CROP_ASPECT = (0.5, 2.0)


class AugmentConfig(Config):
    """Which changes are made to training pictures, and how often. Defaults: RT-DETR's published recipe."""

    photometric: Probability = Field(
        default=0.5, description="Probability of each of: brightness, contrast, saturation, hue, swapped channels."
    )
    zoom_out: Probability = Field(default=0.5, description="Probability to set the picture into a larger black one.")
    zoom_out_max: float = Field(default=4.0, ge=1.0, description="Largest factor of the zoom-out, a side.")
    iou_crop: Probability = Field(default=0.8, description="Probability of a crop that overlaps some box enough.")
    flip_horizontal: Probability = Field(default=0.5, description="Probability to swap left and right.")
    flip_vertical: Probability = Field(default=0.0, description="Probability to swap top and bottom.")
    rotate_90: Probability = Field(default=0.0, description="Probability to turn by 90, 180 or 270 degrees.")
    mosaic: Probability = Field(default=0.0, description="Probability to put a picture together of four.")
    mosaic_scale: tuple[float, float] = Field(
        default=(0.5, 1.0),
        description="Least and largest scale of the pictures in a mosaic; 1: that of a picture alone.",
    )
    mixup: Probability = Field(default=0.0, description="Probability to blend a picture with another, half and half.")
    copy_blend: Probability = Field(
        default=0.0, description="Probability to paste objects of another picture into a picture, with soft edges."
    )
    multi_scale: tuple[int, ...] = Field(
        default=(),
        description="Shorter sides of the network's input in pixels, multiples of 32, one drawn for each batch; "
        "a size listed twice is drawn twice as often. Empty: always the configured size.",
    )

    @field_validator("multi_scale")
    @classmethod
    def _multiples_of_32(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if any(size < 32 or size % 32 for size in sizes):
            raise ValueError("sizes must be positive multiples of 32")
        return sizes

    @field_validator("mosaic_scale")
    @classmethod
    def _a_range(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= scale[0] <= scale[1] <= 2.0:
            raise ValueError("expected the least and the largest scale, from 0.1 to 2")
        return scale


NO_AUGMENTATION = AugmentConfig(photometric=0.0, zoom_out=0.0, iou_crop=0.0, flip_horizontal=0.0)


def published_scales(side: int) -> tuple[int, ...]:
    """RT-DETR's multi-scale sizes around `side`: 3/4 to 5/4 in steps of 32, the middle three times."""
    low, high = round(side * 0.75 / 32) * 32, round(side * 1.25 / 32) * 32
    return (*range(max(32, low), high + 1, 32), side, side)


def batch_preprocessing(
    preprocessing: Preprocessing, config: AugmentConfig, *, seed: int, epoch: int, batch: int
) -> Preprocessing:
    """The preprocessing of one batch of multi-scale training: a pure function of seed, epoch and batch number."""
    if not config.multi_scale:
        return preprocessing
    # 1 sets these numbers apart from those of a sample with the same three numbers.
    rng = np.random.default_rng([seed, epoch, batch, 1])
    shorter = config.multi_scale[rng.integers(len(config.multi_scale))]
    scale = shorter / min(preprocessing.image_size)
    height, width = (max(32, round(side * scale / 32) * 32) for side in preprocessing.image_size)
    return preprocessing.model_copy(update={"image_size": (height, width)})


def vary(
    sample: Sample, config: AugmentConfig, rng: np.random.Generator, *, preprocessing: Preprocessing | None = None
) -> Sample:
    """A changed copy of `sample`, without any other picture.

    Args:
        sample: the picture and its boxes.
        config: what to change, and how often.
        rng: where all random numbers come from.
        preprocessing: brings the result to the network's input at the same time; None keeps the size of what is seen.

    Returns:
        The sample with boxes clipped to what is seen; boxes less than 1 pixel wide or high are dropped, and so are
        those whose centre a crop cuts off.
    """
    sample = turn(sample, config, rng)
    height, width = sample.image.shape[:2]
    window = Window(0.0, 0.0, float(width), float(height))
    if rng.random() < config.zoom_out:
        window = _zoom_out(window, config.zoom_out_max, rng)
    keep = np.ones(len(sample.labels), dtype=np.bool_)
    if rng.random() < config.iou_crop:
        window, keep = _iou_crop(window, sample.boxes_xyxy_px, rng)
    colors = color_matrix(config.photometric, rng)
    window = window.rounded()
    return render(sample, window, window.placed(preprocessing), keep=keep, colors=colors)


def turn(sample: Sample, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """Flips and right-angle rotations, as views of the pixels."""
    image, boxes = sample.image, sample.boxes_xyxy_px
    flip_horizontal, flip_vertical, rotate = rng.random(3) < (
        config.flip_horizontal,
        config.flip_vertical,
        config.rotate_90,
    )
    quarter_turns = int(rng.integers(1, 4)) if rotate else 0
    if quarter_turns % 2:  # a transposition and one flip make a quarter turn
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    height, width = image.shape[:2]
    if flip_horizontal ^ (quarter_turns in (2, 3)):
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if flip_vertical ^ (quarter_turns in (1, 2)):
        image = image[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return Sample(image=image, boxes_xyxy_px=boxes, labels=sample.labels, crowd=sample.crowd, name=sample.name)


def _zoom_out(window: Window, largest: float, rng: np.random.Generator) -> Window:
    factor = rng.uniform(1.0, largest)
    left = window.left - rng.random() * (factor - 1) * window.width
    top = window.top - rng.random() * (factor - 1) * window.height
    return Window(left, top, left + factor * window.width, top + factor * window.height)


def _iou_crop(window: Window, boxes: NDArray[np.float32], rng: np.random.Generator) -> tuple[Window, NDArray[np.bool_]]:
    """A smaller window that holds some box's centre and overlaps some box enough; which boxes' centres it holds."""
    everything = np.ones(len(boxes), dtype=np.bool_)
    if not len(boxes):
        return window, everything
    centers = 0.5 * (boxes[:, :2] + boxes[:, 2:])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    for _ in range(_CROP_ROUNDS):
        min_iou = _CROP_MIN_IOU[rng.integers(len(_CROP_MIN_IOU))]
        if min_iou >= 1.0:
            break
        draws = rng.random((_CROP_TRIALS, 4))
        sizes = (_CROP_MIN_SIDE + (1 - _CROP_MIN_SIDE) * draws[:, :2]) * (window.width, window.height)
        starts = (window.left, window.top) + draws[:, 2:] * ((window.width, window.height) - sizes)
        ends = starts + sizes
        inside = np.asarray(((centers > starts[:, None]) & (centers < ends[:, None])).all(axis=2))
        overlap = np.minimum(ends[:, None], boxes[:, 2:]) - np.maximum(starts[:, None], boxes[:, :2])
        intersection = overlap.clip(min=0).prod(axis=2)
        iou = intersection / (sizes.prod(axis=1)[:, None] + areas - intersection)
        # As published: the IoU counts among the boxes that the crop keeps.
        fits = np.where(inside, iou, -1.0).max(axis=1) >= min_iou
        aspect = sizes[:, 0] / sizes[:, 1]
        good = np.flatnonzero(fits & (aspect >= _CROP_ASPECT[0]) & (aspect <= _CROP_ASPECT[1]))
        if len(good):
            trial = good[0]
            return Window(*starts[trial].tolist(), *ends[trial].tolist()), inside[trial]
    return window, everything


def color_matrix(probability: float, rng: np.random.Generator) -> NDArray[np.float64] | None:
    """Brightness, contrast, saturation, hue and order of channels as one (3, 4) affine map; None where none is drawn.

    The published code changes one after the other and cuts off at 0 and 255 in between, and turns the hue in HSV.
    Here hue turns around the grey axis, so that all are linear and one pass over the pixels does them. The fourth
    column is the share of the picture's mean luma that contrast keeps, to be filled in when it is drawn.
    """
    chosen = rng.random(5) < probability
    brightness, contrast, saturation = rng.uniform((0.875, 0.5, 0.5), (1.125, 1.5, 1.5))
    angle = 2 * math.pi * rng.uniform(-0.05, 0.05)
    order = rng.permutation(3)
    if not chosen.any():
        return None
    matrix, mean_share = np.eye(3), 0.0
    if chosen[0]:
        matrix = matrix * brightness
    if chosen[1]:
        mean_share = (1 - contrast) * (brightness if chosen[0] else 1.0)
        matrix = matrix * contrast
    if chosen[2]:
        matrix = (saturation * np.eye(3) + (1 - saturation) * LUMA) @ matrix
    if chosen[3]:
        cosine, sine = math.cos(angle), math.sin(angle) / math.sqrt(3)
        axis = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
        matrix = (cosine * np.eye(3) + (1 - cosine) / 3 + sine * axis) @ matrix
    if chosen[4]:
        matrix = matrix[order]
    return np.column_stack([matrix, np.full(3, mean_share)])
