"""What the pages of the error analysis say and draw, of detectors whose mistakes are known."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cases import NAMES, SIZE, detections, random_case, record
from setdet.analyze.errors import CONFIDENCES, ErrorAnalysis
from setdet.analyze.findings import sections, write_errors
from setdet.analyze.kinds import KINDS, MISSED, RIGHT
from setdet.analyze.ledger import Kind, Ledger
from setdet.analyze.pictures import draw_errors
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.metrics.curves import RECALLS

# Two boxes of one class and one of another, far apart.
BOXES = np.array([[10, 10, 60, 60], [10, 110, 60, 160], [100, 100, 180, 180]], dtype=np.float32)
LABELS = np.array([0, 0, 1])
TRUTH = record(BOXES, LABELS)
SHIFT = np.array([30, 0, 30, 0], dtype=np.float32)  # IoU 20/80 of the small boxes, 50/110 of the large one


def analysis(*pairs: tuple[Record, Detections]) -> ErrorAnalysis:
    ledger = Ledger(NAMES)
    for truth, found in pairs:
        ledger.add(truth, found)
    return ErrorAnalysis(entries=ledger.entries(), records=tuple(truth for truth, _ in pairs))


def found_in(boxes: NDArray[np.float32], labels: NDArray[np.int64], scores: list[float] | None = None) -> ErrorAnalysis:
    given = None if scores is None else np.array(scores, dtype=np.float32)
    return analysis((TRUTH, detections(boxes, labels, given)))


PERFECT = found_in(BOXES, LABELS)
BLIND = found_in(BOXES[:0], LABELS[:0])


def titles(one: ErrorAnalysis) -> dict[str, str]:
    return {chart.name: chart.title for section in sections(one) for chart in section.charts}


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (PERFECT, "No kind of error costs any AP50"),
        (BLIND, "Missed costs the most: without it, AP50 would be 1.000 higher"),
        (found_in(BOXES + SHIFT, LABELS), "Bad box costs the most: without it, AP50 would be 1.000 higher"),
        (found_in(BOXES, 1 - LABELS), "Wrong class costs the most: without it, AP50 would be 1.000 higher"),
    ],
    ids=["perfect", "blind", "shifted", "mislabelled"],
)
def test_the_costliest_kind_is_named(one: ErrorAnalysis, expected: str) -> None:
    assert titles(one)["cost"] == expected


def test_which_side_is_the_heavier_is_said() -> None:
    assert titles(PERFECT)["sides"] == "Nothing is invented, nothing is lost"
    assert titles(BLIND)["sides"] == "Boxes that are not found cost more AP50 than wrong detections"
    twice = found_in(BOXES[[0, 0, 1, 2]], LABELS[[0, 0, 1, 2]], [0.9, 0.8, 0.7, 0.6])
    assert titles(twice)["sides"] == "Wrong detections cost more AP50 than boxes that are not found"


def test_scores_that_promise_too_little_or_too_much_are_told_apart() -> None:
    assert "right as often as its scores say" in titles(PERFECT)["calibration"]
    modest = found_in(BOXES, LABELS, [0.4, 0.4, 0.4])
    assert "right more often than its scores say, by 0.60" in titles(modest)["calibration"]
    assert "error 0.600" in titles(modest)["calibration"]
    wrong = np.array([[100, 10, 130, 40], [140, 10, 170, 40]], dtype=np.float32)
    boasting = found_in(np.concatenate([BOXES, wrong]), np.append(LABELS, [2, 2]), [0.9] * 5)
    assert "right less often than its scores say, by 0.30" in titles(boasting)["calibration"]
    assert titles(BLIND)["calibration"] == "Nothing is found from the lowest score up"


def test_groups_of_few_boxes_are_not_called_the_weakest() -> None:
    assert titles(PERFECT)["sizes"] == "AP50 by size"
    small = record(BOXES / 4, LABELS)
    pairs = [(TRUTH, detections(BOXES, LABELS))] * 10 + [(small, detections(BOXES[:0], LABELS[:0]))] * 10
    assert titles(analysis(*pairs))["sizes"] == "AP50 by size: weakest on boxes that are small"


@pytest.mark.parametrize("seed", range(3))
def test_curves_are_what_counting_gives(seed: int) -> None:
    one = analysis(*zip(*random_case(seed, pictures=15), strict=True))
    f1, precision = one.f1_curves(), one.precision_curves()
    for label, name in enumerate(NAMES[:2]):
        mine = one.entries.label == label
        right = mine & (one.entries.kind == Kind.RIGHT)
        boxes = np.count_nonzero(one.entries.truth_label == label)
        for confidence, value in list(zip(CONFIDENCES, f1["per_class"][name], strict=True))[::10]:
            kept = one.entries.score >= np.float32(confidence)
            assert value == pytest.approx(2 * (right & kept).sum() / ((mine & kept).sum() + boxes))
        points = [
            ((right & kept).sum() / boxes, (right & kept).sum() / (mine & kept).sum())
            for kept in (one.entries.score >= score for score in one.entries.score[mine])
        ]
        for recall, value in list(zip(RECALLS, precision["per_class"][name], strict=True))[5::10]:
            assert value == pytest.approx(max((at for reached, at in points if reached >= recall), default=0.0))


def has(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> bool:
    return bool((picture == np.array(color, dtype=np.uint8)).all(axis=-1).any())


def test_every_kind_is_drawn_in_its_colour() -> None:
    image = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    found = detections(BOXES, LABELS)
    for kind in KINDS:
        kinds, missed = [Kind.RIGHT, kind, Kind.LEFT_OUT], np.array([False, True, False])
        drawn = draw_errors(image, TRUTH, found, kinds=kinds, missed=missed, title="one picture")
        middle = drawn.shape[1] // 2
        truth, shown = drawn[:, :middle], drawn[:, middle:]
        assert has(truth, RIGHT.color) and has(truth, MISSED.color) and not has(truth, KINDS[kind].color)
        assert has(shown, RIGHT.color) and has(shown, KINDS[kind].color) and not has(shown, MISSED.color)
    assert len({one.color for one in (RIGHT, MISSED, *KINDS.values())}) == 2 + len(KINDS)
    assert (image == 90).all()


@pytest.mark.parametrize(
    ("height", "width", "stacked"), [(100, 100, False), (3000, 2000, False), (300, 900, True), (2, 4000, True)]
)
def test_pictures_of_any_shape_stay_of_a_handy_size(height: int, width: int, stacked: bool) -> None:
    truth = replace(TRUTH, height=height, width=width, boxes_xyxy_px=BOXES[:0], labels=LABELS[:0], crowd=LABELS[:0] > 0)
    found = Detections.from_arrays(
        boxes_xyxy_px=BOXES[:0], scores=[], labels=[], class_names=NAMES, image_size=(height, width)
    )
    image = np.zeros((height, width, 3), dtype=np.uint8)
    drawn = draw_errors(image, truth, found, kinds=[], missed=np.zeros(0, dtype=np.bool_), title="a long title " * 20)
    assert max(drawn.shape) < 2000
    black = (drawn == 0).all(axis=-1)
    across, down = (1 + np.count_nonzero(np.diff(np.flatnonzero(black.any(axis=axis))) > 1) for axis in (0, 1))
    assert (across, down) == ((1, 2) if stacked else (2, 1))


def test_pages_need_nothing_else_and_names_cannot_break_them(tmp_path: Path) -> None:
    path = tmp_path / "<b>é.png"
    cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 90, dtype=np.uint8))
    names = ("<i>crack</i>", "dent & co", "ünï")
    truth = replace(TRUTH, image=path)
    ledger = Ledger(names)
    ledger.add(truth, replace(detections(BOXES[:1], LABELS[:1]), class_names=names))
    one = ErrorAnalysis(entries=ledger.entries(), records=(truth,))
    page = write_errors(tmp_path / "out", one, title="<u>t</u>", lead="l").read_text(encoding="utf-8")
    assert not any(tag in page for tag in ("<u>t", "<i>crack", "<b>é", "<script", "<link"))
    values = json.loads((tmp_path / "out" / "errors.json").read_text(encoding="utf-8"))
    assert values["confusion"]["rows_true"] == [*names, None]
    assert np.sum(values["confusion"]["counts"]) == 3
    assert all(one.meaning in page for one in (RIGHT, MISSED, *KINDS.values()))
    (worst,) = values["worst"]
    assert (worst["boxes"], worst["right"], worst["errors"]["missed"]) == (3, 1, 2)
    assert (tmp_path / "out" / worst["picture"]).is_file()
    for chart in (tmp_path / "out").glob("*.svg"):
        text = chart.read_text(encoding="utf-8")
        assert text.startswith("<svg xmlns=") and "<i>crack" not in text
