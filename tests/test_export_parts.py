"""Parts of an export by themselves, without one: nothing here takes the seconds of capturing a graph."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from setdet.cli import main
from setdet.data.surfaces import generate
from setdet.errors import SetdetError
from setdet.export import gate, verify
from setdet.export.config import ExportConfig
from setdet.export.gate import Evidence
from setdet.export.graph import PictureResize
from setdet.export.openvino import write
from setdet.export.run import _describe, _notes, trtexec
from setdet.images import Preprocessing, preprocess
from setdet.models.rtdetr import build_model
from setdet.runtime.base import Candidates, Runtime
from setdet.runtime.exported import ExportInfo
from setdet.weights.info import CheckpointInfo
from small_data import SMALL, write_weights

NAMES = ("traffic light", "stop, or yield", "Öl")
CHECKPOINT = CheckpointInfo(
    model=SMALL.model_copy(update={"num_classes": 3}),
    class_names=NAMES,
    preprocessing=Preprocessing(image_size=(96, 128)),
)


def described(**config: object) -> ExportInfo:
    return _describe(CHECKPOINT, ExportConfig.from_dict(config), "gather")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def test_a_class_of_two_words_is_one_label_to_readers_of_openvinos(tmp_path: Path) -> None:
    given = ops.parameter([1, 3, 96, 128])
    write(ov.Model([ops.relu(given)], [given]), tmp_path, info=described(format="openvino"))
    read = ov.Core().read_model(tmp_path / "model.xml")
    labels = read.get_rt_info(["model_info", "labels"]).astype(str)
    assert labels.split() == ["traffic_light", "stop__or_yield", "Öl"]
    info = ExportInfo.model_validate_json(read.get_rt_info("setdet").astype(str))
    assert info.checkpoint.class_names == NAMES


@pytest.mark.parametrize(
    "name", ["encoder.aifi.layers.0.linear", "query_selection.box_head.layers.", "decoder.layers.0.linear"]
)
def test_half_precision_is_looked_at_where_the_file_has_it(name: str) -> None:
    """Values times 10⁷ between two layers, also in parts that ONNX files keep in float32, and OpenVINO's don't."""
    model = build_model(CHECKPOINT.model).eval()
    numbers = (0, 1) if name.endswith(".") else (1, 2)
    first, second = (model.get_submodule(f"{name}{number}") for number in numbers)
    with torch.no_grad():
        first.weight.mul_(1e7)
        second.weight.mul_(1e-7)
    for kind in ("onnx", "openvino"):
        config = ExportConfig(format=kind, precision="fp16")
        kept = described(format=kind, precision="fp16").kept
        found = gate.half_range(model, config, pictures(1), kept=kept)
        if kind == "openvino" or name.startswith("encoder"):
            layer = f"{name}{numbers[0]}".removeprefix("query_selection.")
            assert f"{layer} reaches" in found.failure and "ends at 65504" in found.failure
        else:
            assert not found.failure


def test_positions_are_not_in_half_precision() -> None:
    decoder = CHECKPOINT.model.decoder.model_copy(update={"rivals": True})
    model = build_model(CHECKPOINT.model.model_copy(update={"decoder": decoder})).eval()
    model.decoder.rivals[0].positions.register_forward_hook(lambda module, given, out: 1e6 + out)
    with torch.no_grad():
        model.decoder.rivals[0].embed.layers[0].weight.zero_()
    found = gate.half_range(model, ExportConfig(format="openvino", precision="fp16"), pictures(1), kept=())
    assert not found.failure


def test_an_engine_that_says_nothing_when_it_fails() -> None:
    boxes, labels = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (1, 5, 1)), np.zeros((1, 5), np.int64)

    def mute(images: np.ndarray) -> object:
        raise KeyError

    source = lambda images: (boxes, np.full((1, 5), 0.5, np.float32), labels)  # noqa: E731
    found = verify.compare_batches(source, mute, pictures(1), name="alone", batch_size=1)
    assert found.failure == "the runtime fails (KeyError)"


def along_the_diagonal() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and labels of eight detections beside each other, seven of them confident."""
    corners = np.arange(8, dtype=np.float32) / 10
    boxes = np.stack([corners, corners, corners + 0.1, corners + 0.1], axis=1)
    return boxes, np.linspace(0.9, 0.2, 8, dtype=np.float32), np.arange(8) % 2


def engine(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Runtime:
    """Finds these in every picture."""

    def run(images: np.ndarray) -> Candidates:
        return tuple(np.repeat(part[None], len(images), axis=0) for part in (boxes, scores, labels))  # type: ignore[return-value]

    return run


def compare(model: Runtime, exported: Runtime) -> verify.Differences:
    return verify.compare_batches(model, exported, np.zeros((3, 100, 100, 3), np.uint8), name="run", batch_size=2)


def test_an_engine_that_finds_the_same_has_nothing_to_complain_about() -> None:
    found = compare(*[engine(*along_the_diagonal())] * 2)
    assert (found.found, found.box_px_most, found.score_most) == (1, 0, 0)
    assert (found.compared, found.confident) == (3 * 2 * 7, 3 * 7)
    assert found.complaints(verify.TOLERANCES["fp32"]) == [] and found.used(verify.TOLERANCES["int8"]) == 0


@pytest.mark.parametrize(
    ("boxes_by", "scores_by", "labels_by", "says", "used"),
    [
        (0.002, 0, 0, "boxes differ by 0.2 px, most 0.05", 0.2 / 10),
        (0, -0.05, 0, "scores differ by 0.05, most 0.001", 0.05 / 0.18),
        (0, 0, 1, "0.0% of 42 detections have a partner, least 100%", 1 / 0.05),
    ],
)
def test_an_engine_that_finds_something_else_is_complained_about(
    boxes_by: float, scores_by: float, labels_by: int, says: str, used: float
) -> None:
    boxes, scores, labels = along_the_diagonal()
    other = engine(boxes + np.float32(boxes_by), scores + np.float32(scores_by), (labels + labels_by) % 2)
    found = compare(engine(boxes, scores, labels), other)
    assert found.complaints(verify.TOLERANCES["fp32"]) == [f"run: {says}"]
    assert found.used(verify.TOLERANCES["int8"]) == pytest.approx(used, rel=1e-3)


def test_what_one_alone_finds_is_missed_either_way() -> None:
    fewer = engine(*along_the_diagonal())
    parts = zip(([0, 0.5, 0.1, 0.9], 0.95, 0), along_the_diagonal(), strict=True)
    more = engine(*(np.concatenate([np.array([one], whole.dtype), whole]) for one, whole in parts))
    assert compare(fewer, more).found == compare(more, fewer).found == 14 / 15


def test_what_is_compared_is_taken_from_everywhere(tmp_path: Path) -> None:
    assert verify.spread(range(10), 3) == [0, 3, 6] and verify.spread([1, 2], 3) == [1, 2]
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"{number:02}.png"), np.full((8, 8), number, np.uint8))
    material = gate.gather(Evidence(pictures=(str(tmp_path),)))
    assert [int(picture[0, 0, 0]) for picture in material.pictures] == verify.spread(range(40), 32)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(200, 120), (40, 50), (64, 300), (64, 96)])
def test_a_picture_is_resized_in_the_graph_as_outside(resize: str, height: int, width: int) -> None:
    preprocessing = Preprocessing(image_size=(64, 96), resize=resize)  # type: ignore[arg-type]
    picture = cv2.resize(generate(0, seed=1, size=400).image, (width, height))
    expected, placement = preprocess(picture, preprocessing)
    graph, size = PictureResize(preprocessing=preprocessing), torch.Size((height, width))
    levels = graph(torch.from_numpy(picture)[None])[0].permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    apart = levels - expected
    assert np.abs(apart).max() < 1.01 and np.abs(apart.mean()) < 0.03
    corners = np.sort(np.random.default_rng(0).random((30, 2, 2)), axis=1).reshape(30, 4).astype(np.float32)
    found = graph.to_picture(torch.from_numpy(corners)[None], size)[0].numpy()
    np.testing.assert_allclose(found, placement.to_original(corners), atol=1e-3)


@pytest.mark.parametrize(
    ("complaints", "config", "says"),
    [
        (["pictures as they are: boxes differ"], {}, "Leave out --inside resize"),
        (["pictures as they are: boxes differ", "one picture at a time: boxes differ"], {}, "Use --sampling gather"),
        (["batches of 5: boxes differ"], {"format": "openvino"}, "Another release of the runtime"),
        (["batches of 5: boxes differ"], {"sampling": "discrete"}, "for models that were trained so"),
        (["batches of 5: boxes differ"], {"precision": "fp16"}, "Use a higher precision than fp16;"),
        (["range: too large"], {"format": "openvino", "precision": "int8"}, "than int8, or calibrate on pictures like"),
    ],
)
def test_a_refusal_says_what_may_help(complaints: list[str], config: dict[str, Any], says: str) -> None:
    settings = ExportConfig.from_dict({"format": "onnx", **config})
    judged = verify.Verdict(runs=(), complaints=tuple(complaints))
    said = str(gate.refusal(judged, settings, sampling=settings.sampling_for(CHECKPOINT.model)))
    assert says in said and all(f"\n  {line}\n" in said for line in complaints)


@pytest.mark.parametrize(
    ("options", "config", "evidence", "calibration"),
    [
        (
            "--format onnx --target tensorrt --sampling grid --inside any-size --inside top-k --data d "
            "--pictures a.png --pictures b.png --thresholds t.json --decoder-layers 1 --queries 7",
            {
                "format": "onnx",
                "target": "tensorrt",
                "sampling": "grid",
                "dynamic_size": True,
                "detections": True,
                "thresholds": {"bright": 0.25, "dark": 0.75},
                "decoder_layers": 1,
                "queries": 7,
            },
            Evidence(pictures=("a.png", "b.png"), data=Path("d")),
            None,
        ),
        (
            "--format openvino --precision int8 --calibrate c --inside resize --no-verify",
            {"format": "openvino", "precision": "int8", "pictures": True},
            None,
            Path("c"),
        ),
    ],
    ids=["onnx", "openvino"],
)
def test_every_option_of_the_command_reaches_the_export(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    config: dict[str, Any],
    evidence: Evidence | None,
    calibration: Path | None,
) -> None:
    given: dict[str, Any] = {}

    def export(info: object, model: object, config: ExportConfig, **named: object) -> None:
        given.update(named, config=config)
        raise SetdetError("that is all")

    monkeypatch.setattr("setdet.export.run.export", export)
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_text('{"thresholds": {"bright": 0.25, "dark": 0.75}}')
    weights = write_weights(tmp_path / "w.safetensors")
    assert main(["export", str(weights), "--out", "o", *options.split()]) == 1
    assert given["config"] == ExportConfig.from_dict(config)
    assert (given["out"], given["evidence"], given["calibration"]) == (Path("o"), evidence, calibration)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({}, ["images:1x3x96x128", "images:1x3x96x128", "images:8x3x96x128"]),
        ({"dynamic_size": True}, ["images:1x3x32x32", "images:1x3x96x128", "images:8x3x192x256"]),
        (
            {"dynamic_size": True, "queries": 300},
            ["images:1x3x128x128", "images:1x3x128x128", "images:8x3x256x256"],
        ),
        ({"pictures": True}, ["pictures:1x32x32x3", "pictures:1x96x128x3", "pictures:8x384x512x3"]),
    ],
    ids=str,
)
def test_tensorrt_is_told_of_every_size_that_the_file_takes(config: dict[str, object], shapes: list[str]) -> None:
    settings = ExportConfig.from_dict({"format": "onnx", "target": "tensorrt", **config})
    decoder = CHECKPOINT.model.decoder.model_copy(update={"queries": settings.queries or 20})
    checkpoint = CHECKPOINT.model_copy(update={"model": CHECKPOINT.model.model_copy(update={"decoder": decoder})})
    info = _describe(checkpoint, settings, "gather")
    out = Path("my models/steel's.onnx")
    words = shlex.split(trtexec(out, info))
    assert words[1:3] == ["--onnx=my models/steel's.onnx", "--saveEngine=my models/steel's.engine"]
    assert [word.partition("Shapes=")[2] for word in words if "Shapes=" in word] == shapes
    (note,) = _notes(out, info, settings, SimpleNamespace(runs=[(SimpleNamespace(confident=1), None)]))  # type: ignore[arg-type]
    assert ("adapt the sizes" in note) == (len({shape.partition("x")[2] for shape in shapes}) > 1)
