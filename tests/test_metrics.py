"""AP against pycocotools, and precision and recall on constructed cases."""

import contextlib
import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cases import NAMES, detections, random_case, record
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.errors import UsageError
from setdet.metrics.coco import CocoMetrics, coco_metrics
from setdet.metrics.curves import class_curves, operating_point


def by_pycocotools(records: list[Record], found: list[Detections]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The twelve figures, and (AP, AP50) of each class; −1 where undefined."""
    annotations, results = [], []
    for image, one in enumerate(records, start=1):
        areas = [None] * len(one.labels) if one.areas_px is None else one.areas_px.tolist()
        for box, label, crowd, area in zip(one.boxes_xyxy_px.tolist(), one.labels, one.crowd, areas, strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h if area is None else area,
                    "iscrowd": int(crowd),
                }
            )
    for image, other in enumerate(found, start=1):
        for box, label, score in zip(other.boxes_xyxy_px.tolist(), other.labels, other.scores, strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": int(label) + 1, "bbox": bbox, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(records) + 1)],
            "annotations": annotations,
            "categories": [{"id": index, "name": name} for index, name in enumerate(NAMES, start=1)],
        }
        truth.createIndex()
        if results:
            loaded = truth.loadRes(results)
        else:
            loaded = COCO()
            loaded.dataset = {**truth.dataset, "annotations": []}
            loaded.createIndex()
        evaluation = COCOeval(truth, loaded, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, 2]  # (IoU, recall, class)
    per_class = [(precision[..., k].mean(), precision[0, :, k].mean()) for k in range(len(NAMES))]
    return np.asarray(evaluation.stats), np.asarray(per_class)


def assert_same(value: float | None, expected: float, what: str) -> None:
    if expected == -1:
        assert value is None, what
    else:
        assert value == pytest.approx(expected, abs=1e-6), what


def assert_equal_to_pycocotools(records: list[Record], found: list[Detections]) -> CocoMetrics:
    ours, (theirs, per_class) = coco_metrics(records, found, NAMES), by_pycocotools(records, found)
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    for name, expected in zip(names, theirs, strict=False):  # theirs goes on with recall by area
        assert_same(getattr(ours, name), expected, name)
    for one, (ap, ap50) in zip(ours.per_class, per_class, strict=True):
        assert_same(one.ap, ap, one.name)
        assert_same(one.ap50, ap50, one.name)
    return ours


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"crowd": 0.4},
        {"crowd": 1.0},
        {"many": 120, "pictures": 4},
        {"many": 120, "pictures": 3, "classes": 1, "ties": True},
        {"ties": True, "crowd": 0.2},
        {"pictures": 1},
        {"classes": 1},
        {"most": 0},
        {"flat": 0.3},
    ],
    ids=str,
)
def test_ap_equals_pycocotools(seed: int, kind: dict[str, float]) -> None:
    assert_equal_to_pycocotools(*random_case(seed, **kind))  # type: ignore[arg-type]


def test_ap_equals_pycocotools_on_boxes_of_every_size() -> None:
    for scale in (0.1, 1.0, 5.0):
        records, found = random_case(6)
        larger = [dataclasses.replace(one, boxes_xyxy_px=one.boxes_xyxy_px * np.float32(scale)) for one in records]
        found = [dataclasses.replace(one, boxes_xyxy_px=one.boxes_xyxy_px * np.float32(scale)) for one in found]
        metrics = assert_equal_to_pycocotools(larger, found)
        assert (metrics.ap_large is None) == (scale < 1)


@pytest.mark.parametrize("crowd", [0.0, 0.3])
def test_ap_by_size_goes_by_the_areas_of_the_segments(crowd: float) -> None:
    records, found = random_case(9, pictures=30, crowd=crowd)
    rng = np.random.default_rng(0)
    segments = [
        dataclasses.replace(
            one,
            areas_px=rng.uniform(0.1, 1, len(one.labels))
            * np.prod(np.diff(one.boxes_xyxy_px.reshape(-1, 2, 2), axis=1), axis=(1, 2)),
        )
        for one in records
    ]
    by_boxes, by_segments = coco_metrics(records, found, NAMES), assert_equal_to_pycocotools(segments, found)
    assert by_segments.ap == by_boxes.ap
    assert by_segments.ap_small != by_boxes.ap_small and by_segments.ap_medium != by_boxes.ap_medium


NOTHING = detections(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))


def test_a_blind_detector_has_zero() -> None:
    records, _ = random_case(1)
    blind = [NOTHING for _ in records]
    metrics = assert_equal_to_pycocotools(records, blind)
    assert metrics.ap == metrics.ar100 == 0
    assert [one.ap for one in metrics.per_class] == [0, 0, None]
    point = operating_point(class_curves(records, blind, NAMES))
    assert point is not None and (point.precision, point.recall, point.f1) == (0.0, 0.0, 0.0)


def test_nothing_there_and_nothing_found_is_undefined() -> None:
    empty = record(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64))
    metrics = assert_equal_to_pycocotools([empty], [NOTHING])
    assert metrics.ap is None and metrics.ar100 is None and [one.boxes for one in metrics.per_class] == [0, 0, 0]


def perfect(records: list[Record]) -> list[Detections]:
    return [detections(one.boxes_xyxy_px, one.labels) for one in records]


def test_a_perfect_detector_has_one_everywhere() -> None:
    records, _ = random_case(2)
    metrics = coco_metrics(records, perfect(records), NAMES)
    assert metrics.ap == metrics.ap50 == metrics.ar100 == pytest.approx(1.0)
    assert [one.ap for one in metrics.per_class[:2]] == [pytest.approx(1.0)] * 2
    assert metrics.per_class[2].ap is None and metrics.per_class[2].boxes == 0
    point = operating_point(class_curves(records, perfect(records), NAMES))
    assert point is not None and (point.precision, point.recall, point.f1) == (1.0, 1.0, 1.0)


def test_a_shifted_detector_is_right_up_to_its_overlap() -> None:
    boxes, labels = np.array([[0, 0, 100, 100]], dtype=np.float32), np.array([1])
    shifted = detections(boxes + np.array([20, 0, 20, 0], dtype=np.float32), labels)  # IoU 80/120
    metrics = coco_metrics([record(boxes, labels)], [shifted], NAMES)
    assert (metrics.ap, metrics.ap50, metrics.ap75) == (pytest.approx(0.4), pytest.approx(1.0), 0.0)


def test_a_duplicate_costs_the_precision_after_it() -> None:
    boxes, labels = np.array([[0, 0, 50, 50], [100, 100, 150, 150]], dtype=np.float32), np.array([1, 1])
    scores = np.array([0.9, 0.8, 0.7], dtype=np.float32)
    found = detections(boxes[[0, 0, 1]], np.array([1, 1, 1]), scores)
    metrics = coco_metrics([record(boxes, labels)], [found], NAMES)
    # Recall 0 to 0.50 (51 of COCO's 101 points) at precision 1, the rest at 2 of 3.
    assert metrics.ap == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_duplicates_cost_precision_and_no_recall() -> None:
    boxes, labels = np.array([[10, 10, 60, 60]], dtype=np.float32), np.array([1])
    twice = detections(np.concatenate([boxes, boxes]), np.array([1, 1]), np.array([0.9, 0.8], dtype=np.float32))
    curves = class_curves([record(boxes, labels)], [twice], NAMES)
    low, high = operating_point(curves, 0.5), operating_point(curves, 0.85)
    assert low is not None and (low.precision, low.recall) == (0.5, 1.0)
    assert high is not None and (high.precision, high.recall) == (1.0, 1.0)
    best = operating_point(curves)
    assert best is not None and best.f1 == 1.0 and 0.8 < best.confidence <= 0.9


def test_the_wrong_class_and_a_shifted_box_find_nothing() -> None:
    boxes, labels = np.array([[10, 10, 60, 60]], dtype=np.float32), np.array([1])
    for wrong in (detections(boxes, np.array([0])), detections(boxes + 40, labels)):
        point = operating_point(class_curves([record(boxes, labels)], [wrong], NAMES), 0.5)
        assert point is not None and (point.precision, point.recall, point.f1) == (0.0, 0.0, 0.0)


def test_a_detection_inside_a_crowd_counts_for_nothing() -> None:
    boxes = np.array([[0, 0, 100, 100], [120, 120, 160, 160]], dtype=np.float32)
    truth = record(boxes, np.array([0, 0]), np.array([True, False]))
    inside = np.array([[10, 10, 30, 30], [120, 120, 160, 160]], dtype=np.float32)
    point = operating_point(class_curves([truth], [detections(inside, np.array([0, 0]))], NAMES), 0.5)
    assert point is not None and (point.precision, point.recall) == (1.0, 1.0)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    records, found = random_case(3)
    assert coco_metrics(records, found, NAMES) == coco_metrics(records[::-1], found[::-1], NAMES)


def test_without_any_box_there_is_no_operating_point() -> None:
    records, found = random_case(4, most=0)
    assert operating_point(class_curves(records, found, NAMES)) is None


def test_the_names_and_order_of_classes_do_not_matter() -> None:
    records, found = random_case(5, crowd=0.2)
    new_label = np.array([2, 0, 1])
    names = ("b", "c", "a")
    renamed = [dataclasses.replace(one, labels=new_label[one.labels]) for one in records]
    refound = [dataclasses.replace(one, labels=new_label[one.labels], class_names=names) for one in found]
    before, after = coco_metrics(records, found, NAMES), coco_metrics(renamed, refound, names)
    assert (after.ap, after.ar10) == (pytest.approx(before.ap), pytest.approx(before.ar10))
    for old, new in enumerate(new_label):
        assert after.per_class[new] == dataclasses.replace(before.per_class[old], name=names[new])
    one, other = (operating_point(class_curves(*case)) for case in ((records, found, NAMES), (renamed, refound, names)))
    assert one is not None and other is not None
    assert (other.f1, other.confidence) == (pytest.approx(one.f1), one.confidence)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("crowd", [0.0, 0.4])
def test_the_area_under_the_curve_is_ap50(seed: int, crowd: float) -> None:
    records, found = random_case(seed, crowd=crowd)
    expected = coco_metrics(records, found, NAMES).per_class
    for curve, one in zip(class_curves(records, found, NAMES), expected, strict=True):
        assert curve.boxes == one.boxes
        if one.ap50 is not None:
            precision, recall = curve.precision_recall()
            at = np.searchsorted(recall, np.linspace(0, 1, 101))
            best_from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
            assert best_from_here[at].mean() == pytest.approx(one.ap50, abs=1e-6)


def test_a_score_is_kept_at_a_confidence_equal_to_it() -> None:
    boxes, labels = np.array([[10, 10, 60, 60]], dtype=np.float32), np.array([1])
    for score in (0.1, 0.7, 0.9):  # all but 0.1 are a little less in float32
        found = detections(boxes, labels, np.array([score], dtype=np.float32))
        point = operating_point(class_curves([record(boxes, labels)], [found], NAMES), score)
        assert point is not None and point.recall == len(found.above(score)) == 1


def test_the_best_confidence_is_the_one_with_the_best_mean_f1() -> None:
    curves = class_curves(*random_case(7, pictures=30), NAMES)
    best = operating_point(curves)
    assert best is not None
    others = [operating_point(curves, confidence) for confidence in np.linspace(0, 1, 101)]
    assert best.f1 == pytest.approx(max(other.f1 for other in others if other is not None), abs=0.02)
    assert all(best.f1 >= other.f1 for other in others if other is not None)
    precision, recall, f1 = (np.mean(figures) for figures in list(zip(*best.per_class, strict=True))[1:])
    assert (precision, recall, f1) == (
        pytest.approx(best.precision),
        pytest.approx(best.recall),
        pytest.approx(best.f1),
    )


@pytest.mark.parametrize("measure", [coco_metrics, class_curves])
def test_what_does_not_belong_together_is_refused(measure: Callable[..., object]) -> None:
    records, found = random_case(8, most=3)
    with pytest.raises(UsageError, match="12 records and 11 detections"):
        measure(records, found[1:], NAMES)
    with pytest.raises(UsageError, match="its detections are of the classes crack, dent, stain"):
        measure(records, found, ("crack", "dent", "rust"))
    with pytest.raises(UsageError, match="labels from 5 to 5, but 3 classes"):
        measure([record(np.array([[1, 1, 9, 9]], dtype=np.float32), np.array([5]))], [NOTHING], NAMES)
