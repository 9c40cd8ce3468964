"""The engine that runs ONNX files with ONNX Runtime. No torch."""

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from setdet.errors import UsageError, WeightsError
from setdet.runtime.exported import Engine
from setdet.weights.info import METADATA_KEY

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3  # of ONNX Runtime's severities; its warnings are about its own optimisations


def open_onnx(path: Path, *, device: str, threads: int | None) -> tuple[Engine, str | None]:
    """The engine and the file's metadata; arguments as in `setdet.runtime.exported.open_exported`.

    Raises:
        WeightsError: the file is broken.
        UsageError: the device is not there.
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
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[_PROVIDERS[chosen]])
    except (
        errors.Fail,
        errors.InvalidProtobuf,
        errors.InvalidGraph,
        errors.InvalidArgument,
        errors.NoSuchFile,
    ) as error:
        raise WeightsError(f"{path}: ONNX Runtime cannot open it ({str(error).splitlines()[0]}).") from None
    name = session.get_inputs()[0].name

    def run(values: NDArray[Any]) -> list[NDArray[Any]]:
        return list(session.run(None, {name: values}))

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
