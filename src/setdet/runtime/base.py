"""What every engine that runs a detector's network looks like from outside, and what they share. No torch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from setdet.errors import UsageError

Candidates = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]


class Runtime(Protocol):
    """Runs the network on a batch of pictures that already have its input size."""

    def __call__(self, images: NDArray[np.uint8]) -> Candidates:
        """Detects.

        Args:
            images: (n, height, width, 3) uint8, RGB.

        Returns:
            For every picture k candidates, best first: boxes_xyxy (n, k, 4) float32, corners as shares of the
            input's width and height (0 to 1); scores (n, k) float32, 0 to 1; labels (n, k) int64.
        """
        ...


def check_batch(images: NDArray[np.uint8], *, multiple: int = 32) -> None:
    """Refuses what no network reads.

    Raises:
        UsageError: `images` is not a uint8 batch of RGB pictures with sides that are multiples of `multiple`.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UsageError(
            f"The network reads batches (n, height, width, 3) of uint8 RGB; found {images.shape} of {images.dtype}."
        )
    if images.shape[1] % multiple or images.shape[2] % multiple or 0 in images.shape:
        raise UsageError(
            f"The network reads pictures whose sides are multiples of {multiple}; found height {images.shape[1]}, "
            f"width {images.shape[2]} in a batch of {images.shape[0]}."
        )


def best_candidates(logits: NDArray[np.floating], boxes_cxcywh: NDArray[np.floating], *, top_k: int) -> Candidates:
    """The best pairs of query and class, as `Runtime` returns them; `setdet.models.postprocess` without torch.

    Args:
        logits: (n, queries, classes), before the sigmoid.
        boxes_cxcywh: (n, queries, 4), centre and size as shares of the input (0 to 1).
        top_k: how many pairs, fewer where there are not as many.
    """
    pictures, queries, classes = logits.shape
    flat = logits.reshape(pictures, queries * classes).astype(np.float32)
    ranked = np.where(np.isnan(flat), np.inf, flat)  # what is no number comes first, to be noticed
    count = min(top_k, queries * classes)
    # The best by position, then by score: of tens of thousands, only those few are sorted.
    index = np.sort(np.argpartition(-ranked, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(flat, index, axis=1), axis=1, kind="stable")
    index = np.take_along_axis(index, order, axis=1)
    # From 1 / (1 + exp(-x)) in two halves, so that no large number overflows.
    best = np.take_along_axis(flat, index, axis=1)
    small = np.exp(-np.abs(best))
    scores = np.where(best >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    center, size = np.split(boxes_cxcywh.astype(np.float32), 2, axis=2)
    corners = np.concatenate([center - size / 2, center + size / 2], axis=2).clip(0, 1)
    boxes = np.take_along_axis(corners, (index // classes)[..., None], axis=1)
    return boxes, scores, (index % classes).astype(np.int64)
