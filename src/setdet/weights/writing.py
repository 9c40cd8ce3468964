"""Weights for other people's code: the RT-DETR authors' `.pth`, and the folders of `transformers`."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from setdet.errors import OutputError, UsageError, WeightsError, WriteError
from setdet.folders import put_in_place, unused
from setdet.models.variants import HGNetV2Config, ModelConfig, ResNetConfig
from setdet.weights import transformers
from setdet.weights.info import METADATA_KEY, CheckpointInfo
from setdet.weights.plain import extras
from setdet.weights.remap import (
    State,
    authors_buffers,
    to_authors_v1,
    to_authors_v2,
    to_transformers,
    transformers_buffers,
)
from setdet.weights.whole import write_whole


def write_authors(path: Path, *, info: CheckpointInfo, state: "dict[str, Tensor]") -> list[str]:
    """Writes a checkpoint that the authors' code loads: the weights under `ema.module` and under `model`.

    Models with an HGNetV2 backbone and those of RT-DETRv2 get the names of version 2, others those of version 1. What
    we know of the model goes along as a text under a key that their code passes over.

    Returns:
        What a user should know of the file, one line each.

    Raises:
        UsageError: their code has no such model.
        OutputError: the file is there already, or (WriteError) cannot be written.
    """
    _check_plain(info.model, "the authors' code")
    if path.exists():
        raise OutputError(f"{path}: is there already. Choose another with --out, or remove it first.")
    version = 2 if _second(info.model) or isinstance(info.model.backbone, HGNetV2Config) else 1
    if version == 2:
        theirs = to_authors_v2(state, info.model)
        theirs |= authors_buffers(info.model, image_size=info.preprocessing.image_size)
    else:
        theirs = to_authors_v1(state, info.model)
    # One storage for both: the file is no larger for it.
    content = {"model": theirs, "ema": {"module": theirs}, METADATA_KEY: json.dumps(info.to_dict())}
    write_whole(path, lambda partial: torch.save(content, partial))
    (height, width), decoder = info.preprocessing.image_size, info.model.decoder
    return [
        f"for version {version} of the authors' code, with num_classes: {info.model.num_classes}, num_queries: "
        f"{decoder.queries}, eval_idx: {(decoder.eval_layers or decoder.layers) - 1} and "
        f"eval_spatial_size: [{height}, {width}]",
        *_about_input(info),
    ]


def write_transformers(folder: Path, *, info: CheckpointInfo, state: "dict[str, Tensor]") -> list[str]:
    """Writes `config.json`, `model.safetensors` and `preprocessor_config.json`, as `from_pretrained` reads them.

    Decoder layers that evaluation does not run are left out: the library would run them.

    Returns:
        What a user should know of the folder, one line each.

    Raises:
        UsageError: the library has no such model.
        OutputError: the folder holds something, or (WriteError) cannot be written.
    """
    config, notes = info.model, _about_input(info)
    _check_plain(config, "transformers")
    layers = config.decoder.eval_layers or config.decoder.layers
    if layers < config.decoder.layers:
        notes.append(f"the last {config.decoder.layers - layers} decoder layers, which only train, are left out")
    decoder = config.decoder.model_copy(update={"layers": layers, "eval_layers": None})
    config = config.model_copy(update={"decoder": decoder})
    theirs = to_transformers(_without_layers(state, first=layers), config)
    description = _transformers_config(config, info.class_names)
    if description["model_type"] == "rt_detr_v2":
        theirs |= transformers_buffers(config)

    unused(folder)
    try:
        behind = folder.resolve()  # "." or a link
        behind.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=behind.parent, prefix=f".{behind.name}."))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}). Choose another.") from None
    try:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in theirs.items()}
        write_whole(partial / transformers.WEIGHTS, lambda name: save_file(tensors, name, metadata={"format": "pt"}))
        for place, values in (
            (transformers.CONFIG, description),
            (transformers.PREPROCESSOR, _transformers_preprocessor(info)),
        ):
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            (partial / place).write_text(text, encoding="utf-8")
        put_in_place(partial, folder)
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror}). Make room, or choose another.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _check_plain(config: ModelConfig, whose: str) -> None:
    if found := extras(config):
        raise UsageError(
            f"{config.name} cannot be written: {whose} has nothing like {', '.join(found)}. Train without "
            "(--set rivals=false, or --recipe paper-v2) for weights that can."
        )


def _second(config: ModelConfig) -> bool:
    """Whether only version 2 has this model."""
    uneven = len(set(config.decoder.points_per_level)) > 1
    return config.name.startswith("rtdetrv2-") or config.decoder.sampling == "discrete" or uneven


def _about_input(info: CheckpointInfo) -> list[str]:
    if info.preprocessing.resize == "stretch":
        return []
    return ["the model wants its pictures letterboxed, theirs are stretched: boxes differ unless you change that there"]


def _without_layers(state: State, *, first: int) -> State:
    """The state without the decoder's layers and heads from the `first` on."""
    rows = ("decoder.layers.", "decoder.class_heads.", "decoder.box_heads.")

    def kept(name: str) -> bool:
        row = next((row for row in rows if name.startswith(row)), None)
        return row is None or int(name.removeprefix(row).partition(".")[0]) < first

    return {name: tensor for name, tensor in state.items() if kept(name)}


def _transformers_config(config: ModelConfig, class_names: tuple[str, ...]) -> dict[str, Any]:
    """config.json, checked by reading it back.

    Raises:
        UsageError: read back, it is another model.
    """
    second, encoder, decoder = _second(config), config.encoder, config.decoder
    description: dict[str, Any] = {
        "architectures": ["RTDetrV2ForObjectDetection" if second else "RTDetrForObjectDetection"],
        "model_type": "rt_detr_v2" if second else "rt_detr",
        "backbone_config": _transformers_backbone(config.backbone),
        "freeze_backbone_batch_norms": False,
        "encoder_in_channels": list(config.backbone.channels),
        "encoder_hidden_dim": encoder.width,
        "encoder_ffn_dim": encoder.feedforward,
        "encoder_attention_heads": encoder.heads,
        "encoder_layers": encoder.aifi_layers,
        "hidden_expansion": encoder.expansion,
        "d_model": decoder.width,
        "decoder_in_channels": [encoder.width] * 3,
        "decoder_ffn_dim": decoder.feedforward,
        "decoder_attention_heads": decoder.heads,
        "decoder_layers": decoder.layers,
        "decoder_n_points": decoder.points_per_level[0],
        "num_queries": decoder.queries,
        "anchor_image_size": None,
        "dtype": "float32",
        "id2label": {str(label): name for label, name in enumerate(class_names)},
        "label2id": {name: label for label, name in enumerate(class_names)},
        **transformers.FIXED,
    }
    if second:
        description |= transformers.FIXED_V2
        description["decoder_method"] = "discrete" if decoder.sampling == "discrete" else "default"
    try:
        read_back = transformers.model_of(description, num_classes=config.num_classes, source=Path("config.json"))
    except WeightsError as error:
        raise UsageError(f"{config.name} cannot be written for transformers: {error}") from None
    comparable = config.model_copy(
        update={
            "name": read_back.name,
            "decoder": decoder.model_copy(update={"points": decoder.points_per_level}),
        }
    )
    points = read_back.decoder.points_per_level
    read_back = read_back.model_copy(update={"decoder": read_back.decoder.model_copy(update={"points": points})})
    if read_back != comparable:
        raise UsageError(
            f"{config.name} cannot be written for transformers: the library fixes fusion blocks, strides and the same "
            "number of sampling points on all levels, and this model has others."
        )
    return description


def _transformers_backbone(config: ResNetConfig | HGNetV2Config) -> dict[str, Any]:
    outputs = {"out_features": ["stage2", "stage3", "stage4"], "out_indices": [2, 3, 4]}
    if isinstance(config, ResNetConfig):
        first = 64 if config.block == "basic" else 256
        return {
            "model_type": "rt_detr_resnet",
            "layer_type": config.block,
            "depths": list(config.blocks),
            "hidden_sizes": [first, *config.channels],
            **transformers.FIXED_RESNET,
            **outputs,
        }
    columns = {
        theirs: [getattr(stage, field) for stage in config.stages]
        for field, (theirs, _) in transformers.HGNETV2_STAGES.items()
    }
    return {
        "model_type": "hgnet_v2",
        "stem_channels": [3, *config.stem],
        "depths": columns["stage_num_blocks"],
        "hidden_sizes": columns["stage_out_channels"],
        **columns,
        **transformers.FIXED_HGNETV2,
        **outputs,
    }


def _transformers_preprocessor(info: CheckpointInfo) -> dict[str, Any]:
    height, width = info.preprocessing.image_size
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "size": {"height": height, "width": width},
        "rescale_factor": 1 / 255,
        **transformers.FIXED_PREPROCESSOR,
    }
