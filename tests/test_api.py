"""The public names, and the calls behind them."""

import inspect
import logging
import os
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import setdet
from setdet.api import _fresh
from setdet.errors import ConfigError, DataError, ImageError, MissingExtraError, OutputError, UsageError, WeightsError
from setdet.models.variants import MODELS
from small_data import CLASS_NAMES, SMALL, write_voc, write_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    write_weights(path)
    return path


@pytest.fixture
def detector(weights: Path) -> setdet.Detector:
    return setdet.load(weights, device="cpu")


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_public_names_are_sorted_and_there() -> None:
    assert sorted(setdet.__all__) == setdet.__all__
    assert set(setdet.__all__) <= set(dir(setdet))
    for name in setdet.__all__:
        assert getattr(setdet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        setdet.lode  # noqa: B018


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert setdet.__version__ == project["version"]


def test_import_is_lazy() -> None:
    heavy = "{'torch', 'cv2', 'numpy', 'pydantic', 'PIL'}"
    assert python(f"import sys, setdet; print(sorted({heavy} & set(sys.modules)))") == "[]"
    assert python(
        "import sys, setdet; setdet.load, setdet.train, setdet.Detections; print('torch' in sys.modules)"
    ) == ("False")


def test_resuming_needs_a_folder() -> None:
    with pytest.raises(UsageError, match="Resuming needs out"):
        setdet.train("data", resume=True)


def test_resuming_takes_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="either resume or recipe"):
        setdet.train("data", out=tmp_path, resume=True, recipe="paper-v1")


def test_public_functions_name_their_arguments() -> None:
    for function in (setdet.load, setdet.train, setdet.build_model, setdet.draw_detections):
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds


def test_load_and_predict(detector: setdet.Detector) -> None:
    assert detector.class_names == CLASS_NAMES and detector.info.model.name == "small"
    assert "small" in repr(detector) and "bright, dark" in repr(detector)
    images = [np.zeros((40, 50, 3), np.uint8), np.full((64, 64), 255, np.uint8)]
    found = detector.predict(images, threshold=0.0)
    assert [one.image_size for one in found] == [(40, 50), (64, 64)] and all(len(one) for one in found)
    assert [one.scores.tolist() for one in detector.stream(iter(images), threshold=0.0)] == [
        one.scores.tolist() for one in found
    ]
    with pytest.raises(ImageError, match=r"missing\.png"):
        detector.predict(["missing.png"])


def test_what_is_asked_for_reaches_the_engine(weights: Path) -> None:
    detector = setdet.load(weights, device="cpu", queries=5, precision="bf16", reduced_decoding=True)
    assert detector.predictor.reduced_decoding and detector.predictor.runtime.precision == "bf16"  # type: ignore[attr-defined]
    assert [len(one) for one in detector.predict([np.zeros((64, 64), np.uint8)], threshold=0.0)] == [5]
    with pytest.raises(UsageError, match="decoder_layers=9"):
        setdet.load(weights, device="cpu", decoder_layers=9)


def test_a_run_folder_is_a_source(weights: Path, detector: setdet.Detector) -> None:
    assert setdet.load(weights.parent, device="cpu").info == detector.info


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rtdetr-n", r"'rtdetr-n' is a model, not weights.*rtdetr-n/surfaces"),
        ("rtdetr-x/nothing", r"Did you mean 'rtdetr-"),
        ("missing.safetensors", "no such file"),
    ],
)
def test_what_is_no_weights(source: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        setdet.load(source)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[int]]:
            return os._exit, (1,)

    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(WeightsError, match="never executed"):
        setdet.load(path)


def test_wrong_device_and_precision(weights: Path) -> None:
    with pytest.raises(UsageError, match="no device 'gpu'"):
        setdet.load(weights, device="gpu")
    with pytest.raises(UsageError, match="no precision 'int8'"):
        setdet.load(weights, precision="int8")  # type: ignore[arg-type]


def test_without_torch_the_pip_command_is_quoted(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'setdet\[train\]'"):
        setdet.load(weights)
    with pytest.raises(MissingExtraError, match="Training needs the package 'torch'"):
        setdet.train("data")


def test_evaluate(detector: setdet.Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_voc(tmp_path / "data")
    with caplog.at_level(logging.WARNING, logger="setdet"):
        result = detector.evaluate(data, confidence=0.3)
    assert (result.images, result.boxes) == (2, 2) and result.ap50 is not None
    assert result.given is not None and result.given.confidence == 0.3
    assert "VOC" in caplog.text
    assert detector.evaluate(data, split="train").images == 8
    with pytest.raises(UsageError, match=r"has no split 'test'. Choose one of: train, val"):
        detector.evaluate(data, split="test")
    with pytest.raises(UsageError, match="confidence is 2"):
        detector.evaluate(data, confidence=2)
    with pytest.raises(DataError, match="does not exist"):
        detector.evaluate(tmp_path / "missing")


def test_evaluate_announces_the_split_that_it_makes(
    detector: setdet.Detector, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_voc(tmp_path / "data", train=10, val=0)
    assert detector.evaluate(data).images == 2
    assert "There is no validation split: 2 of 10" in caplog.text


def test_evaluate_matches_classes_by_name(tmp_path: Path) -> None:
    data = write_voc(tmp_path / "data")
    write_weights(tmp_path / "other.safetensors", class_names=("scratch", "dark"))
    with pytest.raises(DataError, match="bright"):
        setdet.load(tmp_path / "other.safetensors", device="cpu").evaluate(data)


def test_train_makes_a_detector_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "small", SMALL)
    data, out = write_voc(tmp_path / "data"), tmp_path / "run"
    result = setdet.train(
        data,
        model="small",
        out=out,
        epochs=1,
        image_size=64,
        batch_size=4,
        device="cpu",
        precision="fp32",
        workers=0,
        overrides=["evaluate_every=0", "queries=20"],
    )
    assert (result.epochs, result.steps, result.out) == (1, 2, out)
    detector = setdet.load(out, device="cpu")
    assert set(detector.class_names) == set(CLASS_NAMES) and detector.info.preprocessing.image_size == (64, 64)
    (found,) = detector.predict([np.zeros((64, 64), np.uint8)], threshold=0.0)
    assert len(found) == 20
    resumed = setdet.train(data, out=out, resume=True)
    assert (resumed.epochs, resumed.steps) == (1, 2)  # with the configuration of the run
    with pytest.raises(OutputError, match="in use"):
        setdet.train(data, model="small", out=out, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "rtdetr-r19"}, "There is no model 'rtdetr-r19'. Did you mean 'rtdetr-r18'"),
        ({"recipe": "papier"}, "There is no recipe 'papier'"),
        ({"image_size": 100}, "multiples of 32"),
        ({"overrides": ["epoch=3"]}, "Did you mean 'epochs'"),
        ({"overrides": ["architecture=[encoder.interacion=cross]"]}, "Did you mean 'interaction'"),
        ({"out": "nowhere", "resume": True}, "there is no run to resume"),
    ],
)
def test_wrong_training(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        setdet.train(tmp_path, **arguments)  # type: ignore[arg-type]


def test_weights_to_start_from_say_which_model(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no model 'small'"):
        setdet.train(tmp_path, init=weights)
    monkeypatch.setitem(MODELS, "small", SMALL)
    config = _fresh("default", model=None, init=str(weights), backbone_weights=None, image_size=(64, 64))
    assert (config.model, config.init, config.image_size) == ("small", str(weights), (64, 64))
    assert _fresh("paper-v1", model=None, init=None, backbone_weights=None, image_size=None).model == "rtdetr-r50"
