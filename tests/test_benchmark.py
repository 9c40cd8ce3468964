"""Timing by a clock that is given, and the command on small models."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from setdet.benchmark.measure import Candidate, compare
from setdet.benchmark.picture import accuracy_over_time
from setdet.benchmark.timing import pictures_per_second, stages_of, take_turns
from setdet.benchmark.ways import Way, ways
from setdet.cli import main
from setdet.data.surfaces import make
from setdet.errors import UsageError
from setdet.images import Preprocessing
from setdet.models.rtdetr import build_model
from setdet.models.variants import DecoderConfig, EncoderConfig, ModelConfig, ResNetConfig
from setdet.predict import Predictor
from setdet.weights.files import CheckpointInfo, save_checkpoint

TINY = ModelConfig(
    name="tiny",
    num_classes=6,
    backbone=ResNetConfig(block="basic", blocks=(1, 1, 1, 1)),
    encoder=EncoderConfig(width=32, feedforward=64, heads=2, expansion=0.5),
    decoder=DecoderConfig(width=32, feedforward=64, heads=2, layers=2, eval_layers=2, queries=20),
)


class Clock:
    """Stands still, but for what `work` says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.order.append(name)
            self.now += seconds(self.order.count(name) - 1)

        return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "steel"
    make(folder, count=10, size=96)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("benchmark") / "tiny.safetensors", TINY)


def write(path: Path, model: ModelConfig) -> Path:
    torch.manual_seed(0)
    names = ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches")
    info = CheckpointInfo(
        model=model, class_names=names, preprocessing=Preprocessing(image_size=(64, 96)), history={"epochs": 1}
    )
    save_checkpoint(path, state=build_model(model).state_dict(), info=info)
    return path


def test_medians_ratios_and_turns() -> None:
    clock = Clock()
    # The first two rounds warm up, and what disturbs a whole round leaves the ratio as it is.
    slower = [100, 100, 1, 1, 10, 1, 1]
    # In every round each runs twice, and the first time, which is slow, does not count.
    first = clock.work("a", lambda n: 0.010 * slower[n // 2] + (n % 2 == 0))
    second = clock.work("b", lambda n: 0.005 * slower[n // 2] + (n % 2 == 0))
    a, b = take_turns({"a": first, "b": second}, rounds=5, clock=clock)
    assert (a.name, a.rounds, a.median_ms, a.ratio) == ("a", 5, pytest.approx(10), 1)
    assert b.median_ms == pytest.approx(5)
    assert b.ratio == pytest.approx(0.5)
    assert a.p95_ms == pytest.approx(np.percentile([10, 10, 100, 10, 10], 95))
    assert clock.order == ["b", "b", "a", "a", "a", "a", "b", "b"] * 3 + ["b", "b", "a", "a"]


@pytest.mark.parametrize(("count", "rounds"), [(0, 3), (1, 0)])
def test_nothing_to_time(count: int, rounds: int) -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        take_turns({str(index): list for index in range(count)}, rounds=rounds)


class Sleeper:
    """A runtime that takes a hundredth of a second a picture, by the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen = 0

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.seen += len(images)
        self.clock.now += 0.01 * len(images)
        n = len(images)
        return np.zeros((n, 1, 4), np.float32), np.zeros((n, 1), np.float32), np.zeros((n, 1), np.int64)


def test_stages_and_the_rate_of_a_stream(data: Path) -> None:
    clock = Clock()
    predictor = Predictor(runtime=Sleeper(clock), class_names=("a",), preprocessing=Preprocessing(image_size=(64, 64)))
    pictures = sorted(data.rglob("*.png"))
    stages = stages_of(predictor, pictures[0], rounds=3, clock=clock)
    assert (stages.decode, stages.prepare) == (0, 0)
    assert stages.network == pytest.approx(10)
    assert stages.whole == pytest.approx(10)
    runtime = Sleeper(clock)
    predictor = Predictor(runtime=runtime, class_names=("a",), preprocessing=Preprocessing(image_size=(64, 64)))
    rate = pictures_per_second(predictor, pictures[:3], count=40, batch_size=4, clock=clock)
    assert runtime.seen == 40
    assert 80 < rate <= 115  # batches ahead of the clock's start are few


def test_every_combination_of_ways() -> None:
    found = ways(["torch", "openvino:int8"], decoder_layers=[1, 2], queries=[None])
    assert [str(one) for one in found] == [
        "torch fp32, 1 layer",
        "torch fp32, 2 layers",
        "openvino int8, 1 layer",
        "openvino int8, 2 layers",
    ]
    assert {one.line for one in found} == {"torch fp32", "openvino int8"}
    assert str(Way("onnx", "fp16", queries=50)) == "onnx fp16, 50 queries"
    with pytest.raises(UsageError, match=r"onnx computes in fp32, fp16, not in int8"):
        ways(["onnx:int8"], decoder_layers=[None], queries=[None])
    with pytest.raises(UsageError, match=r"no such engine.*openvino"):
        ways(["openvin"], decoder_layers=[None], queries=[None])


def test_candidates_that_differ_in_layers_are_one_line(data: Path) -> None:
    clock, hints = Clock(), list[str]()

    def opened(hint: str) -> Predictor:
        hints.append(hint)
        return Predictor(runtime=Sleeper(clock), class_names=("a",), preprocessing=Preprocessing(image_size=(64, 64)))

    candidates = [Candidate(name=f"x, {n} layers", line="x", open=opened) for n in (1, 2)]
    compared = compare(
        [*candidates, Candidate(name="y", line="y", open=opened)],
        sorted(data.rglob("*.png")),
        rounds=1,
        peers={"theirs": list},
        accuracy=lambda predictor: 0.5,
        settings={"threads": None},
        say=lambda line: None,
    )
    assert list(compared.measured) == ["x, 1 layers", "x, 2 layers", "y"]
    assert hints == ["latency"] * 3 + ["throughput"] * 3
    assert list(compared.peers) == ["theirs"]
    chart = accuracy_over_time(compared)
    assert chart is not None
    lines = re.findall(r'<polyline class="s\d" points="([^"]*)"', chart.svg)
    assert sorted(len(points.split()) for points in lines) == [1, 2, 2, 2]  # y, x, and their keys in the legend
    assert len(re.findall(r"<title>(x|y): 0.5 at", chart.svg)) == 3
    without = compare(
        candidates,
        sorted(data.rglob("*.png")),
        rounds=1,
        peers={},
        accuracy=None,
        settings={},
        say=lambda line: None,
    )
    assert accuracy_over_time(without) is None


def test_the_command(weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"benchmark {weights} --decoder-layers 1,2 --queries 5 --data {data} --rounds 2 --out {tmp_path} --json"
    assert main([*arguments.split(), "--peers", "transformers", "--device", "cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    names = ["tiny, torch fp32, 5 queries, 1 layer", "tiny, torch fp32, 5 queries, 2 layers"]
    assert list(values["measured"]) == names
    one = values["measured"][names[0]]
    assert one["alone"]["rounds"] == 2
    assert 0 < one["alone"]["median_ms"] <= one["whole"]["median_ms"] * 10
    assert one["pictures_per_second"] > 0
    assert 0 <= one["ap"] <= 1
    assert set(values["peers"]) == {"transformers, PyTorch, fp32", "transformers, OpenVINO, fp32"}
    assert values["machine"]["versions"]["setdet"]
    assert "<svg" in (tmp_path / "benchmark.svg").read_text(encoding="utf-8")


def test_peers_of_weights_that_know_rivals_are_without(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "told.safetensors", TINY.override(["decoder.rivals=true"]))
    command = ["benchmark", str(path), "--rounds", "1", "--pictures", str(data), "--peers", "transformers", "--json"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "without them" in shown.err
    assert "transformers, PyTorch, fp32" in json.loads(shown.out)["peers"]


def test_the_table(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", str(weights), "--rounds", "1", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"tiny, torch fp32 .* 1\.00×", shown)
    assert "pictures/s, streamed" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--peers ultralytics", "Known: transformers"),
        ("--decoder-layers one", "such as 1,2,3"),
        ("--runtimes tensorflow", "no such engine"),
        ("--runtimes openvino:int8", "needs --data"),
        ("--decoder-layers 3", "2"),
        ("--image-size 650", "multiples of 32"),
        ("--out {used}", "the folder is in use"),
    ],
)
def test_wrong_commands(weights: Path, capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    options = options.format(used=weights.parent)
    what = "rtdetr-n" if "--image-size" in options else str(weights)
    assert main(["benchmark", what, *options.split()]) == 2
    assert message in capsys.readouterr().err
