"""The error analysis on detectors whose mistakes are known, and its AP against COCO's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cases import NAMES, detections, random_case, record
from setdet.analyze.errors import ErrorAnalysis, analyze_errors
from setdet.analyze.ledger import Kind, Ledger
from setdet.analyze.strata import class_aps
from setdet.analyze.thresholds import choose_thresholds
from setdet.analyze.tide import WRONG_KINDS
from setdet.api import load
from setdet.cli import main
from setdet.cli.analyze.errors import _choose, _may_have_learnt
from setdet.data.schema import Record
from setdet.data.sources import hold_out, read_dataset
from setdet.detections import Detections
from setdet.errors import DataError, UsageError
from setdet.metrics.coco import coco_metrics
from setdet.thresholds import lowest_scores, read_thresholds
from setdet.training.config import TrainConfig
from small_data import CLASS_NAMES, write_voc, write_weights

# One crack and one dent a picture, far apart.
BOXES = np.array([[10, 10, 60, 60], [100, 100, 180, 180]], dtype=np.float32)
LABELS = np.array([0, 1])
TRUTH = [record(BOXES, LABELS) for _ in range(4)]


def analysis(records: list[Record], found: list[Detections]) -> ErrorAnalysis:
    ledger = Ledger(NAMES)
    for truth, one in zip(records, found, strict=True):
        ledger.add(truth, one)
    return ErrorAnalysis(entries=ledger.entries(), records=tuple(records))


def of_all(boxes: NDArray[np.float32], labels: NDArray[np.int64], scores: list[float] | None = None) -> ErrorAnalysis:
    """The same detections on each of the pictures."""
    given = None if scores is None else np.array(scores, dtype=np.float32)
    return analysis(TRUTH, [detections(boxes.astype(np.float32), labels, given) for _ in TRUTH])


def costs(one: ErrorAnalysis) -> dict[str, float]:
    """Those above 0."""
    values = {key: value["cost_ap50"] for key, value in one.to_dict()["errors"].items()}
    return {key: pytest.approx(value, abs=1e-9) for key, value in values.items() if value}


def counted(one: ErrorAnalysis) -> dict[str, int]:
    return {key: value["shown"] for key, value in one.counts().items() if value["shown"]}


class TestKnownDetectors:
    def test_perfect(self) -> None:
        one = of_all(BOXES, LABELS)
        assert one.costs.ap50 == one.measured.values["ap"] == pytest.approx(1)
        assert costs(one) == {} and counted(one) == {}
        assert one.costs.false_positives == one.costs.false_negatives == 0
        assert one.calibration.error == 0 and one.worst(10) == []
        assert one.measured.confusion.tolist() == [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
        assert one.precision_curves()["mean"] == [1.0] * 101
        assert [one.f1_curves()["per_class"][name][50] for name in NAMES[:2]] == [1.0, 1.0]

    def test_blind(self) -> None:
        one = of_all(np.zeros((0, 4)), np.zeros(0, dtype=np.int64))
        assert one.costs.ap50 == 0 and costs(one) == {"missed": 1.0} and counted(one) == {"missed": 8}
        assert one.costs.false_positives == 0 and one.costs.false_negatives == 1
        assert one.calibration.count == 0 and one.calibration.error is None
        assert one.pictures[0].summary() == "0 of 2 found; 2 missed"

    def test_shifted(self) -> None:
        one = of_all(BOXES + np.array([25, 0, 25, 0]), LABELS)  # IoU 25/75 and 55/105
        assert one.costs.ap50 == pytest.approx(0.5)  # the larger box is still found
        assert costs(one) == {"bad_box": 0.5} and counted(one) == {"bad_box": 4}
        assert one.measured.values["ap"] == pytest.approx(0.05)  # at the first of ten thresholds, half of the classes

    def test_mislabelled(self) -> None:
        one = of_all(BOXES, LABELS[::-1])
        assert one.costs.ap50 == 0 and costs(one) == {"wrong_class": 1.0} and counted(one) == {"wrong_class": 8}
        assert one.measured.confusion[:2, :2].tolist() == [[0, 4], [4, 0]]

    def test_duplicated(self) -> None:
        one = of_all(np.concatenate([BOXES, BOXES]), np.tile(LABELS, 2), [0.9, 0.9, 0.8, 0.8])
        assert one.costs.ap50 == pytest.approx(1) and costs(one) == {}  # they come after everything is found
        assert one.counts()["duplicate"]["all"] == 8
        one = analysis(
            TRUTH[:1], [detections(BOXES[[0, 0, 1]], np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7], dtype=np.float32))]
        )
        assert costs(one) == {}  # of other classes they cost nothing
        both_cracks = record(BOXES, np.array([0, 0]))
        found = detections(BOXES[[0, 0, 1]], np.array([0, 0, 0]), np.array([0.9, 0.8, 0.7], dtype=np.float32))
        one = analysis([both_cracks], [found])
        expected = (51 + 50 * 2 / 3) / 101
        assert one.costs.ap50 == pytest.approx(expected) and costs(one) == {"duplicate": 1 - expected}

    def test_of_another_class_and_badly_placed(self) -> None:
        one = of_all(BOXES[:1] + np.array([25, 0, 25, 0]), np.array([1]))
        # Dropping what is wrong finds nothing; without boxes to miss, dents are still said to be there, cracks not.
        assert counted(one) == {"both": 4, "missed": 8} and costs(one) == {"missed": 0.5}

    def test_invents(self) -> None:
        invented = np.array([[60, 10, 90, 40]])
        one = of_all(np.concatenate([invented, BOXES]), np.array([0, *LABELS]), [0.9, 0.8, 0.8])
        # Cracks: 4 wrong ones come first, so the precision is 4/8 at the end and nowhere better.
        assert one.costs.ap50 == pytest.approx((0.5 + 1) / 2)
        assert costs(one) == {"background": 0.25} and one.costs.false_positives == pytest.approx(0.25)
        assert one.costs.false_negatives == 0

    def test_the_better_of_two_wrong_boxes_is_the_one_set_right(self) -> None:
        shifted = BOXES[:1] + np.array([25, 0, 25, 0])
        one = of_all(np.concatenate([shifted, shifted, BOXES[1:]]), np.array([0, 0, 1]), [0.9, 0.8, 0.7])
        assert one.costs.ap50 == pytest.approx(0.5)
        assert costs(one) == {"bad_box": 0.5}  # the second is dropped and costs nothing more

    def test_worst_pictures_come_first(self) -> None:
        right, nothing = detections(BOXES, LABELS), detections(BOXES[:0], LABELS[:0])
        half = detections(BOXES[:1], LABELS[:1])
        one = analysis(TRUTH[:3], [right, nothing, half])
        assert one.worst(9) == [1, 2]
        assert [picture.mistakes for picture in one.pictures] == [0, 2, 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [{}, {"crowd": 0.3}, {"many": 120, "pictures": 4}, {"ties": True}], ids=str)
def test_ap_is_cocos_in_all_and_by_size(seed: int, kind: dict[str, float]) -> None:
    records, found = random_case(seed, **kind)  # type: ignore[arg-type]
    one, expected = analysis(records, found), coco_metrics(records, found, NAMES)
    for (ap, ap50), theirs in zip(class_aps(one.entries), expected.per_class, strict=True):
        assert (ap, ap50) == (pytest.approx(theirs.ap, abs=1e-6), pytest.approx(theirs.ap50, abs=1e-6))
    by_size = (expected.ap_small, expected.ap_medium, expected.ap_large)
    for group, ap in zip(one.sizes, by_size, strict=True):
        assert group.ap == (None if ap is None else pytest.approx(ap, abs=1e-6))
    assert one.costs.ap50 == pytest.approx(expected.ap50, abs=1e-6)
    assert sum(group.boxes for group in one.sizes) >= sum(theirs.boxes for theirs in expected.per_class)


def test_sizes_go_by_segments_and_an_edge_is_in_both_groups_and_a_crowd_in_none() -> None:
    boxes = np.array([[0, 0, 32, 32], [50, 50, 150, 150], [160, 160, 190, 190]], dtype=np.float32)
    labels = np.zeros(3, dtype=np.int64)
    truth = replace(record(boxes, labels, np.array([False, False, True])), areas_px=np.array([1024.0, 900.0, 900.0]))
    found = detections(boxes[:2], labels[:2])
    one, expected = analysis([truth], [found]), coco_metrics([truth], [found], NAMES)
    assert [group.boxes for group in one.sizes] == [2, 1, 0]
    by_size = [expected.ap_small, expected.ap_medium, expected.ap_large]
    assert [group.ap for group in one.sizes] == [None if ap is None else pytest.approx(ap) for ap in by_size]


def test_shapes_are_told_apart() -> None:
    tall, wide = np.array([[10, 10, 20, 90]], dtype=np.float32), np.array([[10, 10, 90, 20]], dtype=np.float32)
    zero = np.array([0])
    one = analysis(
        [record(tall, zero), record(wide, zero)], [detections(tall, zero), detections(wide + np.float32(60), zero)]
    )
    found = {group.group.name.partition(",")[0]: (group.boxes, group.ap50) for group in one.shapes}
    assert found == {
        "very tall": (1, pytest.approx(1)),
        "tall": (0, None),
        "about square": (0, None),
        "wide": (0, None),
        "very wide": (1, 0),
    }


@pytest.mark.parametrize("seed", range(3))
def test_every_detection_and_box_is_accounted_for(seed: int) -> None:
    records, found = random_case(seed, crowd=0.1, pictures=20)
    one = analysis(records, found)
    assert len(one.entries.kind) == sum(map(len, found))
    right = np.flatnonzero(one.entries.kind == Kind.RIGHT)
    assert len(np.unique(one.entries.truth[right])) == len(right)  # each box is found once
    real = ~one.entries.truth_crowd
    assert one.entries.unfound().sum() == real.sum() - len(right)
    assert (one.entries.missed() <= one.entries.unfound()).all()
    for kind in WRONG_KINDS:  # mending one kind never costs more than all that is wrong
        assert (one.costs.kinds[kind] or 0) <= 1 - (one.costs.ap50 or 0) + 1e-9
    assert json.dumps(one.to_dict(), allow_nan=False)


class TestThresholds:
    def test_every_class_gets_its_best(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Cracks are right from 0.3 up, dents from 0.7 up; stains have no box.
        wrong = np.array([[60, 10, 90, 40], [60, 60, 90, 90]], dtype=np.float32)
        found = detections(
            np.concatenate([BOXES, wrong]), np.array([0, 1, 0, 1]), np.array([0.3, 0.7, 0.2, 0.6], dtype=np.float32)
        )
        monkeypatch.setattr(
            "setdet.analyze.thresholds.results", lambda predictor, records, **_: ((one, found) for one in records)
        )
        predictor = type("Known", (), {"class_names": NAMES})()
        chosen = choose_thresholds(predictor, TRUTH, chosen_on="four pictures", least_boxes=1)
        assert 0.2 < chosen.thresholds["crack"] <= 0.3 + 1e-6 and 0.6 < chosen.thresholds["dent"] <= 0.7 + 1e-6
        assert (chosen.f1["crack"], chosen.f1["dent"], chosen.f1["stain"]) == (1.0, 1.0, None)
        ledger = Ledger(NAMES)
        for one in TRUTH:
            ledger.add(one, found)
        shown = ErrorAnalysis(entries=ledger.entries(), records=tuple(TRUTH), chosen=chosen)
        assert counted(shown) == {} and shown.measured.values["f1"] == 1.0
        stain = [record(BOXES, np.array([0, 2]))]  # in the place of a dent: dents are found where there are none
        never = choose_thresholds(predictor, stain, chosen_on="one picture", least_boxes=1)
        few = choose_thresholds(predictor, TRUTH, chosen_on="four pictures")
        assert len(set(few.thresholds.values())) == 1 and set(few.f1.values()) == {None}
        assert never.f1["stain"] == 0 and never.thresholds["stain"] == never.thresholds["dent"] > 0.2
        no_boxes = [record(BOXES[:0], LABELS[:0])]
        with pytest.raises(DataError, match="no box on the 1 pictures"):
            choose_thresholds(predictor, no_boxes, chosen_on="a bare one")

    def test_a_mapping_must_fit_the_classes(self) -> None:
        assert lowest_scores({"a": 0.25, "b": 1}, ("b", "a")).tolist() == [1.0, 0.25]
        for wrong, message in (
            ({"a": 0.5}, "no threshold for b"),
            ({"a": 0.5, "c": 0.5}, "'c', which the detector doesn't know"),
            ({"a": 0.5, "b": 1.5}, "expected a score"),
        ):
            with pytest.raises(UsageError, match=message):
                lowest_scores(wrong, ("a", "b"))

    def test_what_editors_and_arrays_make_of_them(self, tmp_path: Path) -> None:
        (tmp_path / "t.json").write_text('{"thresholds": {"a": 0.5}}', encoding="utf-8-sig")
        assert read_thresholds(tmp_path / "t.json") == {"a": 0.5}
        assert lowest_scores({"a": np.float32(0.5)}, ("a",)).tolist() == [0.5]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "is not JSON"),
            ("[]", "holds no thresholds"),
            ('{"thresholds": {}}', "holds no thresholds"),
            ('{"thresholds": {"a": "high"}}', "of 'a' is 'high'"),
            ('{"thresholds": {"a": true}}', "of 'a' is True"),
            ('{"thresholds": {"a": 2}}', "of 'a' is 2"),
        ],
    )
    def test_files_that_are_none(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_thresholds(tmp_path / "t.json")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "w.safetensors")


def test_the_command_writes_what_predict_takes(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_voc(tmp_path / "data"), tmp_path / "errors"
    command = [
        "analyze",
        "errors",
        str(weights),
        str(data),
        "--out",
        str(out),
        "--thresholds-on",
        "0.5",
        "--worst",
        "1",
    ]
    assert main([*command, "--device", "cpu"]) == 0
    said, noted = capsys.readouterr()
    assert "pictures that they have learnt" in noted and "Too few boxes on the 4 pictures" in noted
    assert "costs AP50" in said and "lowest score" in said and str(out / "errors.html") in said
    assert str(out / "thresholds.json") in said
    charts = {"cost", "sides", "precision-recall", "f1", "calibration", "sizes", "shapes"}
    assert {path.stem for path in out.glob("*.svg")} == charts
    assert len(list((out / "worst").iterdir())) == 1
    page = (out / "errors.html").read_text(encoding="utf-8")
    assert "What the mistakes cost" in page and "http://" not in page.replace("http://www.w3.org", "")
    values = json.loads((out / "errors.json").read_text(encoding="utf-8"))
    assert values["images"] == 2 and set(values["thresholds"]["thresholds"]) == set(CLASS_NAMES)
    chosen = str(out / "thresholds.json")
    predict = ["predict", str(weights), str(data / "val" / "images"), "--device", "cpu", "--thresholds", chosen]
    assert main([*predict, "--out", str(tmp_path / "seen")]) == 0
    assert main([*predict, "--out", str(tmp_path / "both"), "--threshold", "0.5"]) == 2
    assert not (tmp_path / "both").exists()
    assert "give one of them" in capsys.readouterr().err
    assert main(command) == 2 and "is in use" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"thresholds": {"brigth": 0.5}}')
    assert main([*predict[:-1], str(tmp_path / "other.json"), "--out", str(tmp_path / "other")]) == 2
    assert "Did you mean 'bright'?" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_scores_chosen_on_pictures_kept_aside_need_no_warning() -> None:
    assert _may_have_learnt({}, share=0.2, seed=0)
    assert _may_have_learnt({"config": TrainConfig().to_dict()}, share=0.2, seed=0)
    config = TrainConfig(select_on=0.2, seed=3).to_dict()
    assert not _may_have_learnt({"config": config}, share=0.2, seed=3)
    assert not _may_have_learnt({"config": config}, share=0.1, seed=3)
    assert _may_have_learnt({"config": config}, share=0.3, seed=3)
    assert _may_have_learnt({"config": config}, share=0.2, seed=0)


def test_scores_are_chosen_on_the_pictures_that_the_seed_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("setdet.analyze.thresholds.choose_thresholds", lambda predictor, records, **_: records)
    dataset = read_dataset(write_voc(tmp_path / "data", train=10))
    predictor = type("Known", (), {"class_names": CLASS_NAMES})()
    seen = []
    for seed in (0, 1):
        chosen = _choose(predictor, dataset, share=0.3, seed=seed, progress=False)
        _, held = hold_out(dataset.splits["train"], share=0.3, seed=seed)
        seen.append([one.image for one in chosen])  # type: ignore[attr-defined]
        assert seen[-1] == [one.image for one in held]
    assert seen[0] != seen[1]


def test_a_bar_says_how_far_it_is(tmp_path: Path, weights: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records = read_dataset(write_voc(tmp_path / "data")).splits["val"]
    predictor = load(str(weights), device="cpu").predictor
    capfd.readouterr()
    analyze_errors(predictor, records, progress=True)
    assert "looking" in capfd.readouterr().err
    analyze_errors(predictor, records)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--thresholds-on", "1"], "expected a share"),
        (["--thresholds-on", "0.2", "--split", "train"], "cannot be reported on"),
        (["--split", "test"], "has no split 'test'"),
    ],
)
def test_wrong_use(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    data = write_voc(tmp_path / "data")
    assert main(["analyze", "errors", str(weights), str(data), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


MANY = """
import resource, sys
import numpy as np
from cases import detections, record, NAMES
from setdet.analyze.errors import ErrorAnalysis
from setdet.analyze.ledger import Ledger
pictures, queries = int(sys.argv[1]), 300
rng = np.random.default_rng(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ledger, records = Ledger(NAMES), []
for _ in range(pictures):
    corner = rng.uniform(0, 140, (queries, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (queries, 2)).astype(np.float32)], axis=1)
    truth = record(boxes[:5], rng.integers(0, 3, 5))
    records.append(truth)
    ledger.add(truth, detections(boxes, rng.integers(0, 3, queries), rng.random(queries).astype(np.float32)))
one = ErrorAnalysis(entries=ledger.entries(), records=tuple(records))
one.to_dict()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def grown(pictures: int) -> float:
    """MiB that analysing so many pictures of 300 detections takes."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(pictures)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    return float(done.stdout) / 1024


def test_memory_is_bounded() -> None:
    # 10,000 pictures, from 600: what the analysis holds and makes grows with the number of detections and no faster.
    assert grown(600) * 10_000 / 600 < 2048


@pytest.mark.slow
def test_ten_thousand_pictures_in_two_gigabytes() -> None:
    assert grown(10_000) < 2048
