"""Parts of an export by themselves, without one: nothing here takes the seconds of capturing a graph."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as ops

from setdet.export import gate, verify
from setdet.export.config import ExportConfig
from setdet.export.openvino import write
from setdet.export.run import _describe, _notes, trtexec
from setdet.images import Preprocessing
from setdet.models.rtdetr import build_model
from setdet.runtime.exported import ExportInfo
from setdet.weights.info import CheckpointInfo
from small_data import SMALL

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
