"""The engine that runs ONNX files with ONNX Runtime. No torch."""

import logging
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from setdet.errors import UsageError, WeightsError, one_line
from setdet.runtime.exported import Engine, ExportInfo, parse_info
from setdet.weights.info import METADATA_KEY

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# They have no common base; the first two are a device's.
_ERRORS = (
    RuntimeError,
    errors.EPFail,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
_ERRORS_ONLY = 3  # of ONNX Runtime's severities; its warnings are about its own optimisations
_log = logging.getLogger("setdet")


def open_onnx(path: Path, *, device: str, threads: int | None) -> tuple[Engine, ExportInfo]:
    """The engine, and what the file says of itself; arguments as in `setdet.runtime.exported.open_exported`.

    Raises:
        WeightsError: the file is broken, or not one of setdet's.
        UsageError: the device is not there, or does not start.
    """
    there = onnxruntime.get_available_providers()
    known = ["auto", *(name for name, provider in _PROVIDERS.items() if provider in there)]
    if device not in known:
        raise UsageError(f"The device '{device}' is not there for ONNX Runtime. Choose one of: {', '.join(known)}.")
    chosen = known[-1] if device == "auto" else device
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    session = _start(path, options, chosen)
    if _PROVIDERS[chosen] not in session.get_providers():
        what = (
            f"{chosen.upper()} is built into ONNX Runtime {onnxruntime.__version__} but did not start: it takes a GPU, "
            "its driver, and the CUDA and cuDNN of this release"
        )
        if device != "auto":
            raise UsageError(f"{what}. Install them, or use device cpu.")
        _log.warning("%s. Going on with the CPU.", what)
    info = parse_info(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), path)
    name = session.get_inputs()[0].name

    def run(values: NDArray[Any]) -> list[NDArray[Any]]:
        return list(session.run(None, {name: values}))

    return run, info


def _start(path: Path, options: onnxruntime.SessionOptions, device: str) -> onnxruntime.InferenceSession:
    """A session, on the CPU where the device does not start; its `get_providers` say which.

    Where CUDA's libraries are missing, ONNX Runtime goes on with the CPU by itself. Where there is no GPU it raises, or
    without `enable_fallback=0` says so on the standard output, which is for results.
    """
    try:
        return onnxruntime.InferenceSession(path, options, providers=[_PROVIDERS[device]], enable_fallback=0)
    except _ERRORS as error:
        if device != "cpu":
            return _start(path, options, "cpu")
        raise WeightsError(f"{path}: ONNX Runtime cannot open it ({one_line(error)}). Export it again.") from None
