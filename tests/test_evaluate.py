"""Evaluation with a made-up predictor: what comes out, classes matched by name, and what is refused."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.errors import DataError, UsageError
from setdet.evaluate import Evaluation, evaluate, match_classes
from setdet.predict import Predictor

NAMES = ("crack", "dent", "stain")
KEYS = (
    "ap ap50 ap75 ap_small ap_medium ap_large ar1 ar10 ar100 precision recall f1 confidence per_class images boxes"
).split()

Found = list[tuple[list[float], float, int]]
"""(box, score, label) of each detection."""


class FakePredictor:
    """Finds what it is told to, and notes how it was asked."""

    class_names = NAMES

    def __init__(self, found: dict[str, Found]) -> None:
        self.found = found
        self.asked: list[dict[str, Any]] = []

    def stream(self, sources: Sequence[Path], *, threshold: float, batch_size: int) -> Iterator[Detections]:
        self.asked.append({"threshold": threshold, "batch_size": batch_size})
        for source in sources:
            found = self.found.get(os.fspath(source), [])
            yield Detections.from_arrays(
                boxes_xyxy_px=[box for box, _, _ in found],
                scores=[score for _, score, _ in found],
                labels=[label for _, _, label in found],
                class_names=NAMES,
                image_size=(200, 200),
                source=os.fspath(source),
            )


def record(name: str, *truth: tuple[list[float], int], crowd: Sequence[bool] | None = None) -> Record:
    return Record(
        image=Path(name),
        height=200,
        width=200,
        boxes_xyxy_px=np.array([box for box, _ in truth], dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for _, label in truth], dtype=np.int64),
        crowd=np.array(crowd if crowd is not None else [False] * len(truth), dtype=np.bool_),
    )


def run(predictor: FakePredictor, records: Sequence[Record], **options: Any) -> Evaluation:
    return evaluate(cast(Predictor, predictor), records, **options)


A, B, C = [0.0, 0.0, 40.0, 40.0], [50.0, 50.0, 100.0, 100.0], [100.0, 100.0, 200.0, 200.0]
RECORDS = (record("a", (A, 0), (B, 1)), record("b", (C, 0), (A, 0), crowd=[False, True]), record("c"))
HALF: dict[str, Found] = {"a": [(A, 0.9, 0)], "b": [(C, 0.8, 0), (B, 0.3, 0)]}


def test_the_figures_of_a_perfect_detector() -> None:
    perfect: dict[str, Found] = {"a": [(A, 0.9, 0), (B, 0.8, 1)], "b": [(C, 0.7, 0)]}
    evaluation = run(FakePredictor(perfect), RECORDS)
    assert evaluation.ap == evaluation.ap50 == pytest.approx(1)
    values = evaluation.to_dict()
    assert sorted(values) == sorted(KEYS)
    assert (values["precision"], values["recall"], values["f1"]) == (1, 1, 1)
    assert (values["images"], values["boxes"]) == (3, 3)
    assert values["ap_small"] is None  # no box is small
    assert [(row["name"], row["boxes"]) for row in values["per_class"]] == [("crack", 2), ("dent", 1), ("stain", 0)]


def test_figures_are_means_over_the_classes_that_have_boxes() -> None:
    values = run(FakePredictor(HALF), RECORDS).to_dict()
    assert values["ap50"] == pytest.approx(0.5)
    assert (values["precision"], values["recall"], values["f1"]) == (0.5, 0.5, 0.5)
    assert 0.3 < values["confidence"] <= 0.8
    assert values["per_class"][0] == {
        "name": "crack",
        "ap": pytest.approx(1),
        "ap50": pytest.approx(1),
        "boxes": 2,
        "precision": 1.0,
        "recall": 1.0,
        "f1": 1.0,
    }
    assert values["per_class"][2]["precision"] is None and values["per_class"][2]["ap"] is None


def test_figures_at_a_given_confidence() -> None:
    values = run(FakePredictor(HALF), RECORDS, confidence=0.85).to_dict()
    assert values["at_confidence"] == {
        "confidence": 0.85,
        "precision": 0.5,  # of the two classes, one is right and one finds nothing
        "recall": 0.25,
        "f1": pytest.approx(1 / 3),
    }
    assert values["recall"] == 0.5


def test_without_a_box_all_figures_are_null() -> None:
    values = run(FakePredictor({"c": [(A, 0.9, 0)]}), RECORDS[2:], confidence=0.5).to_dict()
    at = values.pop("at_confidence")
    assert at == {"confidence": 0.5, "precision": None, "recall": None, "f1": None}
    assert {key for key, value in values.items() if value is None} == set(KEYS) - {"per_class", "images", "boxes"}
    assert all(value is None for key, value in values["per_class"][0].items() if key not in ("name", "boxes"))


def test_pictures_of_another_size_than_declared_are_refused() -> None:
    with pytest.raises(DataError, match=r"a: the annotations declare 100×200 pixels .* has 200×200"):
        run(FakePredictor({}), [replace(RECORDS[0], width=100)])


def test_the_values_are_strict_json() -> None:
    for records in (RECORDS, RECORDS[2:]):
        values = run(FakePredictor(HALF), records, confidence=0.5).to_dict()
        assert json.loads(json.dumps(values, allow_nan=False)) == values


def test_every_candidate_is_measured_in_batches() -> None:
    predictor = FakePredictor(HALF)
    run(predictor, RECORDS, batch_size=5)
    assert predictor.asked == [{"threshold": 0.0, "batch_size": 5}]


def test_the_bar_stays_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    run(FakePredictor(HALF), RECORDS, progress=True)
    assert "evaluating" in capsys.readouterr().err
    run(FakePredictor(HALF), RECORDS, progress=True)
    assert capsys.readouterr().out == ""
    run(FakePredictor(HALF), RECORDS)
    assert capsys.readouterr() == ("", "")


def test_every_result_is_handed_out_with_its_record() -> None:
    seen: list[tuple[str, str]] = []
    run(FakePredictor(HALF), RECORDS, on_result=lambda one, found: seen.append((str(one.image), found.source)))
    assert seen == [("a", "a"), ("b", "b"), ("c", "c")]


def test_classes_are_matched_by_name() -> None:
    renamed = (record("a", (A, 1), (B, 0)), record("b", (C, 1), (A, 1), crowd=[False, True]), record("c"))
    by_name = run(FakePredictor(HALF), renamed, class_names=("dent", "crack"))
    assert by_name.to_dict() == run(FakePredictor(HALF), RECORDS).to_dict()


def test_matching_leaves_the_given_records_alone() -> None:
    given = record("a", (A, 1), (B, 0))
    (matched,) = match_classes([given], ("dent", "stain"), NAMES)
    assert matched.labels.tolist() == [2, 1]
    assert given.labels.tolist() == [1, 0]


def test_unknown_classes_are_refused_by_name_before_anything_is_run() -> None:
    predictor = FakePredictor(HALF)
    with pytest.raises(DataError, match=r"don't know: rust, hole\. They know: crack, dent, stain\."):
        run(predictor, [record("a", (A, 0), (B, 1), (C, 2))], class_names=("rust", "crack", "hole"))
    assert not predictor.asked


def test_an_unknown_class_without_boxes_is_no_hindrance() -> None:
    (matched,) = match_classes([record("a", (A, 1))], ("rust", "dent"), NAMES)
    assert matched.labels.tolist() == [1]


def test_bad_requests_are_refused_before_anything_is_run() -> None:
    predictor = FakePredictor(HALF)
    with pytest.raises(DataError, match="no pictures to evaluate on"):
        run(predictor, [])
    with pytest.raises(UsageError, match=r"confidence is 1\.5; expected a score from 0 to 1"):
        run(predictor, RECORDS, confidence=1.5)
    with pytest.raises(UsageError, match="a: labels from 3 to 3, but 3 classes"):
        run(predictor, [record("a", (A, 3))])
    assert not predictor.asked
