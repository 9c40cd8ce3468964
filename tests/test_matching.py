"""Matching, overlaps and calibration against slow versions that follow the definitions word by word."""

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask

from setdet.metrics.calibration import calibration
from setdet.metrics.matching import match, overlap


def slow_match(
    overlaps: NDArray[np.float64], crowd: NDArray[np.bool_], *, threshold: float, ignored: NDArray[np.bool_]
) -> list[int]:
    """COCO's: among free boxes that overlap enough the one that does most, those to be found before the ignored."""
    free, taken = [True] * len(crowd), []
    for row in overlaps:
        best = -1
        for box, value in enumerate(row):
            if not free[box] or value < threshold:
                continue
            if best < 0 or (not ignored[box], value) > (not ignored[best], row[best]):
                best = box
        if best >= 0 and not crowd[best]:
            free[best] = False
        taken.append(best)
    return taken


@pytest.mark.parametrize("seed", range(20))
def test_matching_is_cocos_at_every_threshold_and_way_of_ignoring(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m, ways = rng.integers(0, 30), rng.integers(0, 8), 3
    overlaps = np.round(rng.random((n, m)), 2)  # so that some are equal
    crowd = rng.random(m) < 0.2
    ignored = (rng.random((ways, m)) < 0.3) | crowd
    thresholds = np.array([0.5, 0.1, 0.95])
    taken = match(overlaps, crowd, thresholds=thresholds, ignored=ignored)
    assert taken.shape == (3, ways, n)
    for row, threshold in enumerate(thresholds):
        for way in range(ways):
            expected = slow_match(overlaps, crowd, threshold=threshold, ignored=ignored[way])
            assert taken[row, way].tolist() == expected


def test_overlap_is_pycocotools() -> None:
    rng = np.random.default_rng(0)

    def boxes(count: int) -> NDArray[np.float32]:
        corner = rng.uniform(0, 80, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(1, 60, (count, 2))], axis=1).astype(np.float32)

    def sides(corners: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = corners.astype(np.float64)
        return np.concatenate([wide[:, :2], wide[:, 2:] - wide[:, :2]], axis=1)

    found, truth, crowd = boxes(50), boxes(20), rng.random(20) < 0.3
    expected = mask.iou(sides(found), sides(truth), crowd.astype(np.uint8).tolist())
    np.testing.assert_allclose(overlap(found, truth, crowd), expected, atol=1e-12)


def test_boxes_without_an_area_overlap_nothing() -> None:
    point = np.array([[5, 5, 5, 5]], dtype=np.float32)
    assert overlap(point, point, np.array([False])).tolist() == [[0.0]]
    assert overlap(point[:0], point, np.array([False])).shape == (0, 1)


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_calibration_error_is_the_definition(bins: int) -> None:
    rng = np.random.default_rng(bins)
    scores = rng.random(500).astype(np.float32)
    right = rng.random(500) < scores**2
    measured = calibration(scores, right, bins=bins)
    error = 0.0
    for number, one in enumerate(measured.bins):
        inside = [i for i in range(500) if number / bins <= scores[i] < (number + 1) / bins]
        assert one.count == len(inside)
        if inside:
            score, share = np.mean([float(scores[i]) for i in inside]), np.mean([right[i] for i in inside])
            assert (one.score, one.right) == (pytest.approx(score), pytest.approx(share))
            error += len(inside) / 500 * abs(share - score)
    assert measured.error == pytest.approx(error)
    assert measured.excess == pytest.approx(scores.mean() - right.mean(), abs=1e-6)


def test_honest_scores_have_no_error() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(200_000).astype(np.float32)
    found = calibration(scores, rng.random(200_000) < scores)
    assert found.error == pytest.approx(0, abs=0.01) and found.excess == pytest.approx(0, abs=0.01)
    assert sum(one.count for one in found.bins) == found.count == 200_000


def test_boasting_is_an_excess() -> None:
    found = calibration(np.full(10, 0.95, dtype=np.float32), np.arange(10) < 5)
    assert found.error == found.excess == pytest.approx(0.45)
    assert [one.count for one in found.bins] == [0] * 9 + [10]
    assert found.bins[-1].right == 0.5 and found.bins[0].right is None


def test_scores_on_the_edges_have_a_bin() -> None:
    found = calibration(np.array([0.0, 0.1, 1.0], dtype=np.float32), np.array([False, False, True]))
    assert [one.count for one in found.bins] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]


def test_without_detections_nothing_is_calibrated() -> None:
    found = calibration(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.bool_))
    assert (found.error, found.excess, found.count) == (None, None, 0)
