"""Whether scores mean what they say: of the detections with a score near 0.7, are 7 in 10 right?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Bin:
    """Detections of nearly the same score.

    Attributes:
        low, high: scores from here up to there, 0 to 1; the last bin has 1.
        count: how many there are.
        score: their mean score; None without any.
        right: the share of them that is right; None without any.
    """

    low: float
    high: float
    count: int
    score: float | None
    right: float | None


@dataclass(frozen=True)
class Calibration:
    """Scores against being right.

    Attributes:
        bins: of equal width, from 0 to 1.
        error: expected calibration error (Guo et al. 2017, eq. 3), the mean over the detections of |share that is
            right − mean score| in their bin, 0 to 1; None without detections.
        excess: mean score − share that is right, −1 to 1: above 0 the scores promise too much; None without any.
        count: detections.
    """

    bins: tuple[Bin, ...]
    error: float | None
    excess: float | None
    count: int


def calibration(
    scores: NDArray[np.float32], right: NDArray[np.bool_] | NDArray[np.float32], *, bins: int = 10
) -> Calibration:
    """Compares scores with how often they are right.

    Args:
        scores: (n,) 0 to 1.
        right: (n,) whether each detection is, or how much, 0 to 1.
        bins: how many.
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, scores.astype(np.float64), side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    divisor = np.maximum(counts, 1)
    score = np.bincount(place, weights=scores, minlength=bins) / divisor
    share = np.bincount(place, weights=right, minlength=bins) / divisor
    n = len(scores)
    return Calibration(
        bins=tuple(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                count=int(counts[index]),
                score=float(score[index]) if counts[index] else None,
                right=float(share[index]) if counts[index] else None,
            )
            for index in range(bins)
        ),
        error=float((counts * np.abs(share - score)).sum() / n) if n else None,
        excess=float((counts * (score - share)).sum() / n) if n else None,
        count=n,
    )
