"""Which detection finds which box: overlaps of all pairs, and COCO's greedy matching at many settings at once."""

import numpy as np
from numpy.typing import NDArray


def overlap(found: NDArray[np.float32], truth: NDArray[np.float32], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of all pairs; with a crowd box, the share of the detection that lies inside it, as in COCO.

    Args:
        found: (n, 4) corners, in the units of `truth`.
        truth: (m, 4) corners.
        crowd: (m,) which of the true boxes stand for a group.

    Returns:
        (n, m), 0 to 1; 0 where a pair has no area.
    """
    a, b = found[:, None].astype(np.float64), truth[None].astype(np.float64)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    intersection = sides.prod(axis=-1)
    area_a, area_b = (a[..., 2:] - a[..., :2]).prod(axis=-1), (b[..., 2:] - b[..., :2]).prod(axis=-1)
    whole = np.where(crowd, area_a, area_a + area_b - intersection)
    return intersection / np.maximum(whole, np.finfo(np.float64).tiny)


def match(
    overlaps: NDArray[np.float64],
    crowd: NDArray[np.bool_],
    *,
    thresholds: NDArray[np.float64],
    ignored: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Matches the detections of one class on one picture to its true boxes, by COCO's rules.

    Best score first, each detection takes the free box that it overlaps most; where none is left that counts, one
    that is ignored. A crowd box is never used up. As each detection chooses after the better ones, what the first k
    find does not depend on how many follow.

    Args:
        overlaps: (n, m), detections (best first) and true boxes of the class.
        crowd: (m,) which true boxes stand for a group.
        thresholds: (t,) least overlaps that find a box, above 0.
        ignored: (s, m) true boxes that are not to be found, crowds among them, for each of s ways to look at them.

    Returns:
        (t, s, n) the index of the box that each detection took; −1: none.
    """
    taken = np.full((len(thresholds), len(ignored), len(overlaps)), -1, dtype=np.int64)
    free = np.ones((len(thresholds), *ignored.shape), dtype=np.bool_)
    near = overlaps >= thresholds.min()
    at, way = np.ogrid[: len(thresholds), : len(ignored)]
    for row in np.flatnonzero(near.any(axis=1)):
        columns = np.flatnonzero(near[row])
        values = overlaps[row, columns]
        enough = values >= thresholds[:, None, None]
        # A box that counts is worth more than any that does not: overlaps end at 1.
        rank = np.where(enough & free[..., columns], values + 2.0 * ~ignored[:, columns], -1.0)
        best = rank.argmax(axis=-1)
        box = np.where(rank[at, way, best] >= 0, columns[best], -1)
        taken[..., row] = box
        used = (box >= 0) & ~crowd[box]
        times, ways = np.nonzero(used)
        free[times, ways, box[times, ways]] = False
    return taken
