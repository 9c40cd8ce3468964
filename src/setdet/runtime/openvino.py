"""The engine that runs OpenVINO files. No torch."""

import functools
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from setdet.errors import UsageError, WeightsError, one_line
from setdet.runtime.exported import Engine, ExportInfo, parse_info
from setdet.weights.info import METADATA_KEY

# The file's precision, or the one asked for → what OpenVINO computes in, if the device has it.
_ARITHMETIC = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "bf16"}
_CAPABILITY = {"bf16": "BF16", "f16": "FP16"}


@functools.cache
def openvino_core() -> ov.Core:
    """The process's only `ov.Core`, which stays.

    A core makes signals of the thread that it is made in arrive on a stack of its own, and frees that with itself. If
    another thread lets go of it, as Python's garbage collection does, the next signal ends the process.
    """
    return ov.Core()


def open_openvino(
    path: Path,
    *,
    device: str,
    precision: str | None,
    threads: int | None,
    hint: Literal["latency", "throughput"],
    whole_batches: bool,
) -> tuple[Engine, ExportInfo]:
    """The engine, and what the file says of itself; arguments as in `setdet.runtime.exported.open_exported`.

    Raises:
        WeightsError: the file is broken, or not one of setdet's.
        UsageError: the device is not there.
    """
    core = openvino_core()
    name = _device(core, device)
    if not path.with_suffix(".bin").is_file():
        raise WeightsError(f"{path}: its weights, {path.with_suffix('.bin').name}, are not beside it. Copy both files.")
    try:
        model = core.read_model(path)
        text = str(model.get_rt_info(METADATA_KEY).value) if model.has_rt_info(METADATA_KEY) else None
        info = parse_info(text, path)
        config: dict[str, Any] = {
            # Said always: on CPUs that have bfloat16 it would be the default, for float32 files too.
            "INFERENCE_PRECISION_HINT": arithmetic_of(core, name, precision or info.precision),
            "PERFORMANCE_HINT": hint.upper(),
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        return OpenVINOEngine(model, device=name, config=config, whole_batches=whole_batches), info
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: OpenVINO cannot open it ({one_line(error, last=True)}). Export it again."
        ) from None


class OpenVINOEngine:
    """Runs a batch: as one, or picture by picture in as many requests at a time as the hint allows."""

    def __init__(self, model: ov.Model, *, device: str, config: dict[str, Any], whole_batches: bool) -> None:
        if not whole_batches:
            # A graph for one picture knows its shapes and is faster; several pictures run as several requests.
            shape = model.input(0).get_partial_shape()
            model.reshape(ov.PartialShape([1, *list(shape)[1:]]))
        self.model, self.config = model, config
        self.compiled = openvino_core().compile_model(model, device, config)
        at_once = 1 if whole_batches else self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.whole_batches = whole_batches
        self.requests = self._new_requests(at_once)
        self._in_use = threading.Lock()  # by one thread at a time: the requests hold the outputs

    def __call__(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """The graph's outputs for a batch."""
        with self._in_use:
            try:
                return self._run(values)
            except BaseException:  # an interruption, too: some may still run
                self.requests = self._new_requests(len(self.requests))
                raise

    def _new_requests(self, count: int) -> list[ov.InferRequest]:
        # Requests of our own and not an AsyncInferQueue: no callback from OpenVINO's threads into Python.
        return [self.compiled.create_infer_request() for _ in range(count)]

    def _run(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        if self.whole_batches:
            self.requests[0].infer([values])
            return _outputs(self.requests[0])
        results = []
        at_once = len(self.requests)
        for index in range(len(values) + at_once):
            request = self.requests[index % at_once]
            if 0 <= index - at_once < len(values):
                request.wait()
                results.append(_outputs(request))
            if index < len(values):
                request.start_async([values[index : index + 1]])
        return [np.concatenate(parts) for parts in zip(*results, strict=True)]


def _outputs(request: ov.InferRequest) -> list[NDArray[Any]]:
    return [np.array(tensor.data) for tensor in request.output_tensors]


def _device(core: ov.Core, device: str) -> str:
    there = core.available_devices
    name = "CPU" if device == "auto" else device.upper()
    if name not in there:
        known = ", ".join(one.lower() for one in there)
        raise UsageError(f"The device '{device}' is not there for OpenVINO. Choose one of: auto, {known}.")
    return name


def arithmetic_of(core: ov.Core, device: str, precision: str) -> str:
    """What a device computes a precision in: OpenVINO's own word."""
    wanted = _ARITHMETIC[precision]
    needed = _CAPABILITY.get(wanted)
    capable = needed is None or needed in core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    return wanted if capable else "f32"  # float32 is all that a reduced precision has, and more
