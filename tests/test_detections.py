"""`Detections`, and its way to COCO, YOLO and CSV and back."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setdet.detections import Detections, from_coco, from_csv, from_yolo, to_coco, to_csv, to_yolo
from setdet.errors import DataError, UsageError
from setdet.weights.classes import COCO_CLASSES, category_ids

NAMES = ("crazing", "rolled-in, scale", 'a "quoted" name')


def some(count: int, *, seed: int = 0, source: str = "a.png", size: tuple[int, int] = (300, 200)) -> Detections:
    rng = np.random.default_rng(seed)
    height, width = size
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (width, height)
    return Detections.from_arrays(
        boxes_xyxy_px=corners.reshape(-1, 4),
        scores=rng.random(count),
        labels=rng.integers(0, len(NAMES), count),
        class_names=NAMES,
        image_size=size,
        source=source,
    )


def assert_same(a: Detections, b: Detections, *, pixels: float = 0.0) -> None:
    np.testing.assert_allclose(a.boxes_xyxy_px, b.boxes_xyxy_px, rtol=0, atol=pixels)
    np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.class_names, a.image_size, a.source) == (b.class_names, b.image_size, b.source)


def test_from_arrays_sorts_and_converts() -> None:
    found = Detections.from_arrays(
        boxes_xyxy_px=[[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]],
        scores=[0.2, 0.9, 0.2],
        labels=[0, 1, 2],
        class_names=NAMES,
        image_size=(4, 4),
    )
    assert found.labels.tolist() == [1, 0, 2]  # equal scores keep their order
    assert found.boxes_xyxy_px[0].tolist() == [1, 1, 2, 2]
    assert (found.boxes_xyxy_px.dtype, found.scores.dtype, found.labels.dtype) == (np.float32, np.float32, np.int64)


def test_nothing_found_has_the_shapes_of_nothing() -> None:
    found = Detections.from_arrays(boxes_xyxy_px=[], scores=[], labels=[], class_names=NAMES, image_size=(4, 4))
    assert len(found) == 0 and found.boxes_xyxy_px.shape == (0, 4)
    assert len(found.above(0.5)) == 0 and found.to_dict()["detections"] == []


def test_above_keeps_the_threshold_itself() -> None:
    found = Detections.from_arrays(
        boxes_xyxy_px=np.zeros((3, 4)), scores=[0.75, 0.5, 0.25], labels=[0, 1, 2], class_names=NAMES, image_size=(4, 4)
    )
    assert found.above(0.5).labels.tolist() == [0, 1]


def test_to_dict_is_json() -> None:
    values = json.loads(json.dumps(some(3).to_dict()))
    assert (values["source"], values["height"], values["width"]) == ("a.png", 300, 200)
    assert len(values["detections"]) == 3 and set(values["detections"][0]) == {"class", "label", "score", "box_xyxy_px"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"boxes_xyxy_px": np.zeros((1, 4), np.float32)}, r"need boxes of shape \(2, 4\)"),
        ({"labels": np.zeros(3, np.int64)}, r"labels of shape \(2,\)"),
        ({"scores": np.array([0.1, 0.2], np.float32)}, "falling score"),
        ({"scores": np.array([np.nan, 0.2], np.float32)}, "finite"),
        ({"boxes_xyxy_px": np.full((2, 4), np.inf, np.float32)}, "finite"),
        ({"labels": np.array([0, 3])}, "labels from 0 to 3 but 3 class names"),
        ({"labels": np.array([-1, 0])}, "labels from -1"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, object], message: str) -> None:
    values = {
        "boxes_xyxy_px": np.zeros((2, 4), np.float32),
        "scores": np.array([0.2, 0.1], np.float32),
        "labels": np.array([0, 1]),
        "class_names": NAMES,
        "image_size": (4, 4),
    }
    with pytest.raises(UsageError, match=message):
        Detections(**(values | changed))  # type: ignore[arg-type]


def test_from_arrays_counts() -> None:
    with pytest.raises(UsageError, match="1 boxes, 2 scores and 1 labels"):
        Detections.from_arrays(
            boxes_xyxy_px=[[0, 0, 1, 1]], scores=[0.1, 0.2], labels=[0], class_names=NAMES, image_size=(4, 4)
        )


@settings(max_examples=25)
@given(counts=st.lists(st.integers(0, 5), max_size=4), seed=st.integers(0, 99))
def test_coco_and_csv_come_back(counts: list[int], seed: int) -> None:
    given_ones = [some(count, seed=seed + i, source=f"{i}, ä.png") for i, count in enumerate(counts)]
    for before, after in zip(given_ones, from_coco(json.loads(json.dumps(to_coco(given_ones)))), strict=True):
        assert_same(before, after, pixels=1e-4)
    for before, after in zip(given_ones, from_csv(to_csv(given_ones), class_names=NAMES), strict=True):
        assert_same(before, after)


@settings(max_examples=25)
@given(count=st.integers(0, 5), seed=st.integers(0, 99))
def test_yolo_comes_back(count: int, seed: int) -> None:
    before = some(count, seed=seed)
    after = from_yolo(to_yolo(before), class_names=NAMES, image_size=before.image_size, source="a.png")
    assert_same(before, after, pixels=1e-4)


def test_formats_by_hand() -> None:
    found = Detections.from_arrays(
        boxes_xyxy_px=[[10, 20, 30, 60]],
        scores=[0.5],
        labels=[1],
        class_names=("a", "b"),
        image_size=(100, 200),
        source="p.png",
    )
    assert to_yolo(found) == "1 0.1 0.4 0.1 0.4 0.5\n"
    assert to_csv([found]) == "source,height,width,class,score,x1,y1,x2,y2\np.png,100,200,b,0.5,10,20,30,60\n"
    (annotation,) = to_coco([found])["annotations"]
    assert annotation["bbox"] == [10, 20, 20, 40] and annotation["area"] == 800
    assert (annotation["image_id"], annotation["category_id"], annotation["score"]) == (1, 2, 0.5)


def test_a_picture_without_detections_has_its_line() -> None:
    assert to_csv([some(0, source="clean.png")]).splitlines()[1:] == ["clean.png,300,200,,,,,,"]


def test_cocos_own_classes_get_cocos_own_ids() -> None:
    assert category_ids(NAMES) == (1, 2, 3)
    ids = category_ids(COCO_CLASSES)
    assert (ids[0], ids[11], ids[-1], len(ids)) == (1, 13, 90, 80)  # person, stop sign after a gap, toothbrush
    found = Detections.from_arrays(
        boxes_xyxy_px=[[0, 0, 1, 1], [0, 0, 2, 2]],
        scores=[0.9, 0.8],
        labels=[11, 79],
        class_names=COCO_CLASSES,
        image_size=(4, 4),
        source="a.png",
    )
    document = to_coco([found], category_ids=ids)
    assert [one["category_id"] for one in document["annotations"]] == [13, 90]
    assert {one["id"]: one["name"] for one in document["categories"]}[90] == "toothbrush"
    assert_same(from_coco(document)[0], found)
    document["categories"].reverse()  # labels are in the order of the ids, however they are listed
    assert_same(from_coco(document)[0], found)


def test_coco_needs_one_list_of_classes() -> None:
    other = Detections.from_arrays(
        boxes_xyxy_px=[], scores=[], labels=[], class_names=("x",), image_size=(4, 4), source="b.png"
    )
    with pytest.raises(UsageError, match=r"b\.png: its classes are x"):
        to_coco([some(1), other])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "line 1: expected 'label center_x"),
        ("0 0.5 0.5 0.1 0.1 0.5\nx 0 0 0 0 0", "line 2: expected"),
        ("3 0.5 0.5 0.1 0.1 0.5", "the label 3 is not one of the 3 classes"),
    ],
)
def test_broken_yolo(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_yolo(text, class_names=NAMES, image_size=(10, 10), source="a.txt")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "expected the header"),
        ("a,b", "found 'a,b'"),
        ("HEADER\np.png,1,2,crazing,0.5,1,2,3", "line 2"),
        ("HEADER\np.png,1,2,crazing,high,1,2,3,4", "line 2"),
        ("HEADER\np.png,1,2,crasing,0.5,1,2,3,4", "unknown class 'crasing'. Did you mean 'crazing'?"),
    ],
)
def test_broken_csv(lines: str, message: str) -> None:
    text = lines.replace("HEADER", "source,height,width,class,score,x1,y1,x2,y2")
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        from_csv(text, class_names=NAMES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.pop("images"), "key 'images' is missing"),
        (lambda document: document["annotations"][0].pop("score"), "key 'score' is missing"),
        (lambda document: document["annotations"][0].update(image_id=9), "image 9"),
        (lambda document: document["annotations"][0].update(category_id=9), "category 9"),
        (lambda document: document["annotations"][0].update(bbox=[1, 2]), "does not fit"),
    ],
)
def test_broken_coco(change: object, message: str) -> None:
    document = to_coco([some(2)])
    change(document)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        from_coco(document)
