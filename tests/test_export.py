"""Exported files, opened by their own runtimes: they find what the model finds, or are not written."""

import contextlib
import copy
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import jaxtyping
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import setdet
from setdet.cli import main
from setdet.data.sources import read_dataset
from setdet.data.surfaces import generate, make
from setdet.errors import ExportError, MissingExtraError, UsageError, WeightsError
from setdet.export import gate, int8, run
from setdet.export import onnx as onnx_export
from setdet.export.config import ExportConfig
from setdet.export.gate import Evidence
from setdet.export.run import Exported, export
from setdet.images import Preprocessing, preprocess
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import DecoderConfig, EncoderConfig, ModelConfig, ResNetConfig
from setdet.runtime.exported import open_exported
from setdet.runtime.openvino import OpenVINOEngine
from setdet.runtime.torch import TorchRuntime
from setdet.weights.catalog import resolve
from setdet.weights.files import CheckpointInfo, load_model, save_checkpoint

SIZE = (64, 96)
TINY = ModelConfig(
    name="tiny",
    num_classes=3,
    backbone=ResNetConfig(block="basic", blocks=(1, 1, 1, 1)),
    encoder=EncoderConfig(width=32, feedforward=64, heads=2, expansion=0.5, fusion_blocks=1),
    decoder=DecoderConfig(width=32, feedforward=64, heads=2, layers=1, eval_layers=1, queries=20),
)
INFO = CheckpointInfo(
    model=TINY,
    class_names=("scratch", "dent", "Öl"),
    preprocessing=Preprocessing(image_size=SIZE),
    history={"epochs": 3},
)
_GRAPHS: dict[str, bytes] = {}
_TO_ONNX = onnx_export.to_onnx


@pytest.fixture(scope="module")
def model() -> RTDETR:
    return scattered(TINY)


def scattered(config: ModelConfig) -> RTDETR:
    """With statistics and boxes that differ, which a fresh model has not."""
    torch.manual_seed(1)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.8, 1.2)
            elif any(part in name for part in ("box_head", "class_head", "sampling_offsets.weight", "rivals")):
                tensor.normal_(0, 0.2)
    return model


@pytest.fixture(autouse=True)
def _each_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing a graph takes many seconds, and most tests here are about what is done with it."""

    def cached(graph: Any, *, info: Any, opset: int) -> onnx.ModelProto:
        parts = info.model_dump(include={"input", "output", "dynamic_size", "sampling"})
        key = repr((parts, info.checkpoint.model, info.checkpoint.preprocessing))
        # OpenVINO reads either set of operators.
        keys = [f"{key} {one}" for one in ((opset, 18) if info.format == "openvino" else (opset,))]
        there = next((one for one in keys if one in _GRAPHS), keys[0])
        if there not in _GRAPHS:
            # Shapes that are symbols are no numbers to the checks of types.
            jaxtyping.config.update("jaxtyping_disable", True)
            try:
                _GRAPHS[there] = _TO_ONNX(graph, info=info, opset=opset).SerializeToString()
            finally:
                jaxtyping.config.update("jaxtyping_disable", False)
        return onnx.load_from_string(_GRAPHS[there])

    monkeypatch.setattr(onnx_export, "to_onnx", cached)


def pictures(count: int, height: int = SIZE[0], width: int = SIZE[1]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def write(model: RTDETR, out: Path, *, verify: bool = True, calibration: Path | None = None, **config: Any) -> Exported:
    config.setdefault("format", out.suffix.removeprefix(".") or "openvino")
    evidence = Evidence() if verify else None
    info = INFO.model_copy(update={"model": model.config})
    return export(info, model, ExportConfig(**config), out=out, evidence=evidence, calibration=calibration)


def file_of(done: Exported) -> Path:
    return done.path if done.path.is_file() else done.path / "model.xml"


def assert_finds_the_same(found: Any, expected: Any, *, boxes: float, scores: float) -> None:
    """As sets: where two scores are as good as equal, their order is that of the rounding."""
    assert [part.dtype for part in found] == [np.float32, np.float32, np.int64]
    assert [part.shape for part in found] == [part.shape for part in expected]
    np.testing.assert_allclose(found[1], expected[1], atol=scores)
    for picture in range(len(found[1])):
        for box, score, label in zip(*(part[picture] for part in found), strict=True):
            near = (np.abs(expected[1][picture] - score) <= 2 * scores) & (expected[2][picture] == label)
            assert (np.abs(expected[0][picture][near] - box).max(axis=1) < boxes).any()


@pytest.mark.parametrize("name", ["model.onnx", "model"])
def test_the_file_finds_what_the_model_finds_in_other_batches(model: RTDETR, tmp_path: Path, name: str) -> None:
    done, source = write(model, tmp_path / name, verify=False), TorchRuntime(model=model)
    for whole_batches in (False, True):
        runtime = open_exported(file_of(done), whole_batches=whole_batches)
        for count in (1, 3):
            assert_finds_the_same(runtime(pictures(count)), source(pictures(count)), boxes=1e-4, scores=1e-5)
        with pytest.raises(UsageError, match="for pictures of height 64, width 96; found 96 and 96.*any-size"):
            runtime(pictures(1, 96, 96))


def test_the_file_says_what_it_is(model: RTDETR, tmp_path: Path) -> None:
    done = write(model, tmp_path / "model.onnx", detections=False)
    stored = {prop.key: prop.value for prop in onnx.load(done.path).metadata_props}
    assert json.loads(stored["setdet"])["checkpoint"] == INFO.to_dict()
    assert stored["class_names"].splitlines() == ["scratch", "dent", "Öl"]
    assert open_exported(done.path).info == done.info and done.info.checkpoint.history == {"epochs": 3}
    report = json.loads((tmp_path / "model.parity.json").read_text())
    assert report["passed"] and report["precision"] == "fp32" and report["pictures"]["from"] == "generated surfaces"
    assert report["versions"].keys() == {"setdet", "onnx", "onnxruntime"}
    assert all(run["found"] == 1 and run["compared"] > 0 for run in report["runs"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.parity.json"]
    assert str(Path(__file__).parents[1]).encode() not in done.path.read_bytes()  # no paths of this machine


def test_the_graph_has_nothing_left_to_compute_once(model: RTDETR, tmp_path: Path) -> None:
    graph = onnx.load(write(model, tmp_path / "model.onnx", verify=False).path).graph
    operations = [node.op_type for node in graph.node]
    assert not {"BatchNormalization", "Range", "Sin", "Cos", "Shape", "Identity", "Constant", "If"} & set(operations)
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("decoder.layers.0.norm1/") for name in names)
    assert operations.count("GridSample") == 3
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, *SIZE]


def test_the_exported_file_is_loaded_as_weights_are(model: RTDETR, tmp_path: Path) -> None:
    image = generate(3, seed=2).image
    save_checkpoint(tmp_path / "w.safetensors", state=model.state_dict(), info=INFO)
    (expected,) = setdet.load(tmp_path / "w.safetensors", device="cpu").predict([image], threshold=0.0)
    for name in ("model.onnx", "model"):
        write(model, tmp_path / name, verify=False)
        detector = setdet.load(tmp_path / name, threads=1)
        assert detector.info == INFO and detector.class_names == INFO.class_names
        (found,) = detector.predict([image], threshold=0.0)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert found.image_size == expected.image_size
        with pytest.raises(UsageError, match="fixed in an exported file"):
            setdet.load(tmp_path / name, queries=5)


def test_the_file_carries_thresholds(model: RTDETR, tmp_path: Path) -> None:
    scores = TorchRuntime(model=model)(pictures(1))[1]
    chosen = dict.fromkeys(INFO.class_names, float(np.median(scores)) + 1e-4)
    done = write(model, tmp_path / "model.onnx", verify=False, thresholds=chosen)
    detector = setdet.load(done.path)
    assert detector.predictor.threshold == chosen
    (own,), (every,) = (detector.predict(list(pictures(1)), threshold=one) for one in (None, 0.0))
    kept = [score >= chosen[INFO.class_names[label]] for score, label in zip(every.scores, every.labels, strict=True)]
    assert own.labels.tolist() == every.labels[kept].tolist() and 0 < len(own.labels) < len(every.labels)
    with pytest.raises(UsageError, match="no threshold for dent"):
        write(model, tmp_path / "other.onnx", verify=False, thresholds={"scratch": 0.25, "Öl": 0.0})


def test_throughput_keeps_the_pictures_in_order(model: RTDETR, tmp_path: Path) -> None:
    file = file_of(write(model, tmp_path / "model", verify=False))
    for hint in ("latency", "throughput"):
        runtime = open_exported(file, hint=hint, threads=2)
        assert hint.upper() in str(runtime.engine.compiled.get_property("PERFORMANCE_HINT"))  # type: ignore[attr-defined]
    engine = runtime.engine
    assert isinstance(engine, OpenVINOEngine)
    engine.requests = [engine.compiled.create_infer_request() for _ in range(3)]  # one core has room for one
    assert_finds_the_same(runtime(pictures(7)), TorchRuntime(model=model)(pictures(7)), boxes=1e-4, scores=1e-5)


@pytest.mark.parametrize(("name", "hint"), [("model", "latency"), ("model", "throughput"), ("model.onnx", "latency")])
def test_two_cameras_share_an_engine(name: str, hint: str, model: RTDETR, tmp_path: Path) -> None:
    runtime = open_exported(file_of(write(model, tmp_path / name, verify=False)), hint=hint)  # type: ignore[arg-type]
    shown = pictures(8)
    expected = [runtime(shown[index : index + 1]) for index in range(8)]
    with ThreadPoolExecutor(8) as cameras:
        found = list(cameras.map(lambda number: runtime(shown[number % 8][None]), range(200)))
    for number, one in enumerate(found):
        for part, right in zip(one, expected[number % 8], strict=True):
            np.testing.assert_allclose(part, right, atol=1e-6)


@pytest.mark.slow
def test_fewer_layers_and_queries_are_cut_out(tmp_path: Path) -> None:
    decoder = TINY.decoder.model_copy(update={"layers": 3, "eval_layers": 3})
    model = scattered(TINY.model_copy(update={"decoder": decoder}))
    done = write(model, tmp_path / "model.onnx", decoder_layers=2, queries=7)
    assert done.info.checkpoint.model.decoder.eval_layers == 2
    found = open_exported(done.path)(pictures(3))
    expected = TorchRuntime(model=model, decoder_layers=2, queries=7)(pictures(3))
    assert found[1].shape == (3, 7)
    assert_finds_the_same(found, expected, boxes=1e-4, scores=1e-5)
    nodes = onnx.load(done.path).graph.node
    assert sum(node.op_type == "GridSample" for node in nodes) == 2 * 3
    assert not any("class_heads.0/" in node.name for node in nodes)  # only the last layer's scores are read


def test_for_tensorrt_of_any_size(model: RTDETR, tmp_path: Path) -> None:
    done = write(model, tmp_path / "model.onnx", target="tensorrt", dynamic_size=True)
    assert {run.name for run, _ in done.verdict.runs} >= {"height 128, width 128"}  # type: ignore[union-attr]
    assert done.info.least_side == 32 and done.info.sampling == "gather"
    check_sizes(model, done)
    loaded = onnx.load(done.path)
    assert [opset.version for opset in loaded.opset_import if not opset.domain] == [18]
    assert "GridSample" not in {node.op_type for node in loaded.graph.node}
    assert any("not run here" in note and "trtexec" in note and "--stronglyTyped" in note for note in done.notes)


def test_half_precision_for_tensorrt(model: RTDETR, tmp_path: Path) -> None:
    half = write(
        model, tmp_path / "half.onnx", target="tensorrt", dynamic_size=True, precision="fp16", verify=False
    )  # random weights are more sensitive than what is allowed
    assert half.info.kept == ("query_selection", "decoder")
    found, expected = (
        runtime(pictures(3, 96, 64)) for runtime in (open_exported(half.path), TorchRuntime(model=model))
    )
    np.testing.assert_allclose(found[1], expected[1], atol=0.01)
    graph = onnx.load(half.path).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[node.input[1]] for node in graph.node if node.op_type == "Conv"} == {onnx.TensorProto.FLOAT16}


def test_openvino_of_any_size(model: RTDETR, tmp_path: Path) -> None:
    check_sizes(model, write(model, tmp_path / "model", dynamic_size=True, sampling="gather", verify=False))


def check_sizes(model: RTDETR, done: Exported) -> None:
    runtime, source = open_exported(file_of(done)), TorchRuntime(model=model)
    for height, width in (SIZE, (96, 64), (160, 32)):
        images = pictures(3, height, width)
        assert_finds_the_same(runtime(images), source(images), boxes=1e-4, scores=1e-5)


@pytest.mark.parametrize("output", ["detections", "predictions"])
@pytest.mark.parametrize("resize", [pytest.param("stretch", marks=pytest.mark.slow), "letterbox"])
def test_pictures_in_detections_out(tmp_path: Path, resize: str, output: str) -> None:
    # More queries than such a small picture has tokens, which know of each other, and boxes by way of distributions.
    changes = {"box_refinement": "distribution", "queries": 200, "rivals": True, "layers": 2, "eval_layers": 2}
    decoder = TINY.decoder.model_copy(update=changes)
    model = scattered(TINY.model_copy(update={"decoder": decoder}))
    preprocessing = Preprocessing(image_size=SIZE, resize=resize)
    info = INFO.model_copy(update={"model": model.config, "preprocessing": preprocessing})
    config = ExportConfig(format="onnx", pictures=True, detections=output == "detections")
    done = export(info, model, config, out=tmp_path / "model.onnx", evidence=Evidence())
    assert [run.name for run, _ in done.verdict.runs][-1] == "pictures as they are"  # type: ignore[union-attr]
    runtime = open_exported(done.path)
    assert (runtime.info.input, runtime.info.output) == ("pictures", output)
    save_checkpoint(tmp_path / "w.safetensors", state=model.state_dict(), info=info)
    detector = setdet.load(tmp_path / "w.safetensors", device="cpu")
    for height, width in ((200, 120), (40, 50), (64, 300)):
        image = cv2.resize(generate(0, seed=1, size=400).image, (width, height))
        pixels, placement = preprocess(image, preprocessing)
        expected_boxes, expected, _ = detector.predictor.runtime(pixels[None])
        sides = np.array([width, height, width, height])
        boxes, scores, labels = runtime(image[None])
        assert boxes.shape == (1, 200, 4) and labels.dtype == np.int64
        np.testing.assert_allclose(scores, expected, atol=0.02)
        first = np.abs(boxes[0] * sides - placement.to_original(expected_boxes[0, :1])).max(axis=1)
        assert first.min() < 0.02 * max(height, width)
        if output == "detections":
            boxes_xyxy_px = runtime.engine(image[None])[0]
            assert (boxes_xyxy_px >= 0).all() and (boxes_xyxy_px <= sides).all()
            np.testing.assert_allclose(boxes_xyxy_px / sides, boxes, atol=1e-6)
    found, own = (one.predict([image], threshold=0.0)[0] for one in (setdet.load(done.path), detector))
    np.testing.assert_allclose(found.scores, own.scores, atol=1e-4)  # resized by setdet, and not once more


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_in_openvino(model: RTDETR, tmp_path: Path, precision: str) -> None:
    # Random weights are more sensitive than trained ones: what is allowed is not what is looked at here.
    done = write(model, tmp_path / "model", precision=precision, verify=False)
    assert open_exported(file_of(done)).info.precision == precision
    exact = write(model, tmp_path / "exact", verify=False)
    assert (done.path / "model.bin").stat().st_size < 0.6 * (exact.path / "model.bin").stat().st_size
    found, expected = (open_exported(file_of(one))(pictures(2)) for one in (done, exact))
    np.testing.assert_allclose(found[1], expected[1], atol=0.05)
    assert (found[1] != expected[1]).any()


def test_positions_stay_in_float32(tmp_path: Path) -> None:
    model = scattered(TINY.model_copy(update={"decoder": TINY.decoder.model_copy(update={"rivals": True})}))
    done = write(model, tmp_path / "model", precision="bf16", verify=False)
    assert done.info.sampling == "gather"
    engine = open_exported(file_of(done)).engine
    types = {
        node.get_friendly_name(): node.get_rt_info()["outputPrecisions"].astype(str)
        for node in engine.compiled.get_runtime_model().get_ordered_ops()  # type: ignore[attr-defined]
    }
    positions = {name: kind for name, kind in types.items() if ".positions/" in name and "_bf16" not in name}
    # A share of an area may be rounded once it is a share; what it is made of may not.
    positions = {name: kind for name, kind in positions.items() if "/Div" not in name}
    assert [name for name, kind in positions.items() if "bf16" in kind] == []
    for part in ("rivals", "cross_attention"):  # what overlaps what is a matter of positions, too
        assert any(part in name for name in positions), sorted(types)


def test_half_precision_can_count_the_cells_of_a_large_picture(model: RTDETR, tmp_path: Path) -> None:
    # 8,400 cells of two heads: numbers that a file of half precision doesn't hold.
    info = INFO.model_copy(update={"preprocessing": Preprocessing(image_size=(640, 640))})
    picture, found = pictures(1, 640, 640), {}
    for precision in ("fp32", "fp16"):
        config = ExportConfig(format="openvino", precision=precision)
        done = export(info, model, config, out=tmp_path / precision, evidence=None)
        found[precision] = open_exported(file_of(done), precision="fp32")(picture)
    np.testing.assert_allclose(found["fp16"][1], found["fp32"][1], atol=0.02)


def test_eight_bits(model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_ALLOWED", math.inf)  # random weights bear them nowhere
    make(tmp_path / "data", count=6, seed=9, size=96)
    done = write(model, tmp_path / "model", precision="int8", calibration=tmp_path / "data", verify=False)
    assert done.info.kept == ()
    text = (done.path / "model.xml").read_text()
    quantised = set(re.findall(r'name="(\w+)[^"]*fq_weights', text))
    assert quantised == {"backbone", "encoder", "memory_proj", "query_selection", "decoder"}
    assert "Sigmoid/fq_output" not in text  # SiLU would be cut in two
    found = open_exported(file_of(done))(pictures(3))
    np.testing.assert_allclose(found[1], TorchRuntime(model=model)(pictures(3))[1], atol=0.3)


def test_what_eight_bits_harm_stays_as_it_is() -> None:
    harms = {"stem": 3.0, "stage": 0.1, "decoder": 0.4, "head": 0.45}
    said: list[str] = []

    def without(patterns: list[str]) -> float:
        left_out = {part for part in harms for pattern in patterns[1:] if re.match(pattern, f"{part}/Conv")}
        return max(harm for part, harm in harms.items() if part not in left_out)

    found = int8.sensitive_parts(list(harms), alone=harms.__getitem__, without=without, say=said.append)
    # The two that are left beside the stem and the head are as much as is allowed; three would be more.
    assert found == ("stem", "head") and "stem in eight bits: 3.00" in said[0]
    with pytest.raises(ExportError, match="No part of the network bears eight bits"):
        int8.sensitive_parts(list(harms), alone=harms.__getitem__, without=lambda ignored: 1.0, say=said.append)


def test_the_gate_sees_no_picture_of_the_calibration(tmp_path: Path) -> None:
    make(tmp_path / "data", count=20, seed=9, size=96)
    config = ExportConfig(format="openvino", precision="int8")
    for alone in (False, True):
        if alone:  # nothing but a training split: the gate makes its own of it
            shutil.rmtree(tmp_path / "data" / "val")
            assert list(read_dataset(tmp_path / "data").splits) == ["train"]
        examples = run._calibration_pictures(tmp_path / "data", config)
        seen = gate.gather(Evidence(data=tmp_path / "data")).dataset.splits["val"]
        assert examples and seen and not set(examples) & {record.image for record in seen}
    (tmp_path / "data/train").rename(tmp_path / "data/test")
    with pytest.raises(UsageError, match="no training split to calibrate on, only test"):
        run._calibration_pictures(tmp_path / "data", config)


@pytest.mark.slow
def test_eight_bits_of_the_packaged_detector(tmp_path: Path) -> None:
    make(tmp_path / "data", count=60, seed=9)
    info, network = load_model(resolve("rtdetr-n/surfaces"))
    config = ExportConfig(format="openvino", precision="int8")
    evidence = Evidence(data=tmp_path / "data")
    done = export(info, network, config, out=tmp_path / "model", evidence=evidence, calibration=tmp_path / "data")
    assert "backbone.stem" in done.info.kept and "encoder.top_down.0" not in done.info.kept
    assert open_exported(file_of(done)).info.kept == done.info.kept


class TestTheGate:
    """What is known to go wrong is put into the file, and nothing may be left of it."""

    def refuse(self, model: RTDETR, folder: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any]) -> str:
        """The message, after `spoil` has had its way with the graph."""
        whole = onnx_export.to_onnx

        def spoiled(graph: Any, **given: Any) -> onnx.ModelProto:
            proto = whole(graph, **given)
            spoil(proto)
            return proto

        monkeypatch.setattr(onnx_export, "to_onnx", spoiled)
        with pytest.raises(ExportError) as caught:
            write(model, folder / "model.onnx")
        assert list(folder.iterdir()) == []
        write(model, folder / "model.onnx", verify=False)  # it was not the writing that failed
        return str(caught.value)

    @staticmethod
    def wrong_grid_sample(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            for attribute in node.attribute:
                if node.op_type == "GridSample" and attribute.name == "align_corners":
                    attribute.i = 1

    @staticmethod
    def baked_in_batch(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    @staticmethod
    def first_picture_for_all(proto: onnx.ModelProto) -> None:
        """A batch that is taken, but answered with its first picture."""
        (first,) = (node for node in proto.graph.node if proto.graph.input[0].name in node.input)
        index = numpy_helper.from_array(np.array([0]), "only_first")
        zeros = onnx.helper.make_node("Mul", ["images", "nothing"], ["images_times_zero"])
        pick = onnx.helper.make_node("Gather", ["images", "only_first"], ["first_image"], axis=0)
        spread = onnx.helper.make_node("Add", ["images_times_zero", "first_image"], ["first_for_all"])
        proto.graph.initializer.extend([index, numpy_helper.from_array(np.zeros((), np.float32), "nothing")])
        first.input[list(first.input).index("images")] = "first_for_all"
        for node in (spread, pick, zeros):
            proto.graph.node.insert(0, node)

    @staticmethod
    def overflow(proto: onnx.ModelProto) -> None:
        """One feature map in half precision, and too large for it."""
        node = next(n for n in proto.graph.node if n.name.startswith("encoder.input_proj.0"))
        position = list(proto.graph.node).index(node)
        for name, value in (("up", 1e6), ("down", 1e-6)):
            proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        steps = [
            onnx.helper.make_node("Mul", [node.input[0], "up"], ["large"]),
            onnx.helper.make_node("Cast", ["large"], ["half"], to=half),
            onnx.helper.make_node("Cast", ["half"], ["single"], to=single),
            onnx.helper.make_node("Mul", ["single", "down"], ["as_before"]),
        ]
        node.input[0] = "as_before"
        for step in reversed(steps):
            proto.graph.node.insert(position, step)

    def test_a_wrong_grid_sample(self, model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        message = self.refuse(model, tmp_path, monkeypatch, self.wrong_grid_sample)
        assert "boxes differ by" in message and "--sampling gather" in message

    def test_a_baked_in_batch(self, model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "batches of 5: the runtime fails" in self.refuse(model, tmp_path, monkeypatch, self.baked_in_batch)

    def test_a_batch_that_is_not_looked_at(
        self, model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = self.refuse(model, tmp_path, monkeypatch, self.first_picture_for_all)
        assert "batches of 5: " in message and "one picture" not in message

    def test_half_precision_that_overflows(
        self, model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "not finite" in self.refuse(model, tmp_path, monkeypatch, self.overflow)

    def test_half_precision_that_would_overflow_elsewhere(self, model: RTDETR, tmp_path: Path) -> None:
        """Features times 10⁷ between two layers: the same to float32, which is what a CPU computes in."""
        large = copy.deepcopy(model)
        first, second = large.backbone.stem[0], large.backbone.stem[1]
        with torch.no_grad():
            first.norm.weight.mul_(1e7)
            first.norm.bias.mul_(1e7)
            second.conv.weight.mul_(1e-7)
        with pytest.raises(ExportError, match=r"backbone\.stem\.0.* reaches .*, and half precision ends at 65504"):
            write(large, tmp_path / "model.onnx", precision="fp16")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_another_sampling_than_the_model_was_trained_with(self, model: RTDETR, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="models that were trained so"):
            write(model, tmp_path / "model", sampling="discrete")
        assert list(tmp_path.iterdir()) == []


def test_the_command(model: RTDETR, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, file = tmp_path / "w.safetensors", tmp_path / "model.onnx"
    save_checkpoint(weights, state=model.state_dict(), info=INFO)
    cv2.imwrite(str(tmp_path / "a.png"), generate(0, seed=1).image)
    picture = str(tmp_path / "a.png")
    assert main(["export", str(weights), "--format", "onnx", "--out", str(file), "--pictures", picture]) == 0
    said = capsys.readouterr()
    assert "tiny, 3 classes, fp32, grid sampling" in said.out and "found again" in said.out
    assert json.loads((tmp_path / "model.parity.json").read_text())["pictures"] == {"from": picture, "count": 1}
    assert main(["export", str(weights), "--format", "onnx", "--out", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["predict", str(file), picture, "--out", str(tmp_path / "p"), "--threads", "1"]) == 0
    assert main(["train", str(tmp_path), "--init", str(file)]) == 1
    assert "can be run, but neither trained" in capsys.readouterr().err


_WITHOUT_TORCH = """
import json, sys
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from setdet.cli import main
for path in sys.argv[3:]:
    code = main(["predict", path, sys.argv[2], "--threshold", "0", "--json", "--out", path + ".predictions"])
    assert code == 0, code
"""


def test_compiled_ahead_of_time(
    model: RTDETR, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The extra `train` has none of these, and is all that the format asks for.
    for module in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "setdet.export.onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    done = write(model, tmp_path / "model.pt2", detections=True)
    assert done.verdict is not None
    assert [run.name for run, _ in done.verdict.runs] == ["one picture at a time", "batches of 5"]
    assert setdet.load(done.path).info.class_names == INFO.class_names
    assert main(["export", str(tmp_path / "x"), "--format", "pt2", "--precision", "int8", "--out", "x.pt2"]) == 2
    assert "in fp32 or bf16" in capsys.readouterr().err
    done.path.write_bytes(done.path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cut short"):
        setdet.load(done.path)


def test_a_single_box_of_few_may_move_the_accuracy(
    model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "data", count=10, seed=9, size=96)
    boxes = sum(len(record.labels) for record in read_dataset(tmp_path / "data").splits["val"])
    for loss, passes in ((0.9 / boxes, True), (1.5 / boxes, False)):
        measured = iter([0.8, 0.8 - loss])
        monkeypatch.setattr(gate, "evaluate", lambda *given, **named: SimpleNamespace(ap=next(measured)))  # noqa: B023
        expected = contextlib.nullcontext() if passes else pytest.raises(ExportError, match=r"AP falls from 0\.8000")
        with expected:
            export(
                INFO,
                model,
                ExportConfig(format="onnx"),
                out=tmp_path / f"{passes}.onnx",
                evidence=Evidence(data=tmp_path / "data"),
            )
        assert (tmp_path / f"{passes}.onnx").exists() == passes


def test_signals_arrive_after_a_detector_was_let_go_in_another_thread(model: RTDETR, tmp_path: Path) -> None:
    done = write(model, tmp_path / "model", verify=False)
    code = (
        "import signal, sys, threading\n"
        "from pathlib import Path\n"
        "from setdet.runtime.exported import open_exported\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: print('arrived'))\n"
        "held = [open_exported(Path(sys.argv[1]))]\n"
        "thread = threading.Thread(target=held.clear); thread.start(); thread.join()\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(file_of(done))], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "arrived\n"), ran.stderr


def test_predicting_needs_no_torch(model: RTDETR, tmp_path: Path) -> None:
    from test_architecture import TRAIN_ONLY

    files = [write(model, tmp_path / name, verify=False).path for name in ("model.onnx", "model")]
    cv2.imwrite(str(tmp_path / "a.png"), generate(0, seed=1).image)
    blocked = json.dumps([*TRAIN_ONLY, "onnx", "onnxscript", "nncf"])
    arguments = [blocked, str(tmp_path / "a.png"), *map(str, files)]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["detections"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2 and all(len(one) == 20 for one in found)
    assert [one["score"] for one in found[0]] == pytest.approx([one["score"] for one in found[1]], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"format": "openvino", "target": "tensorrt"}, "reads ONNX files"),
        ({"format": "onnx", "precision": "bf16"}, "for --format openvino"),
        ({"format": "onnx", "precision": "int8"}, "for --format openvino"),
        ({"format": "openvino", "precision": "int8"}, "needs --calibrate"),
        ({"format": "onnx", "pictures": True, "dynamic_size": True}, "nothing to change"),
        ({"format": "onnx", "queries": 21}, "trained to select 20"),
    ],
)
def test_what_does_not_go_together(model: RTDETR, tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write(model, tmp_path / ("model.onnx" if config["format"] == "onnx" else "model"), **config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--format onyx", "Did you mean 'onnx'"),
        ("--format authors --precision fp16", "--precision is for files that a runtime opens"),
        ("--format onnx --inside resise", "Did you mean 'resize'"),
        ("--format onnx --precision fp8", "'precision' is 'fp8'"),
        ("--format onnx --no-verify --data x", "compares nothing"),
        ("--format onnx", "ends in .onnx"),
    ],
)
def test_wrong_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str) -> None:
    words = arguments.split()
    assert main(["export", "rtdetr-n/surfaces", *words, "--out", str(tmp_path / "model.bin")]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_is_named(model: RTDETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model, tmp_path / "model.onnx", verify=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'setdet\[onnx\]'"):
        setdet.load(tmp_path / "model.onnx")
    with pytest.raises(MissingExtraError, match=r"pip install 'setdet\[openvino\]'"):
        write(model, tmp_path / "model")


def test_files_that_are_not_ours(model: RTDETR, tmp_path: Path) -> None:
    done = write(model, tmp_path / "model.onnx", verify=False)
    proto = onnx.load(done.path)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    (tmp_path / "broken.xml").write_text("<net")
    (tmp_path / "broken.bin").touch()
    (tmp_path / "alone.xml").write_text("<net/>")
    for name, message in {
        "foreign.onnx": "no metadata of setdet",
        "broken.onnx": "ONNX Runtime cannot open it",
        "broken.xml": "OpenVINO cannot open it",
        "alone.xml": "alone.bin, are not beside it",
    }.items():
        with pytest.raises(WeightsError, match=message):
            setdet.load(tmp_path / name)


def test_options_that_an_engine_has_not(model: RTDETR, tmp_path: Path) -> None:
    file, folder = (write(model, tmp_path / name, verify=False).path for name in ("model.onnx", "model"))
    for source, options, message in (
        (file, {"precision": "bf16"}, "computes as the file says"),
        (file, {"hint": "throughput"}, "one batch at a time"),
        (file, {"device": "gpu"}, "not there for ONNX Runtime"),
        (folder, {"device": "gpu9"}, "not there for OpenVINO"),
        (folder, {"threads": 0}, "expected 1 or more"),
        ("rtdetr-n/surfaces", {"hint": "throughput"}, "exported for OpenVINO"),
    ):
        with pytest.raises(UsageError, match=message):
            setdet.load(source, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"decoder": {"query_source": "learned"}},
        {"decoder": {"points": (3, 4, 5), "sampling": "discrete"}},
        {"encoder": {"variant": "A"}},
        {"encoder": {"variant": "B"}},
        {"encoder": {"variant": "C"}},
        {"encoder": {"variant": "D"}},
        {"encoder": {"interaction": "cross"}},
    ],
    ids=str,
)
def test_every_part_that_can_be_chosen(tmp_path: Path, changes: dict[str, dict[str, Any]]) -> None:
    parts = TINY.to_dict()
    model = scattered(ModelConfig.from_dict({**parts, **{name: parts[name] | changes[name] for name in changes}}))
    done = write(model, tmp_path / "model.onnx", dynamic_size=True, verify=False)
    check_sizes(model, done)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetr-hgnetv2-l"])
def test_the_published_sizes(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = build_model(name, num_classes=3).eval()
    info = INFO.model_copy(update={"model": network.config, "preprocessing": Preprocessing(image_size=(320, 320))})
    for out in (tmp_path / "model.onnx", tmp_path / "model"):
        kind = "onnx" if out.suffix else "openvino"
        config = ExportConfig(format=kind, dynamic_size=True)
        done = export(info, network, config, out=out, evidence=Evidence())
        runtime, source = open_exported(file_of(done)), TorchRuntime(model=network)
        for height, width in ((320, 320), (256, 416)):
            images = pictures(3, height, width)
            np.testing.assert_allclose(runtime(images)[1], source(images)[1], atol=1e-3)
