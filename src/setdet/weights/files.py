"""Our checkpoint: one safetensors file that rebuilds the model with nothing else.

The metadata holds `CheckpointInfo` as JSON: the model's configuration, class names, pre-processing, history.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from safetensors import SafetensorError, safe_open

from setdet.config import Config
from setdet.errors import ConfigError, WeightsError
from setdet.images import Preprocessing
from setdet.models.variants import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from setdet.models.rtdetr import RTDETR

_KEY = "setdet"
_CLASS_HEADS = ("query_selection.class_head.", "decoder.class_heads.", "decoder.denoising_embedding.")


class CheckpointInfo(Config):
    """What a checkpoint says of itself; every runtime obeys it."""

    model: ModelConfig
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    history: dict[str, Any] = Field(default_factory=dict, description="how the weights came about, free form")


def save_checkpoint(path: Path, *, state: "dict[str, Tensor]", info: CheckpointInfo) -> None:
    """Writes atomically: `path` holds either what it held before or the whole new file."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, name, metadata={_KEY: json.dumps(info.to_dict())})
        with open(name, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_info(path: Path) -> CheckpointInfo:
    """Reads the metadata alone, without torch.

    Raises:
        WeightsError: the file is missing, is no safetensors file, or is not one of ours.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: is not a safetensors file, or is cut short ({error}). "
            "Pickled checkpoints (.pt, .pth) are never executed; export them to safetensors first."
        ) from None
    if _KEY not in metadata:
        raise WeightsError(f"{path}: is a safetensors file without setdet's metadata, so its model is unknown.")
    try:
        return CheckpointInfo.from_dict(json.loads(metadata[_KEY]), source=str(path))
    except (json.JSONDecodeError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata cannot be read: {error}") from None


def load_checkpoint(path: Path) -> "tuple[CheckpointInfo, dict[str, Tensor]]":
    """Metadata and tensors, half precision widened to float32.

    Raises:
        WeightsError: as `read_info`, or a tensor holds NaN or infinity.
    """
    import torch
    from safetensors.torch import load_file

    info = read_info(path)
    state = load_file(path)
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{path}: {len(broken)} tensors hold NaN or infinity, first: {', '.join(broken[:3])}.")
    half = (torch.float16, torch.bfloat16)
    return info, {name: tensor.float() if tensor.dtype in half else tensor for name, tensor in state.items()}


def load_model(path: Path) -> "tuple[CheckpointInfo, RTDETR]":
    """The model with its weights, in evaluation mode.

    Raises:
        WeightsError: as `load_checkpoint`, or the tensors do not fit the model that the metadata describes.
    """
    import torch

    from setdet.models.rtdetr import build_model

    info, state = load_checkpoint(path)
    with torch.device("meta"):  # neither memory nor random numbers are spent on weights that are replaced
        model = build_model(info.model)
    differences = _differences(model.state_dict(), state)
    if differences:
        raise WeightsError(
            f"{path}: does not fit {info.model.name}, {len(differences)} differences: {'; '.join(differences[:3])}."
        )
    model.load_state_dict(state, assign=True)
    return info, model.eval()


def initialize_from(model: "RTDETR", path: Path, class_names: tuple[str, ...]) -> list[str]:
    """Starts fine-tuning from a checkpoint of the same architecture, whatever its classes.

    Class heads are taken over where both know the same classes in the same order; otherwise they keep their
    fresh initialisation.

    Returns:
        What was done, one line each, for the user to read.

    Raises:
        WeightsError: the checkpoint is of another architecture.
    """
    info, state = load_checkpoint(path)
    report = [f"initialised from {path} ({info.model.name}, {len(info.class_names)} classes)"]
    own = model.state_dict()
    if info.class_names != class_names:
        fresh = [name for name in own if name.startswith(_CLASS_HEADS)]
        state = {name: tensor for name, tensor in state.items() if name not in fresh} | {n: own[n] for n in fresh}
        report.append(f"class heads start anew: the classes differ ({len(fresh)} tensors)")
    differences = _differences(own, state)
    if differences:
        raise WeightsError(
            f"{path}: is a {info.model.name} and does not fit {model.config.name}, {len(differences)} differences: "
            f"{'; '.join(differences[:3])}. Train with --model {info.model.name}, or start from other weights."
        )
    model.load_state_dict(state)
    return report


def _differences(expected: "dict[str, Tensor]", found: "dict[str, Tensor]") -> list[str]:
    lines = [f"{name} is missing" for name in expected if name not in found]
    lines += [f"{name} is not part of the model" for name in found if name not in expected]
    lines += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return lines
