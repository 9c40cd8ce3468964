"""Exported detectors: what their files say of themselves, and opening them with the engine that they are for. No torch.

An exported detector is an `.onnx` file, a folder with `model.xml` and `model.bin` of OpenVINO, or a `.pt2` file that
PyTorch has compiled. Each carries an `ExportInfo` as JSON: in ONNX under the key "setdet" of the metadata properties,
in OpenVINO under rt_info/setdet, in a `.pt2` file under "setdet" of the compiled model's metadata.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from setdet.config import Config
from setdet.errors import ConfigError, MissingExtraError, UsageError, WeightsError
from setdet.runtime.base import Candidates, best_candidates, check_batch
from setdet.weights.info import METADATA_KEY, CheckpointInfo

Format = Literal["onnx", "openvino", "pt2"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

OPENVINO_FILE = "model.xml"
INPUTS = {"tensor": "images", "pictures": "pictures"}
OUTPUTS = {"predictions": ("logits", "boxes_cxcywh"), "detections": ("boxes_xyxy_px", "scores", "labels")}

# What runs each format: what it is called, its module, and the extra that brings it.
_ENGINES: dict[Format, tuple[str, str, str]] = {
    "onnx": ("ONNX Runtime", "onnxruntime", "onnx"),
    "openvino": ("OpenVINO", "openvino", "openvino"),
    "pt2": ("PyTorch", "torch", "train"),
}

# Takes the graph's input and gives its outputs.
Engine = Callable[[NDArray[Any]], list[NDArray[Any]]]


class ExportInfo(Config):
    """What an exported file says of itself: enough to run it with nothing else."""

    checkpoint: CheckpointInfo = Field(description="model as it runs, class names, pre-processing, history")
    format: Format
    precision: Precision
    sampling: Literal["grid", "gather", "discrete"] = Field(description="how deformable attention reads the picture")
    input: Literal["tensor", "pictures"] = Field(
        description="tensor: `images` (n, 3, height, width) float32 RGB, 0 to 1, of the network's size; "
        "pictures: `pictures` (n, height, width, 3) uint8 RGB of any size, resized inside"
    )
    output: Literal["predictions", "detections"] = Field(
        description="predictions: `logits` (n, queries, classes) before the sigmoid and `boxes_cxcywh` (n, queries, 4) "
        "as shares of what went in, 0 to 1; detections, best first: `boxes_xyxy_px` (n, k, 4) in its pixels, "
        "`scores` (n, k) 0 to 1, `labels` (n, k) int64"
    )
    dynamic_size: bool = Field(description="any height and width that are multiples of 32, from `least_side` on")
    least_side: int = Field(description="the smallest side in pixels that has enough tokens for the queries")
    threshold: float | dict[str, float] = Field(
        default=0.5,
        description="the score from which a detection is shown unless another is asked for, or each class's",
    )
    kept: tuple[str, ...] = Field(default=(), description="parts that are not in this precision, for accuracy's sake")
    setdet: str = Field(description="version of setdet that wrote the file")


class ExportedRuntime:
    """Runs an exported detector; see `setdet.runtime.base.Runtime`."""

    def __init__(self, *, engine: Engine, info: ExportInfo) -> None:
        self.engine, self.info = engine, info

    def __call__(self, images: NDArray[np.uint8]) -> Candidates:
        """Detects; formats as in `Runtime`. A file that takes pictures takes them in any size.

        Raises:
            UsageError: `images` is not a uint8 batch of RGB pictures, or of a size that the file was not made for.
        """
        info = self.info
        check_batch(images, multiple=1 if info.input == "pictures" else 32)
        height, width = images.shape[1:3]
        own = info.checkpoint.preprocessing.image_size
        if info.input == "tensor" and (height, width) != own:
            if not info.dynamic_size:
                raise UsageError(
                    f"The file was exported for pictures of height {own[0]}, width {own[1]}; found {height} and "
                    f"{width}. Export again with --inside any-size to run it at other sizes."
                )
            if min(height, width) < info.least_side:
                raise UsageError(f"The file runs from {info.least_side} pixels a side on; found {height} and {width}.")
        outputs = self.engine(self.to_input(images))
        if info.output == "predictions":
            return best_candidates(outputs[0], outputs[1], top_k=info.checkpoint.model.decoder.queries)
        boxes, scores, labels = outputs
        shares = boxes.astype(np.float32) / np.array([width, height, width, height], np.float32)
        return shares.clip(0, 1), scores.astype(np.float32), labels.astype(np.int64)

    def to_input(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        """(n, height, width, 3) uint8 RGB as the graph takes them."""
        if self.info.input == "pictures":
            return np.ascontiguousarray(images)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def exported_format(path: Path) -> Format | None:
    """Which engine a path is for; None where it is no exported detector."""
    formats: dict[str, Format] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}
    return formats.get(path.suffix)


def open_exported(
    path: Path,
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    threads: int | None = None,
    hint: Literal["latency", "throughput"] = "latency",
    whole_batches: bool = False,
) -> ExportedRuntime:
    """Opens an exported file.

    Args:
        path: an `.onnx` or `.pt2` file, or the `.xml` of OpenVINO with its `.bin` beside it. A `.pt2` file holds
            machine code, which is run: open only what you trust.
        device: "auto", "cpu", or what the engine calls its devices ("cuda" for ONNX Runtime, "gpu" for OpenVINO).
        precision: arithmetic, in place of the file's own; OpenVINO alone.
        threads: CPU threads of one prediction; None: as the engine likes.
        hint: "latency": one picture at a time, as fast as it can be; "throughput": as many at a time as the machine
            has room for, which is faster for a stream of pictures. OpenVINO alone.
        whole_batches: run a batch as one, through the file's own dynamic shape. Else OpenVINO's pictures go
            through a graph compiled for a single one, which is faster.

    Raises:
        WeightsError: the file is broken, or not one of setdet's.
        UsageError: the device is not there, or an option is not of this engine.
        MissingExtraError: the engine is not installed.
    """
    chosen = exported_format(path)
    if chosen is None:
        raise WeightsError(f"{path}: is no exported detector; expected .onnx, .pt2, or OpenVINO's .xml.")
    _need_engine(chosen, path)
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: expected 1 or more.")
    if chosen != "openvino" and (precision is not None or hint != "latency"):
        what = "precision" if precision is not None else "hint"
        raise UsageError(
            f"{what}: {_ENGINES[chosen][0]} computes as the file says, one batch at a time. Leave it out, or export "
            "for OpenVINO."
        )
    if chosen == "onnx":
        from setdet.runtime.onnxruntime import open_onnx

        engine, info = open_onnx(path, device=device, threads=threads)
    elif chosen == "pt2":
        from setdet.runtime.compiled import open_compiled

        engine, info = open_compiled(path, device=device, threads=threads)
    else:
        from setdet.runtime.openvino import open_openvino

        engine, info = open_openvino(
            path, device=device, precision=precision, threads=threads, hint=hint, whole_batches=whole_batches
        )
    return ExportedRuntime(engine=engine, info=info)


def parse_info(text: str | None, path: Path) -> ExportInfo:
    """What the metadata of a file say; None: it has none.

    Raises:
        WeightsError: they are not of setdet, or of a newer one.
    """
    if text is None:
        raise WeightsError(
            f"{path}: holds no metadata of setdet ('{METADATA_KEY}'), so its classes and pre-processing are unknown. "
            "Export it with `setdet export`."
        )
    try:
        return ExportInfo.from_dict(json.loads(text), source="metadata")
    except (json.JSONDecodeError, ConfigError) as error:
        raise WeightsError(
            f"{path}: its metadata cannot be read: {error}\n"
            "It is broken, or of a newer setdet: export it again, or install that one."
        ) from None


def _need_engine(chosen: Format, path: Path) -> None:
    _, module, extra = _ENGINES[chosen]
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(module=module, extra=extra, purpose=f"Running {path}")
