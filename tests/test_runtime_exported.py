"""Opening exported files: what is not ours, or of a newer setdet, is said; a GPU that does not start, too."""

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino as ov
import pytest
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as onnx_errors
from openvino import opset13 as ops

from setdet.errors import UsageError, WeightsError, one_line
from setdet.images import Preprocessing
from setdet.runtime import openvino as openvino_engine
from setdet.runtime.exported import ExportedRuntime, ExportInfo, open_exported
from setdet.weights.info import CheckpointInfo
from small_data import SMALL

INFO = ExportInfo(
    checkpoint=CheckpointInfo(
        model=SMALL, class_names=("bright", "dark"), preprocessing=Preprocessing(image_size=(64, 96))
    ),
    format="onnx",
    precision="fp32",
    sampling="gather",
    input="tensor",
    output="predictions",
    dynamic_size=False,
    least_side=32,
    setdet="0",
)
SHAPE = [2, 3, 64, 96]


def write_onnx(folder: Path, text: str | None) -> Path:
    """A graph that gives what it is given."""
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, SHAPE) for name in ("images", "logits")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["images"], ["logits"])], "graph", values[:1], values[1:]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    if text is not None:
        onnx.helper.set_model_props(model, {"setdet": text})
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def write_openvino(folder: Path, text: str | None) -> Path:
    """A graph for two pictures, no more and no fewer."""
    given = ops.parameter(SHAPE)
    model = ov.Model([ops.reshape(given, np.array([2, 3, 64 * 96]), special_zero=False)], [given])
    if text is not None:
        model.set_rt_info(text, "setdet")
    ov.save_model(model, folder / "model.xml")
    return folder / "model.xml"


def write_compiled(folder: Path, text: str | None) -> Path:
    with zipfile.ZipFile(folder / "model.pt2", "w") as file:
        file.writestr("text", json.dumps(text))
    return folder / "model.pt2"


def load_compiled(path: str) -> Any:
    """In place of PyTorch's loader: a package is compiled machine code, which takes minutes to make."""
    text = json.loads(zipfile.ZipFile(path).read("text"))
    return SimpleNamespace(get_metadata=lambda: {} if text is None else {"setdet": text})


@pytest.mark.parametrize("write", [write_onnx, write_openvino, write_compiled])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no metadata of setdet"),
        ("{broken", "metadata cannot be read.*\n.*export it again"),
        ("[]", "metadata cannot be read"),
        (json.dumps(INFO.to_dict() | {"precision": "fp4"}), "'precision' is 'fp4'.*\n.*newer setdet"),
        (json.dumps(INFO.to_dict() | {"inputs": 2}), "unknown key 'inputs'. Did you mean 'input'"),
    ],
    ids=["none", "broken", "no-keys", "newer-value", "newer-key"],
)
def test_files_that_are_not_ours_or_newer(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, str | None], Path],
    text: str | None,
    message: str,
) -> None:
    monkeypatch.setattr(torch._inductor, "aoti_load_package", load_compiled)
    path = write(tmp_path, text)
    with pytest.raises(WeightsError, match=message) as caught:
        open_exported(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_batch_that_openvino_cannot_take_apart(tmp_path: Path) -> None:
    path = write_openvino(tmp_path, INFO.model_dump_json())
    assert open_exported(path, whole_batches=True).info == INFO
    with pytest.raises(WeightsError, match="OpenVINO cannot open it .*Export it again"):
        open_exported(path)


def test_an_engine_is_given_what_the_file_takes_and_gives_shares_of_it() -> None:
    given: list[np.ndarray] = []
    boxes = np.array([[[40, 25, 96, 60]]], np.float32)  # in pixels of the picture, and a little beyond it
    logits = np.array([[[0.0, 2.0]]], np.float32)

    def runtime(outputs: list[np.ndarray], **changes: object) -> ExportedRuntime:
        return ExportedRuntime(
            engine=lambda values: given.append(values) or outputs,  # type: ignore[func-returns-value]
            info=INFO.model_copy(update=changes),
        )

    pictures = runtime([boxes, np.ones((1, 1)), np.ones((1, 1), np.int32)], input="pictures", output="detections")
    found, scores, labels = pictures(np.full((1, 50, 80, 3), 255, np.uint8))
    assert given[-1].dtype == np.uint8 and given[-1].shape == (1, 50, 80, 3)
    assert found.tolist() == [[[0.5, 0.5, 1.0, 1.0]]] and (scores.dtype, labels.dtype) == (np.float32, np.int64)
    tensor = runtime([logits, np.full((1, 1, 4), 0.5, np.float32)], dynamic_size=True, least_side=96)
    assert tensor(np.full((1, 128, 96, 3), 255, np.uint8))[2].tolist() == [[1, 0]]
    assert given[-1].dtype == np.float32 and given[-1].shape == (1, 3, 128, 96) and (given[-1] == 1).all()
    with pytest.raises(UsageError, match="runs from 96 pixels a side on; found 128 and 64"):
        tensor(np.zeros((1, 128, 64, 3), np.uint8))


class _Session(onnxruntime.InferenceSession):  # type: ignore[misc]
    """Of a build with CUDA, where CUDA's libraries are missing."""

    def __init__(self, path: Path, options: Any, *, providers: list[str], **given: Any) -> None:
        super().__init__(path, options, providers=["CPUExecutionProvider"], **given)


class _SessionWithoutGPU(_Session):
    """Of a build with CUDA that has its libraries, and no GPU; as the base class, which would go on with the CPU."""

    def __init__(self, path: Path, options: Any, *, providers: list[str], **given: Any) -> None:
        if providers == ["CUDAExecutionProvider"]:
            if given.get("enable_fallback", 1):
                print("*************** EP Error ***************")
            else:
                raise RuntimeError("CUDA failure 100: no CUDA-capable device is detected")
        super().__init__(path, options, providers=providers, **given)


@pytest.mark.parametrize("session", [_Session, _SessionWithoutGPU])
def test_cuda_that_does_not_start(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    session: type,
) -> None:
    path = write_onnx(tmp_path, INFO.model_dump_json())
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(UsageError, match="CUDA is built into .* but did not start.*cuDNN.*use device cpu"):
        open_exported(path, device="cuda")
    with caplog.at_level(logging.WARNING, logger="setdet"):
        runtime = open_exported(path, device="cpu")
        assert caplog.messages == []
        runtime = open_exported(path)
    assert len(caplog.messages) == 1 and "did not start" in caplog.text and "Going on with the CPU" in caplog.text
    images = np.ones(SHAPE, np.float32)
    np.testing.assert_array_equal(runtime.engine(images)[0], images)
    assert capsys.readouterr().out == ""
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="ONNX Runtime cannot open it"):
        open_exported(tmp_path / "broken.onnx", device="cuda")


def test_errors_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(kind: type[Exception]) -> Callable[..., Any]:
        def fail(*given: Any, **named: Any) -> Any:
            raise kind

        return fail

    core = SimpleNamespace(available_devices=["CPU"], read_model=mute(RuntimeError))
    monkeypatch.setattr(openvino_engine, "openvino_core", lambda: core)
    monkeypatch.setattr(onnxruntime, "InferenceSession", mute(onnx_errors.Fail))
    monkeypatch.setattr(torch._inductor, "aoti_load_package", mute(RuntimeError))
    for write, name in ((write_onnx, "Fail"), (write_openvino, "RuntimeError"), (write_compiled, "RuntimeError")):
        with pytest.raises(WeightsError, match=rf"cannot open it \({name}\)\. Export it again"):
            open_exported(write(tmp_path, None))


@pytest.mark.parametrize(
    ("error", "first", "last"),
    [
        (ValueError("\nno such layer.\n at line 3. \n"), "no such layer", "at line 3"),
        (ValueError(""), "ValueError", "ValueError"),
        (KeyError(), "KeyError", "KeyError"),
    ],
    ids=str,
)
def test_what_an_error_says_in_one_line(error: Exception, first: str, last: str) -> None:
    assert (one_line(error), one_line(error, last=True)) == (first, last)
