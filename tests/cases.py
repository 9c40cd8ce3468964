"""Truth and detections without pictures, for tests of what is measured."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setdet.data.schema import Record
from setdet.detections import Detections

NAMES = ("crack", "dent", "stain")
SIZE = 200


def record(boxes: NDArray[np.float32], labels: NDArray[np.int64], crowd: NDArray[np.bool_] | None = None) -> Record:
    return Record(
        image=Path("picture.png"),
        height=SIZE,
        width=SIZE,
        boxes_xyxy_px=boxes,
        labels=labels,
        crowd=np.zeros(len(labels), dtype=np.bool_) if crowd is None else crowd,
    )


def detections(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], scores: NDArray[np.float32] | None = None
) -> Detections:
    scores = np.ones(len(labels), dtype=np.float32) if scores is None else scores
    order = np.argsort(-scores, kind="stable")
    return Detections(
        boxes_xyxy_px=boxes[order],
        scores=scores[order],
        labels=labels[order],
        class_names=NAMES,
        image_size=(SIZE, SIZE),
    )


def random_case(
    seed: int,
    *,
    pictures: int = 12,
    most: int = 6,
    crowd: float = 0.0,
    many: int = 0,
    ties: bool = False,
    classes: int = 2,
    flat: float = 0.0,
) -> tuple[list[Record], list[Detections]]:
    """Truth, and detections that are jittered truth among noise.

    Args:
        seed: of the random numbers.
        pictures: how many.
        most: at most so many boxes a picture.
        crowd: share of boxes that stand for a group.
        many: so many detections a picture besides.
        ties: whether scores are rounded to one digit.
        classes: that have boxes; the others have detections only.
        flat: share of detections without an area, as clipping leaves them.
    """
    rng = np.random.default_rng(seed)
    records, found = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, most + 1))
        corner = rng.uniform(0, 140, (count, 2))
        side = rng.uniform(4, 60, (count, 2)) * rng.choice([0.3, 1, 2], (count, 1))
        boxes = np.concatenate([corner, np.minimum(corner + side, SIZE)], axis=1).astype(np.float32)
        labels = rng.integers(0, classes, count)
        records.append(record(boxes, labels, rng.random(count) < crowd))
        noise = int(rng.integers(0, 6)) + many
        corner, side = rng.uniform(0, 140, (noise, 2)), rng.uniform(4, 60, (noise, 2))
        noise_boxes = np.concatenate([corner, corner + side], axis=1)
        guessed = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), noise_boxes])
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 1)
        guessed[rng.random(len(guessed)) < flat, 2] = 0
        guessed[:, 0] = np.minimum(guessed[:, 0], guessed[:, 2])
        scores = rng.random(count + noise)
        scores = np.round(scores, 1) if ties else scores
        guessed_labels = np.concatenate([labels, rng.integers(0, 3, noise)])
        found.append(detections(guessed.astype(np.float32), guessed_labels, scores.astype(np.float32)))
    return records, found
