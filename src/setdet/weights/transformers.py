"""Folders of `transformers`' RTDetr and RTDetrV2: config.json, model.safetensors, preprocessor_config.json.

Everything that the configuration can say and that a model here cannot follow is refused by name: a detector that is
loaded gives the same boxes. A key that is missing has the library's default.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setdet.errors import ConfigError, WeightsError
from setdet.images import Preprocessing
from setdet.models.variants import MODELS, ModelConfig
from setdet.weights.classes import default_class_names, with_coco_spelling
from setdet.weights.info import CheckpointInfo

if TYPE_CHECKING:
    from setdet.weights.remap import State

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
KINDS = {"rt_detr": "rtdetr", "rt_detr_v2": "rtdetrv2"}

# What RT-DETR here always is; written on the way out, required on the way in.
FIXED: dict[str, Any] = {
    "activation_function": "silu",
    "batch_norm_eps": 1e-5,
    "decoder_activation_function": "relu",
    "encode_proj_layers": [2],
    "encoder_activation_function": "gelu",
    "feat_strides": [8, 16, 32],
    "layer_norm_eps": 1e-5,
    "learn_initial_query": False,
    "normalize_before": False,
    "num_feature_levels": 3,
    "positional_encoding_temperature": 10000,
    "with_box_refine": True,
}
FIXED_V2: dict[str, Any] = {"decoder_n_levels": 3, "decoder_offset_scale": 0.5}
FIXED_RESNET: dict[str, Any] = {
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "embedding_size": 64,
    "hidden_act": "relu",
    "num_channels": 3,
}
FIXED_HGNETV2: dict[str, Any] = {
    "hidden_act": "relu",
    "num_channels": 3,
    "stage_downsample_strides": [2, 2, 2, 2],
    "stem_strides": [2, 1, 1, 2, 1],
    "use_learnable_affine_block": False,
}
# The fields of `HGNetStage` under the library's names, with its defaults: those of L.
HGNETV2_STAGES: dict[str, tuple[str, list[Any]]] = {
    "channels_in": ("stage_in_channels", [48, 128, 512, 1024]),
    "channels_mid": ("stage_mid_channels", [48, 96, 192, 384]),
    "channels_out": ("stage_out_channels", [128, 512, 1024, 2048]),
    "blocks": ("stage_num_blocks", [1, 1, 3, 1]),
    "downsample": ("stage_downsample", [False, True, True, True]),
    "light": ("stage_light_block", [False, False, True, True]),
    "kernel": ("stage_kernel_size", [3, 3, 5, 5]),
    "layers": ("stage_numb_of_layers", [6, 6, 6, 6]),
}
FIXED_PREPROCESSOR: dict[str, Any] = {
    "do_normalize": False,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,  # bilinear
}


def read_info(folder: Path) -> CheckpointInfo:
    """What config.json and preprocessor_config.json say; torch is not needed.

    Raises:
        WeightsError: a file is missing or broken, or describes a model that cannot be rebuilt here.
    """
    config = _read_json(folder / CONFIG)
    try:
        names = _class_names(config, folder / CONFIG)
        model = model_of(config, num_classes=len(names), source=folder / CONFIG)
        preprocessing = _preprocessing(folder / PREPROCESSOR)
    except (TypeError, ValueError) as error:  # null, or a text, where a number or a list belongs
        raise WeightsError(
            f"{folder}: {CONFIG} or {PREPROCESSOR} holds a value of another kind than expected ({error}). "
            "Copy the folder again from its source."
        ) from None
    return CheckpointInfo(
        model=model,
        class_names=names,
        preprocessing=preprocessing,
        history={"read_from": folder.name, "format": f"transformers {config.get('transformers_version', '')}".strip()},
    )


def read(folder: Path) -> "tuple[CheckpointInfo, State]":
    """What the folder holds, and its tensors under our names.

    Raises:
        WeightsError: as `read_info`, or the tensors are broken, don't fit, or hold NaN or infinity.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from setdet.models.rtdetr import build_model
    from setdet.weights.remap import canonical_transformers_names, from_transformers, to_transformers
    from setdet.weights.tensors import check_fits, differences, take

    info = read_info(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise WeightsError(
            f"{folder}: has {CONFIG} but no {WEIGHTS}. Save it again with transformers: model.save_pretrained(…)."
        )
    try:
        state = canonical_transformers_names(load_file(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is not a safetensors file, or is cut short ({error}). Copy it again.") from None
    with torch.device("meta"):
        expected = to_transformers(build_model(info.model).state_dict(), info.model)
    check_fits(
        differences(expected, state),
        lead=f"{path}: does not fit the {info.model.name} that {CONFIG} describes",
    )
    return info, from_transformers(take(state, source=str(path)), info.model)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}). Copy the folder again from its source.") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected keys and values, found a {type(content).__name__}.")
    return content


def model_of(config: dict[str, Any], *, num_classes: int, source: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
        WeightsError: none here is like it.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise WeightsError(f"{source}: describes the model '{kind}'; those that can be loaded: {', '.join(KINDS)}.")
    _require(config, FIXED | (FIXED_V2 if kind == "rt_detr_v2" else {}), source)
    if config.get("use_timm_backbone") or config.get("backbone"):
        raise WeightsError(f"{source}: takes its backbone from another library; it can't be rebuilt here.")
    width = config.get("encoder_hidden_dim", 256)
    _require(config, {"decoder_in_channels": [width] * 3}, source)
    method = config.get("decoder_method", "default")
    if method not in ("default", "discrete"):
        raise WeightsError(f"{source}: decoder_method is {method!r}; expected 'default' or 'discrete'.")
    values = {
        "name": "unnamed",
        "num_classes": num_classes,
        "backbone": _backbone(config.get("backbone_config") or {}, source),
        "encoder": {
            "width": width,
            "feedforward": config.get("encoder_ffn_dim", 1024),
            "heads": config.get("encoder_attention_heads", 8),
            "aifi_layers": config.get("encoder_layers", 1),
            "expansion": config.get("hidden_expansion", 1.0),
        },
        "decoder": {
            "width": config.get("d_model", 256),
            "feedforward": config.get("decoder_ffn_dim", 1024),
            "heads": config.get("decoder_attention_heads", 8),
            "layers": config.get("decoder_layers", 6),
            "points": config.get("decoder_n_points", 4),
            "sampling": "discrete" if method == "discrete" else "bilinear",
            "queries": config.get("num_queries", 300),
        },
    }
    try:
        model = ModelConfig.from_dict(values, source=str(source))
    except ConfigError as error:
        raise WeightsError(str(error)) from None
    return model.model_copy(update={"name": _name(model, prefix=KINDS[kind])})


def _name(model: ModelConfig, *, prefix: str) -> str:
    """The name of the model in our table with the same tensors; `rtdetr-custom` where there is none."""
    for known in MODELS.values():
        same = {"queries": model.decoder.queries, "eval_layers": None}
        decoder = known.decoder.model_copy(update=same)
        if known.name.startswith(f"{prefix}-") and (known.backbone, known.encoder, decoder) == (
            model.backbone,
            model.encoder,
            model.decoder,
        ):
            return known.name
    return f"{prefix}-custom"


def _backbone(config: dict[str, Any], source: Path) -> dict[str, Any]:
    kind = config.get("model_type", "rt_detr_resnet")
    if kind == "rt_detr_resnet":
        block = config.get("layer_type", "bottleneck")
        widths = [64, 128, 256, 512] if block == "basic" else [256, 512, 1024, 2048]
        _require(config, FIXED_RESNET, source, section="backbone_config.")
        if list(config.get("hidden_sizes", [256, 512, 1024, 2048])) != widths:
            raise WeightsError(f"{source}: backbone_config.hidden_sizes: expected {widths} for {block} blocks.")
        return {"kind": "resnet-vd", "block": block, "blocks": config.get("depths", [3, 4, 6, 3])}
    if kind == "hgnet_v2":
        _require(config, FIXED_HGNETV2, source, section="backbone_config.")
        columns = {field: config.get(theirs, default) for field, (theirs, default) in HGNETV2_STAGES.items()}
        if {len(column) for column in columns.values()} != {4}:
            raise WeightsError(f"{source}: backbone_config: expected four stages.")
        stages = [{field: columns[field][index] for field in columns} for index in range(4)]
        return {"kind": "hgnetv2", "stem": config.get("stem_channels", [3, 32, 48])[1:], "stages": stages}
    raise WeightsError(f"{source}: has the backbone '{kind}'; those that can be loaded: rt_detr_resnet, hgnet_v2.")


def _require(config: dict[str, Any], fixed: dict[str, Any], source: Path, *, section: str = "") -> None:
    for key, expected in fixed.items():
        found = config.get(key, expected)
        if (list(found) if isinstance(found, tuple) else found) != expected:
            raise WeightsError(
                f"{source}: {section}{key} is {found!r}, which no model here can follow; expected {expected!r}."
            )


def _class_names(config: dict[str, Any], source: Path) -> tuple[str, ...]:
    labels = config.get("id2label")
    if not labels:
        return default_class_names(int(config.get("num_labels", 2)))
    try:
        by_label = {int(label): str(name) for label, name in labels.items()}
    except (AttributeError, ValueError):
        by_label = {}
    if sorted(by_label) != list(range(len(labels))):
        raise WeightsError(f"{source}: id2label: expected names for the labels 0, 1, 2, … without gaps.")
    names = tuple(by_label[label] for label in range(len(by_label)))
    if names == tuple(f"LABEL_{label}" for label in range(len(names))):  # the library's words for "not named"
        return default_class_names(len(names))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise WeightsError(
            f"{source}: id2label: {len(twice)} names stand for several labels (first: '{twice[0]}'), and classes are "
            "told apart by their names. Give each label one of its own."
        )
    return with_coco_spelling(names)


def _preprocessing(path: Path) -> Preprocessing:
    config = _read_json(path) if path.is_file() else {}
    _require(config, FIXED_PREPROCESSOR, path)
    if abs(config.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise WeightsError(f"{path}: rescale_factor is {config['rescale_factor']}; expected 1/255.")
    size = config.get("size", {"height": 640, "width": 640})
    try:
        return Preprocessing.from_dict({"image_size": (size["height"], size["width"])}, source=str(path))
    except (KeyError, TypeError):
        raise WeightsError(f"{path}: size is {size!r}; expected a height and a width, to stretch to.") from None
    except ConfigError as error:
        raise WeightsError(str(error)) from None
