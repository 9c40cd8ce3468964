"""Checkpoints: our own format, and one door for all others.

Ours is one safetensors file that rebuilds the model with nothing else: its metadata holds `CheckpointInfo` as JSON.
Others are the RT-DETR authors' `.pth` files and the folders of `transformers`.
"""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from safetensors import SafetensorError, safe_open

from setdet.errors import ConfigError, MissingExtraError, WeightsError
from setdet.weights import transformers
from setdet.weights.info import METADATA_KEY, CheckpointInfo
from setdet.weights.whole import write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from setdet.models.rtdetr import RTDETR
    from setdet.models.variants import ModelConfig

__all__ = [
    "CheckpointInfo",
    "initialize_from",
    "load_backbone",
    "load_checkpoint",
    "load_model",
    "read_info",
    "save_checkpoint",
]

_CLASS_HEADS = ("query_selection.class_head.", "decoder.class_heads.", "decoder.denoising_embedding.")
_STARTS_AS_NOTHING = "decoder.rivals."  # adds nothing until it is trained: weights may well be without
_TORCH_SAVE = (b"PK", b"\x80")  # a zip archive, or a bare pickle
_SAFETENSORS_HEADER_LIMIT = 100_000_000  # bytes; safetensors itself reads no longer one


def save_checkpoint(path: Path, *, state: "dict[str, Tensor]", info: CheckpointInfo) -> None:
    """Writes atomically: `path` holds either what it held before or the whole new file.

    Raises:
        WriteError: it cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {METADATA_KEY: json.dumps(info.to_dict())}
    write_whole(path, lambda name: save_file(tensors, name, metadata=metadata))


def read_info(path: Path) -> CheckpointInfo:
    """What a checkpoint says of itself; torch is needed for the authors' `.pth` files alone.

    Raises:
        WeightsError: the path is missing, broken, or in none of the known formats.
        MissingExtraError: it is a `.pth` file, and PyTorch is not installed.
    """
    match _format(path):
        case "setdet":
            return _read_own_info(path)
        case "transformers":
            return transformers.read_info(_folder(path))
        case "authors":
            _need_torch(path)
            from setdet.weights import authors

            return authors.read_info(path)


def load_checkpoint(path: Path) -> "tuple[CheckpointInfo, dict[str, Tensor]]":
    """What a checkpoint says of itself, and its tensors under our names, in float32.

    Raises:
        WeightsError: as `read_info`, or the tensors don't fit, or hold NaN or infinity.
    """
    match _format(path):
        case "setdet":
            from safetensors.torch import load_file

            from setdet.weights.tensors import take

            return _read_own_info(path), take(load_file(path), source=str(path))
        case "transformers":
            return transformers.read(_folder(path))
        case "authors":
            from setdet.weights import authors

            return authors.read(path)


def load_model(path: Path) -> "tuple[CheckpointInfo, RTDETR]":
    """The model with its weights, in evaluation mode.

    Raises:
        WeightsError: as `load_checkpoint`, or the tensors do not fit the model that the metadata describes.
    """
    import torch

    from setdet.models.rtdetr import build_model
    from setdet.weights.tensors import check_fits, differences

    info, state = load_checkpoint(path)
    with torch.device("meta"):  # neither memory nor random numbers are spent on weights that are replaced
        model = build_model(info.model)
    check_fits(differences(model.state_dict(), state), lead=f"{path}: does not fit {info.model.name}")
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
    from setdet.weights.tensors import check_fits, differences

    info, state = load_checkpoint(path)
    report = [f"initialised from {path} ({info.model.name}, {len(info.class_names)} classes)"]
    own = model.state_dict()
    if info.class_names != class_names:
        fresh = [name for name in own if name.startswith(_CLASS_HEADS)]
        state = {name: tensor for name, tensor in state.items() if name not in fresh} | {n: own[n] for n in fresh}
        report.append(f"class heads start anew: the classes differ ({len(fresh)} tensors)")
    theirs, ours = ({name for name in names if name.startswith(_STARTS_AS_NOTHING)} for names in (state, own))
    if ours and not theirs:
        state |= {name: own[name] for name in ours}
        report.append(f"what queries are told of their rivals starts anew ({len(ours)} tensors)")
    if theirs and not ours:
        state = {name: tensor for name, tensor in state.items() if name not in theirs}
        report.append("what queries are told of their rivals is left out; to keep it: --set rivals=true")
    check_fits(
        differences(own, state),
        lead=f"{path}: is a {info.model.name} and does not fit {model.config.name}",
        advice=f" {_remedy(info.model, model.config)}, or start from other weights.",
    )
    model.load_state_dict(state)
    return report


def _remedy(theirs: "ModelConfig", ours: "ModelConfig") -> str:
    if theirs.name != ours.name:
        return f"Train with --model {theirs.name}"
    # A variant keeps the name of the model that it was made of.
    wanted, here = theirs.to_dict(), ours.to_dict()
    changes = [
        f"{section}.{name}={value}"
        for section in ("backbone", "encoder", "decoder")
        for name, value in wanted[section].items()
        if value != here[section].get(name) and name not in ("queries", "rivals")
    ]
    return f"Train the same variant: --set 'architecture=[{', '.join(changes)}]'"


def load_backbone(model: "RTDETR", path: Path) -> list[str]:
    """Takes over the backbone alone: from the ImageNet weights of the authors (`.pth`), or from any detector.

    Returns:
        What was done, one line each, for the user to read.

    Raises:
        WeightsError: the file is broken, or its backbone is another one.
    """
    from setdet.weights.tensors import check_fits, differences

    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    state = _backbone_state(path, model)
    check_fits(differences(own, state), lead=f"{path}: does not fit the backbone of {model.config.name}")
    model.load_state_dict(state, strict=False)
    return [f"backbone from {path} ({len(state)} tensors); everything behind it starts anew"]


def _backbone_state(path: Path, model: "RTDETR") -> "dict[str, Tensor]":
    if _format(path) == "authors":
        from setdet.weights.authors import tensors_of
        from setdet.weights.pickles import load_tensors
        from setdet.weights.remap import from_authors_backbone
        from setdet.weights.tensors import take

        _, state = tensors_of(path, load_tensors(path))
        if not any(name.startswith(("backbone.", "decoder.")) for name in state):
            try:
                return from_authors_backbone(take(state, source=str(path)), model.config)
            except WeightsError as error:
                raise WeightsError(f"{path}: is no backbone of {model.config.name}: {error}") from None
    _, state = load_checkpoint(path)
    return {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}


def _format(path: Path) -> Literal["setdet", "transformers", "authors"]:
    """By the content, not by the ending of the name."""
    if path.is_dir():
        return "transformers"
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file.")
    if path.suffix in (".onnx", ".xml", ".pt2"):
        raise WeightsError(
            f"{path}: is an exported detector, whose weights are folded: it can be run, but neither trained nor "
            "exported again. Name the checkpoint that it was made of."
        )
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(_TORCH_SAVE) and not _begins_safetensors(start):
        return "authors"
    of_transformers = path.name == transformers.WEIGHTS and (path.parent / transformers.CONFIG).is_file()
    if of_transformers and METADATA_KEY not in _metadata(path):
        return "transformers"
    return "setdet"


def _begins_safetensors(start: bytes) -> bool:
    """Whether nine bytes are the length of a header and its first brace; that length may itself begin like a pickle."""
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _SAFETENSORS_HEADER_LIMIT


def _need_torch(path: Path) -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(module="torch", extra="train", purpose=f"Reading {path}")


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: is neither a safetensors file nor a PyTorch checkpoint, or is cut short ({error}). "
            "Copy or download it again."
        ) from None


def _read_own_info(path: Path) -> CheckpointInfo:
    metadata = _metadata(path)
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path}: is a safetensors file without setdet's metadata, so its model is unknown. Of a model of "
            f"transformers, name the folder that holds it together with {transformers.CONFIG}."
        )
    try:
        return CheckpointInfo.from_dict(json.loads(metadata[METADATA_KEY]), source=str(path))
    except (json.JSONDecodeError, ConfigError) as error:
        raise WeightsError(f"{path}: its metadata cannot be read: {error}") from None
