"""The analyses of queries, layers and attention: on constructed cases with known answers, and on a small model."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import setdet
from cases import record
from oracle import randomise
from setdet.analyze.attention import _Seen, read_attention
from setdet.analyze.layers import LayerStudy, box_movement, depth_latencies
from setdet.analyze.matching import FollowedPictures, Matched, changed_share, instability
from setdet.analyze.queries import QueryStudy, Selected, spearman
from setdet.analyze.stages import StageDetections
from setdet.analyze.watch import Pass, looks, token_places, watch
from setdet.boxes import cxcywh_to_xyxy
from setdet.cli import main
from setdet.data.schema import Record
from setdet.data.sources import read_dataset
from setdet.errors import UsageError
from setdet.folders import distinct_names
from setdet.images import Placement, Preprocessing, read_image
from setdet.losses.config import LossConfig
from setdet.metrics.coco import coco_metrics
from setdet.models.outputs import RTDETROutput
from setdet.models.rtdetr import build_model
from setdet.weights.files import CheckpointInfo, save_checkpoint
from small_data import CLASS_NAMES, SMALL, write_voc, write_weights

# A medium and a large object of two classes.
BOXES = np.array([[10, 10, 60, 60], [80, 80, 190, 190]], dtype=np.float32)
LABELS = np.array([0, 1])
TRUTH = record(BOXES, LABELS)


def selected(
    boxes: NDArray[np.float32], labels: list[int], scores: list[float], *, levels: list[int] | None = None
) -> Selected:
    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    return Selected(
        boxes_xyxy_px=boxes,
        scores=np.array(scores, dtype=np.float32),
        labels=np.array(labels, dtype=np.int64),
        levels=np.array(levels or [0] * len(labels), dtype=np.int64),
        positions_px=(boxes[:, :2] + boxes[:, 2:]) / 2,
    )


def study(*pictures: tuple[Record, Selected]) -> dict[str, object]:
    one = QueryStudy()
    for truth, found in pictures:
        one.add(truth, found)
    return one.result().to_dict()


class TestSelectedFeatures:
    def test_perfect(self) -> None:
        values = study((TRUTH, selected(BOXES, [0, 1], [1.0, 1.0])))
        assert values["prop_cls"] == values["prop_both"] == 1 and values["calibration_error"] == 0
        assert values["recall"] == [
            {"k": 1, "recall": 0.5, "recall_any_class": 0.5},
            {"k": 2, "recall": 1.0, "recall_any_class": 1.0},
        ]
        assert values["spearman"] is None  # nothing varies

    def test_sure_of_bad_boxes(self) -> None:
        shifted = BOXES + np.array([[25, 0, 25, 0], [55, 0, 55, 0]], dtype=np.float32)  # IoU 1/3
        values = study((TRUTH, selected(shifted, [0, 1], [0.9, 0.8])))
        assert (values["prop_cls"], values["prop_both"]) == (1, 0)
        assert values["calibration_error"] == pytest.approx(0.85 - 1 / 3, abs=1e-6)
        assert values["recall"][-1]["recall_any_class"] == 0  # type: ignore[index]

    def test_of_the_wrong_class(self) -> None:
        values = study((TRUTH, selected(BOXES, [1, 0], [0.9, 0.8])))
        assert (values["prop_cls"], values["prop_both"]) == (1, 0)
        assert values["recall"][-1] == {"k": 2, "recall": 0, "recall_any_class": 1}  # type: ignore[index]

    def test_twice_the_same(self) -> None:
        values = study((TRUTH, selected(BOXES[[0, 0, 1]], [0, 0, 1], [0.9, 0.8, 0.7])))
        assert [row["recall"] for row in values["recall"]] == [0.5, 1.0]  # type: ignore[attr-defined]
        assert [row["k"] for row in values["recall"]] == [1, 3]  # type: ignore[attr-defined]

    def test_blind(self) -> None:
        values = study((TRUTH, selected(np.array([[0, 190, 10, 200]]), [0], [0.1])))
        assert (values["prop_cls"], values["prop_both"], values["recall"][-1]["recall"]) == (0, 0, 0)  # type: ignore[index]

    def test_places_by_level_and_size(self) -> None:
        tiny = np.array([20, 20, 30, 30], dtype=np.float32)
        truth = record(np.vstack([BOXES, tiny]), np.array([0, 1, 0]))
        outside = np.array([0, 190, 10, 200], dtype=np.float32)
        within_both = np.array([20, 20, 30, 30], dtype=np.float32)  # in the tiny one, which lies in the medium one
        found = selected(
            np.stack([BOXES[0], BOXES[1], outside, within_both]), [0] * 4, [0.9, 0.8, 0.7, 0.6], levels=[1, 2, 2, 0]
        )
        levels = {row["level"]: row for row in study((truth, found))["levels"]}  # type: ignore[attr-defined]
        counts = {name: [row[key] for key in ("small", "medium", "large", "outside")] for name, row in levels.items()}
        assert counts == {"P3": [1, 0, 0, 0], "P4": [0, 1, 0, 0], "P5": [0, 0, 1, 1]}
        assert [levels[name]["share"] for name in levels] == [0.25, 0.25, 0.5]

    def test_what_lies_in_a_crowd_is_not_judged(self) -> None:
        crowd = record(BOXES, np.array([0, 0]), np.array([True, False]))
        inside, found = np.array([15, 15, 40, 40]), BOXES[1]
        values = study((crowd, selected(np.stack([inside, found]), [0, 0], [0.9, 0.8])))
        assert (values["features"], values["boxes"], values["prop_both"]) == (1, 1, 1)

    def test_pictures_without_boxes_and_features_without_pictures(self) -> None:
        empty = record(BOXES[:0], LABELS[:0])
        values = study((empty, selected(BOXES, [0, 1], [0.9, 0.2])))
        assert (values["prop_cls"], values["prop_both"], values["boxes"]) == (0.5, 0, 0)
        assert values["recall"][-1]["recall"] is None  # type: ignore[index]
        with pytest.raises(UsageError, match="nothing to sum up"):
            QueryStudy().result()

    @pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, -1.0)])
    def test_rank_correlation(self, sign: int, expected: float) -> None:
        scores = np.linspace(0, 1, 50, dtype=np.float32)
        assert spearman(scores, sign * scores**3) == pytest.approx(expected)
        rng = np.random.default_rng(0)
        assert spearman(rng.random(5000), rng.random(5000)) == pytest.approx(0, abs=0.05)


def test_boxes_that_move() -> None:
    before = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.2, 0.4]])
    after = before + torch.tensor([[0, 0, 0, 0], [0.1, 0, 0, 0], [0.6, 0, 0, 0]])
    iou, shift = box_movement(before, after)
    np.testing.assert_allclose(iou, [1, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(shift, [0, 0.5, 3], atol=1e-6)


def test_every_layer_is_measured_against_the_one_before_it() -> None:
    first, second, nowhere = [0.175, 0.175, 0.25, 0.25], [0.675, 0.675, 0.55, 0.55], [0.1, 0.9, 0.05, 0.05]
    # The selection finds the second object with query 1, both layers with query 2, which the first of them moves there.
    boxes = torch.tensor([[first, second, nowhere], [first, second, second], [first, second, second]])[:, None]
    labels = torch.tensor([[0, 1, 2], [0, 2, 1], [0, 2, 1]])
    logits = 9.0 * (2 * torch.nn.functional.one_hot(labels, 3) - 1)[:, None]
    study = LayerStudy(class_names=("crack", "dent", "stain"))
    inside = Pass(
        output=RTDETROutput(logits[1:], boxes[1:], logits[0], boxes[0]),
        reference_cxcywh=boxes[0],
        tokens=None,
        shapes=(),
    )
    placement = Placement(original_size=(200, 200), input_size=(64, 64), top=0, left=0, height=64, width=64)
    study.add(TRUTH, inside, placement)
    selection, one, two = study.result(default_layers=2, latencies_ms=[1.0, 2.0]).stages
    assert [stage.name for stage in (selection, one, two)] == ["selection", "layer 1", "layer 2"]
    assert [stage.latency_ms for stage in (selection, one, two)] == [None, 1.0, 2.0]
    assert [stage.match_changed for stage in (selection, one, two)] == [None, 0.5, 0.0]
    assert selection.ap50 == one.ap50 == two.ap50 == pytest.approx(1)
    assert selection.moved is None and one.moved is not None and one.moved_matched is not None
    assert one.moved.below["0.5"] == pytest.approx(1 / 3) and one.moved_matched.below["0.5"] == 0.5
    assert two.moved is not None and two.moved.below["0.99"] == two.moved.shift == 0


class TestInstability:
    def test_known_changes(self) -> None:
        boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], dtype=np.float32)
        first = Matched(positions=np.array([3, 8]), boxes_xyxy=boxes)
        moved = Matched(positions=np.array([3, 9]), boxes_xyxy=boxes * np.float32([[1], [0]]))
        assert instability(first, first) == {"matching_instability": 0.0, "matched_iou": pytest.approx(1)}
        assert instability(first, moved) == {"matching_instability": 0.5, "matched_iou": pytest.approx(0.5)}
        again = Matched.from_plain(json.loads(json.dumps(first.to_plain())))
        assert instability(first, again)["matched_iou"] == pytest.approx(1)

    def test_without_boxes_there_is_none(self) -> None:
        nothing = Matched(positions=np.zeros(0, dtype=np.int64), boxes_xyxy=np.zeros((0, 4), dtype=np.float32))
        assert instability(nothing, nothing) == {}
        assert instability(*[Matched.from_plain(nothing.to_plain())] * 2) == {}
        assert changed_share(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) is None

    def test_followed_pictures_are_seen_as_in_prediction(self, tmp_path: Path) -> None:
        records = read_dataset(write_voc(tmp_path / "data", train=3)).splits["train"]
        model = build_model(SMALL, num_classes=2).eval()
        randomise(model, seed=0)
        followed = FollowedPictures(records, preprocessing=Preprocessing(image_size=(64, 64)), config=LossConfig())
        matched = followed.match(model)
        for truth, position, box in zip(records, matched.positions, matched.boxes_xyxy, strict=True):
            pixels = torch.from_numpy(read_image(truth.image)).permute(2, 0, 1)[None] / 255
            with torch.no_grad(), watch(model) as passes:
                model(pixels)
            corners = cxcywh_to_xyxy(passes[0].output.boxes_cxcywh[-1, 0])
            apart = (corners - torch.from_numpy(box)).abs().amax(dim=1)
            assert apart.min() < 1e-4 and passes[0].tokens[0, apart.argmin()] == position  # type: ignore[index]


def test_tokens_lie_at_the_centres_of_their_cells() -> None:
    shapes = ((4, 8), (2, 4), (1, 2))
    levels, centers = token_places(np.array([0, 31, 32, 39, 41]), shapes)
    assert levels.tolist() == [0, 0, 1, 1, 2]
    expected = [[1 / 16, 1 / 8], [15 / 16, 7 / 8], [1 / 8, 1 / 4], [7 / 8, 3 / 4], [3 / 4, 1 / 2]]
    np.testing.assert_allclose(centers, expected)


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_a_stage_is_cocos(seed: int) -> None:
    rng = np.random.default_rng(seed)
    placement = Placement(original_size=(200, 200), input_size=(64, 64), top=0, left=0, height=64, width=64)
    kept, records, found = StageDetections(), [], []
    for _ in range(8):
        boxes = torch.from_numpy(rng.uniform(0.1, 0.4, (30, 4)).astype(np.float32)) + torch.tensor([0.2, 0.2, 0, 0])
        logits = torch.from_numpy(rng.normal(size=(30, 3)).astype(np.float32))
        kept.add(logits, boxes, placement)
        corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
        order = logits.flatten().argsort(descending=True, stable=True)[:30]
        truth = corners[rng.choice(30, 4, replace=False)].numpy() * np.float32(200) + rng.normal(0, 2, (4, 4))
        records.append(record(truth.astype(np.float32), rng.integers(0, 3, 4)))
        found.append(
            setdet.Detections(
                boxes_xyxy_px=(corners[order // 3].numpy() * 200).clip(0, 200).astype(np.float32),
                scores=logits.flatten()[order].sigmoid().numpy(),
                labels=(order % 3).numpy(),
                class_names=("crack", "dent", "stain"),
                image_size=(200, 200),
            )
        )
    ap, ap50 = kept.average_precision(records, ("crack", "dent", "stain"))
    expected = coco_metrics(records, found, ("crack", "dent", "stain"))
    assert (ap, ap50) == (pytest.approx(expected.ap, abs=1e-6), pytest.approx(expected.ap50, abs=1e-6))


def test_names_are_as_short_as_can_be(tmp_path: Path) -> None:
    for run in ("a/one", "a/two", "b/one"):
        (tmp_path / run).mkdir(parents=True)
    paths = [str(tmp_path / run) for run in ("a/one", "a/two", "b/one")]
    assert distinct_names(paths) == ["a/one", "two", "b/one"]
    assert distinct_names(["rtdetr-r18/coco"]) == ["rtdetr-r18/coco"]
    assert len(set(distinct_names([paths[1], paths[1]]))) == 2


def write_random_weights(path: Path, **decoder: object) -> Path:
    """Every parameter random, so that points, boxes and scores are spread."""
    torch.manual_seed(1)
    config = SMALL.model_copy(update={"num_classes": 2, "decoder": SMALL.decoder.model_copy(update=decoder)})
    model = build_model(config)
    for name, value in model.named_parameters():
        if "norm" not in name:
            value.data += 0.05 * torch.randn_like(value)
    info = CheckpointInfo(
        model=config, class_names=CLASS_NAMES, preprocessing=Preprocessing(image_size=(64, 64)), history={}
    )
    save_checkpoint(path, state=model.state_dict(), info=info)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", layers=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc") / "data", val=5)


def test_watching_changes_nothing_and_sees_each_picture(weights: Path, data: Path) -> None:
    detector = setdet.load(weights, device="cpu")
    pictures = sorted((data / "val" / "images").iterdir())
    expected = detector.predict(pictures, threshold=0)
    truth = record(BOXES[:1] / np.float32(4), LABELS[:1])
    records = [dataclasses.replace(truth, image=path, height=64, width=64) for path in pictures]
    seen = list(looks(detector.predictor, records, batch_size=2))
    for look, plain in zip(seen, expected, strict=True):
        np.testing.assert_allclose(look.found.scores, plain.scores, atol=1e-5)
        output, tokens = look.inside.output, look.inside.tokens
        assert tokens is not None and output.encoder_logits is not None
        # The last layer's scores of this very picture, and tokens in the order of the selection's scores.
        best = output.logits[-1, 0].sigmoid().max().item()
        assert best == pytest.approx(float(plain.scores[0]), abs=1e-5)
        order = output.encoder_logits[0].amax(dim=-1)
        assert (order[:-1] >= order[1:] - 1e-6).all() and len(tokens.unique()) == tokens.shape[1]
    model = detector.predictor.runtime.model  # type: ignore[attr-defined]
    with watch(model):
        pass
    assert len(depth_latencies(detector.predictor, read_image(pictures[0]), rounds=2)) == model.decoder.eval_layers == 2
    assert not model._forward_hooks and not model.query_selection._forward_hooks


def test_attention_adds_up_to_what_the_model_computes(weights: Path, data: Path) -> None:
    picture = data / "val" / "images" / "0.png"
    detector = setdet.load(weights, device="cpu")
    (expected,) = detector.predict([picture], threshold=0)
    read = read_attention(detector.predictor, picture, number=3)
    assert sorted(read.detections) == list(range(1, 21))
    for number, one in read.detections.items():
        np.testing.assert_allclose(one.box_xyxy_px, expected.boxes_xyxy_px[number - 1], atol=1e-3)
        assert one.score == pytest.approx(float(expected.scores[number - 1]), abs=1e-5)
        assert len(one.layers) == 2 and one.layers[-1].score == pytest.approx(one.score, abs=1e-5)
        np.testing.assert_array_equal(one.layers[1].reference_xyxy_px, one.layers[0].refined_xyxy_px)
        for layer in one.layers:
            np.testing.assert_allclose(layer.weights.sum(axis=1), 1, atol=1e-5)
            assert layer.points_px.shape == (2, sum(read.points_per_level), 2)
        np.testing.assert_allclose(one.aifi.sum(axis=(2, 3)), 1, atol=1e-5)
        assert one.aifi.shape[2:] == (2, 2)
    with pytest.raises(UsageError, match="detections 1 to 20"):
        read_attention(detector.predictor, picture, number=21)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_is_that_of_the_detection_where_others_lie_in_a_border(
    weights: Path, tmp_path: Path, precision: Literal["fp32", "bf16"]
) -> None:
    predictor = setdet.load(weights, device="cpu", precision=precision).predictor
    predictor.preprocessing = Preprocessing(image_size=(64, 64), resize="letterbox")
    cv2.imwrite(str(tmp_path / "wide.png"), np.random.default_rng(0).integers(0, 256, (10, 90, 3), dtype=np.uint8))
    (found,) = predictor.predict([tmp_path / "wide.png"], threshold=0.0)
    assert 0 < len(found) < predictor.runtime.top_k  # type: ignore[attr-defined]
    read = read_attention(predictor, tmp_path / "wide.png", best=len(found))
    assert len(read.detections) == len(found)
    for rank, one in read.detections.items():
        refined = one.layers[-1].refined_xyxy_px.clip(0, (90, 10, 90, 10))
        np.testing.assert_allclose(refined, found.boxes_xyxy_px[rank - 1], atol=0.01)
        assert one.layers[-1].score == pytest.approx(found.scores[rank - 1], abs=1e-5)


def test_attention_is_read_from_the_cell_that_the_detection_lies_in(weights: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "tall.png"), noise)
    read = read_attention(setdet.load(weights, device="cpu").predictor, tmp_path / "tall.png")
    across, down = read.cells_px
    np.testing.assert_allclose(across, [0, 20, 40])
    np.testing.assert_allclose(down, [0, 60, 120])
    for one in read.detections.values():
        left, top, right, bottom = one.layers[-1].refined_xyxy_px
        assert one.aifi_cell == (int((top + bottom) / 2 >= 60), int((left + right) / 2 >= 20))
    assert len({one.aifi_cell for one in read.detections.values()} - {(0, 0), (1, 1)}) > 0
    attention = torch.rand(1, 2, 6, 6)  # of 2 rows of 3 cells
    seen = _Seen(points=[], aifi=[attention]).from_cell((1, 0), ((8, 12), (4, 6), (2, 3)))
    np.testing.assert_array_equal(seen, attention[:, :, 3].unflatten(2, (2, 3)))


def test_sampling_points_are_those_that_are_sampled() -> None:
    torch.manual_seed(0)
    model = build_model(SMALL).eval()
    attention = model.decoder.layers[0].cross_attention
    for value in attention.parameters():
        value.data = 0.3 * torch.randn_like(value)
    shapes, queries = [(4, 4), (2, 2), (1, 1)], 3
    query, memory = torch.randn(1, queries, 32), torch.randn(1, 21, 32)
    reference = torch.rand(1, queries, 4)
    points, weights = attention.sampling_points(query, reference_cxcywh=reference)  # type: ignore[operator]
    value = attention.value_proj(memory).view(1, 21, attention.heads, -1)  # type: ignore[operator]
    per_level = SMALL.decoder.points_per_level
    expected = torch.zeros(1, queries, attention.heads, value.shape[3])  # type: ignore[arg-type]
    start = token = 0
    for (height, width), count in zip(shapes, per_level, strict=True):
        for head in range(attention.heads):  # type: ignore[arg-type]
            cells = value[0, token : token + height * width, head].T.reshape(1, -1, height, width)
            grid = points[:, :, head, start : start + count] * 2 - 1
            read = torch.nn.functional.grid_sample(cells, grid, align_corners=False)  # (1, C, Q, points)
            expected[0, :, head] += (read * weights[:, None, :, head, start : start + count]).sum(dim=3)[0].T
        start, token = start + count, token + height * width
    expected = attention.output_proj(expected.flatten(2))  # type: ignore[operator]
    with torch.no_grad():
        found = attention(query, reference_cxcywh=reference, memory=memory, shapes=shapes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("verb", ["queries", "layers"])
def test_the_commands(verb: str, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    more = [str(write_weights(tmp_path / "other.safetensors"))] if verb == "queries" else []
    rounds = ["--rounds", "1"] if verb == "layers" else []
    command = ["analyze", verb, str(weights), *more, str(data), "--out", str(out), "--device", "cpu", *rounds]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / f"{verb}.json").read_text(encoding="utf-8"))
    page = (out / f"{verb}.html").read_text(encoding="utf-8")
    assert page.count("<svg") == len(list(out.glob("*.svg"))) and "src=" not in page.replace("src='data:", "")
    if verb == "queries":
        assert [one["selected_per_picture"] for one in said["detectors"].values()] == [20, 20]
    else:
        stages = said["stages"]
        assert [stage["name"] for stage in stages] == ["selection", "layer 1", "layer 2"]
        assert stages[0]["latency_ms"] is None and stages[1]["latency_ms"] > 0
        assert stages[2]["ap"] == pytest.approx(setdet.load(weights, device="cpu").evaluate(data).ap, abs=1e-6)
    assert main(command) == 2 and "is in use" in capsys.readouterr().err


def test_the_command_for_attention(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = data / "val" / "images" / "1.png", tmp_path / "out"
    command = ["analyze", "attention", str(weights), str(picture), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--detection", "2"]) == 0
    assert "detection 2" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "attention.html", "attention.json", "boxes.svg", "sampling.svg", "aifi.svg",
    }  # fmt: skip
    values = json.loads((out / "attention.json").read_text(encoding="utf-8"))
    assert values["chosen"] == 2 and len(values["detections"]) == 20
    assert main([*command[:-4], "--out", str(tmp_path / "no"), "--detection", "99"]) == 2
    assert "1 to 20" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_what_cannot_be_analysed(weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "queries", *[str(weights)] * 7, str(data), "--out", str(tmp_path / "a")]) == 2
    assert "cannot be told apart" in capsys.readouterr().err
    learned = write_random_weights(tmp_path / "learned.safetensors", query_source="learned")
    assert main(["analyze", "queries", str(learned), str(data), "--out", str(tmp_path / "b")]) == 2
    assert "learned queries" in capsys.readouterr().err
    assert main(["analyze", "layers", str(learned), str(data), "--out", str(tmp_path / "c"), "--rounds", "0"]) == 0
    assert "selection" not in capsys.readouterr().out and not (tmp_path / "b").exists()


MANY = """
import resource, sys
import numpy as np
import torch
from cases import NAMES, record
from setdet.analyze.layers import LayerStudy
from setdet.analyze.queries import QueryStudy, Selected
from setdet.analyze.watch import Pass
from setdet.images import Placement
from setdet.models.outputs import RTDETROutput
pictures, queries = int(sys.argv[1]), 300
torch.manual_seed(0)
torch.set_num_threads(1)
rng = np.random.default_rng(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
study, layers = QueryStudy(), LayerStudy(class_names=NAMES)
placement = Placement((200, 200), (160, 160), top=0, left=0, height=160, width=160)
for _ in range(pictures):
    boxes = torch.rand(5, 1, queries, 4) * 0.4 + 0.1
    logits = torch.randn(5, 1, queries, 3)
    corners = boxes[0, 0].numpy()
    corners = 200 * np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
    truth = record(corners[:5], rng.integers(0, 3, 5))
    scores = np.sort(rng.random(queries).astype(np.float32))[::-1]
    labels, positions = rng.integers(0, 3, queries), corners[:, :2]
    study.add(truth, Selected(corners, scores, labels, rng.integers(0, 3, queries), positions))
    output = RTDETROutput(logits[1:4], boxes[1:4], logits[4], boxes[4])
    inside = Pass(output=output, reference_cxcywh=boxes[:1, 0], tokens=None, shapes=[])
    layers.add(truth, inside, placement)
study.result().to_dict()
layers.result(default_layers=3).to_dict()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def grown(pictures: int) -> float:
    """MiB that analysing so many pictures of 300 queries takes."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(pictures)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    return float(done.stdout) / 1024


def test_memory_is_bounded() -> None:
    # 10,000 pictures, from the growth between 100 and 400: what is held grows with the number of pictures, no faster.
    few, more = grown(100), grown(400)
    assert few + (more - few) / 300 * 9_900 < 2048


@pytest.mark.slow
def test_ten_thousand_pictures_in_two_gigabytes() -> None:
    assert grown(10_000) < 2048
