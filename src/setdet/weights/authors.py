"""Checkpoints of the RT-DETR authors' PyTorch code (`.pth`), versions 1 and 2.

They hold tensors and nothing else, so the model is recognised by the names and shapes, and the input is taken to be
what all published models have: 640×640, stretched.
"""

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from setdet.errors import ConfigError, WeightsError
from setdet.images import Preprocessing
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS, ModelConfig, ResNetConfig
from setdet.weights.classes import default_class_names
from setdet.weights.info import METADATA_KEY, CheckpointInfo
from setdet.weights.pickles import load_tensors
from setdet.weights.plain import extras
from setdet.weights.remap import (
    State,
    from_authors_v1,
    from_authors_v2,
    is_authors_v2,
    to_authors_v1,
    to_authors_v2,
)
from setdet.weights.remap.authors import is_buffer
from setdet.weights.tensors import check_fits, differences, take

_CLASS_HEAD = "decoder.enc_score_head.weight"
_POINT_WEIGHTS = "decoder.decoder.layers.0.cross_attn.attention_weights.weight"
_POINT_SCALES = "decoder.decoder.layers.0.cross_attn.num_points_scale"
_ANCHORS = "decoder.anchors"
_DISCRETE = "_dsp"  # in a file's name: discrete sampling leaves no trace in the tensors


def read_info(path: Path) -> CheckpointInfo:
    """What the checkpoint holds; see `read`."""
    return _describe(path)[0]


def read(path: Path) -> tuple[CheckpointInfo, State]:
    """What the checkpoint holds, and its tensors under our names.

    The averaged weights (`ema`) are preferred to the last ones (`model`).

    Raises:
        WeightsError: the file is broken, unsafe, of no model that is known here, or holds NaN or infinity.
    """
    info, state = _describe(path)
    back = from_authors_v2 if is_authors_v2(state) else from_authors_v1
    return info, back(take(state, source=str(path)), info.model)


def tensors_of(path: Path, content: Any) -> tuple[str, State]:
    """The weights in a checkpoint, and where in it they were.

    Raises:
        WeightsError: there are none.
    """
    if isinstance(content, dict):
        averaged = content.get("ema")
        places = {
            "ema": averaged.get("module") if isinstance(averaged, dict) else None,
            "model": content.get("model"),
            "the top level": content,
        }
        for place, candidate in places.items():
            if state := _as_state(candidate):
                return place, state
        found = f"the keys {', '.join(map(str, list(content)[:5]))}"
    else:
        found = f"a {type(content).__name__}"
    raise WeightsError(
        f"{path}: holds no weights: expected tensors by name under ema.module, under model, or at the top; "
        f"found {found}."
    )


def _as_state(value: Any) -> State:
    """Tensors by name, empty if it is anything else; without the `module.` of DistributedDataParallel."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        return {}
    if not all(isinstance(tensor, Tensor) and tensor.layout == torch.strided for tensor in value.values()):
        return {}
    wrapped = all(name.startswith("module.") for name in value)
    return {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in value.items()}


def _describe(path: Path) -> tuple[CheckpointInfo, State]:
    """What the checkpoint holds, and its tensors under the authors' names, still in the file."""
    content = load_tensors(path)
    place, stored = tensors_of(path, content)
    state = {name: tensor for name, tensor in stored.items() if not is_buffer(name)}
    if isinstance(content, dict) and METADATA_KEY in content:  # written by `setdet export`
        info = _own_info(path, content[METADATA_KEY])
        lines = differences(_expected(info.model, version_2=is_authors_v2(state)), state)
        check_fits(lines, lead=f"{path}: does not fit {info.model.name}")
        return info, state
    config = _recognise(path, state, scales=stored.get(_POINT_SCALES))
    side = _trained_side(stored.get(_ANCHORS))
    history = {
        "read_from": path.name,
        "format": f"RT-DETR authors, version {2 if is_authors_v2(state) else 1}",
        "weights": place,
    }
    info = CheckpointInfo(
        model=config,
        class_names=default_class_names(config.num_classes),
        preprocessing=Preprocessing(image_size=(side, side)),
        history=history,
    )
    return info, state


def _own_info(path: Path, text: Any) -> CheckpointInfo:
    try:
        return CheckpointInfo.from_dict(json.loads(text), source=str(path))
    except (TypeError, json.JSONDecodeError, ConfigError) as error:
        raise WeightsError(f"{path}: its description cannot be read: {error}") from None


def _recognise(path: Path, state: State, *, scales: Tensor | None) -> ModelConfig:
    """The model whose tensors these are.

    Raises:
        WeightsError: there is none; the message compares with the nearest.
    """
    head = state.get(_CLASS_HEAD)
    if head is None or head.dim() != 2:
        names = ", ".join(list(state)[:3])
        raise WeightsError(
            f"{path}: is no RT-DETR of its authors: {_CLASS_HEAD} is missing. "
            f"Its {len(state)} tensors begin with {names}."
        )
    version_2 = is_authors_v2(state)
    prefix = "rtdetrv2-" if version_2 else "rtdetr-"
    resnet = any(name.startswith("backbone.res_layers.") for name in state)
    best: tuple[list[str], ModelConfig] | None = None
    for config in MODELS.values():
        if not config.name.startswith(prefix) or isinstance(config.backbone, ResNetConfig) != resnet:
            continue
        if extras(config) or (config.decoder.sampling == "discrete") != (_DISCRETE in path.name):
            continue
        points = _points(config, state.get(_POINT_WEIGHTS), scales)
        config = config.model_copy(
            update={"num_classes": head.shape[0], "decoder": config.decoder.model_copy(update={"points": points})}
        )
        lines = differences(_expected(config, version_2=version_2), state)
        if best is None or len(lines) < len(best[0]):
            best = lines, config
        if not lines:
            return config
    if best is None:
        raise WeightsError(f"{path}: no model with discrete sampling has such tensors. Rename the file without '_dsp'.")
    check_fits(best[0], lead=f"{path}: fits no model; to the nearest, {best[1].name}")
    return best[1]


def _points(config: ModelConfig, weights: Tensor | None, scales: Tensor | None) -> int | tuple[int, int, int]:
    """Sampling points of each level: version 2 stores one scale a point, which is 1 / points of its level."""
    if weights is None or weights.dim() != 2:
        return config.decoder.points
    total = weights.shape[0] // config.decoder.heads
    if scales is not None and scales.numel() == total:
        counts, position = [], 0
        while position < total and 0.9 / total < scales[position] <= 1:
            counts.append(round(1 / float(scales[position])))
            position += counts[-1]
        if len(counts) == 3 and sum(counts) == total and len(set(counts)) > 1:
            return (counts[0], counts[1], counts[2])
    return max(1, total // 3)


@lru_cache(maxsize=32)
def _expected(config: ModelConfig, *, version_2: bool) -> State:
    """The tensors that a file of this model has, without values."""
    with torch.device("meta"):
        ours = build_model(config).state_dict()
    return to_authors_v2(ours, config) if version_2 else to_authors_v1(ours, config)


def _trained_side(anchors: Tensor | None) -> int:
    """Side of the square input, from the number of tokens at strides 8, 16 and 32; 640 where it says nothing."""
    if anchors is None or anchors.dim() != 3:
        return 640
    cells = anchors.shape[1] / 21  # of stride 32
    side = round(math.sqrt(cells)) * 32
    return side if side >= 32 and (side // 32) ** 2 * 21 == anchors.shape[1] else 640
