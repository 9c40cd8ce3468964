"""AP against pycocotools, and precision and recall on constructed cases."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.metrics.coco import CocoMetrics, coco_metrics
from setdet.metrics.curves import class_curves, operating_point

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
        boxes_xyxy_px=boxes[order], scores=scores[order], labels=labels[order], class_names=NAMES, image_size=(SIZE, SIZE)
    )


def random_case(
    seed: int, *, pictures: int = 12, most: int = 6, crowd: float = 0.0, many: int = 0, ties: bool = False
) -> tuple[list[Record], list[Detections]]:
    """Truth, and detections that are jittered truth among noise."""
    rng = np.random.default_rng(seed)
    records, found = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, most + 1))
        corner, side = rng.uniform(0, 140, (count, 2)), rng.uniform(4, 60, (count, 2)) * rng.choice([0.3, 1, 2], (count, 1))
        boxes = np.concatenate([corner, np.minimum(corner + side, SIZE)], axis=1).astype(np.float32)
        labels = rng.integers(0, 2, count)  # the third class has no box
        records.append(record(boxes, labels, rng.random(count) < crowd))
        noise = int(rng.integers(0, 6)) + many
        corner, side = rng.uniform(0, 140, (noise, 2)), rng.uniform(4, 60, (noise, 2))
        noise_boxes = np.concatenate([corner, corner + side], axis=1)
        guessed = np.concatenate([boxes + rng.normal(0, 3, boxes.shape), noise_boxes])
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 1)
        scores = rng.random(count + noise)
        scores = np.round(scores, 1) if ties else scores
        guessed_labels = np.concatenate([labels, rng.integers(0, 3, noise)])
        found.append(detections(guessed.astype(np.float32), guessed_labels, scores.astype(np.float32)))
    return records, found


def by_pycocotools(records: list[Record], found: list[Detections]) -> NDArray[np.float64]:
    """The twelve figures, −1 where undefined."""
    annotations, results = [], []
    for image, one in enumerate(records, start=1):
        for box, label, crowd in zip(one.boxes_xyxy_px.tolist(), one.labels, one.crowd, strict=True):
            x, y, w, h = box[0], box[1], box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
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
    return np.asarray(evaluation.stats)


def assert_equal_to_pycocotools(ours: CocoMetrics, theirs: NDArray[np.float64]) -> None:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
    for name, expected in zip(names, theirs, strict=False):
        value = getattr(ours, name)
        if expected == -1:
            assert value is None, name
        else:
            assert value == pytest.approx(expected, abs=1e-6), name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "kind", [{}, {"crowd": 0.4}, {"many": 120, "pictures": 4}, {"ties": True}, {"pictures": 1}, {"most": 0}]
)
def test_ap_equals_pycocotools(seed: int, kind: dict[str, float]) -> None:
    records, found = random_case(seed, **kind)  # type: ignore[arg-type]
    assert_equal_to_pycocotools(coco_metrics(records, found, NAMES), by_pycocotools(records, found))


def test_ap_equals_pycocotools_where_nothing_is_found() -> None:
    records, _ = random_case(1)
    blind = [detections(np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)) for _ in records]
    ours = coco_metrics(records, blind, NAMES)
    assert_equal_to_pycocotools(ours, by_pycocotools(records, blind))
    assert ours.ap == 0


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
