"""The names of `transformers`' RTDetrForObjectDetection and RTDetrV2ForObjectDetection.

Files on the Hub, and those that any release of the library writes, use the spelling of its first releases. Since
release 5 the model in memory has another one; `canonical_transformers_names` brings both to the first.
"""

import re

import torch

from setdet.errors import WeightsError
from setdet.models.decoder import LEVELS
from setdet.models.variants import HGNetV2Config, ModelConfig, ResNetConfig
from setdet.weights.remap.table import Pairs, State, fusion, inverse, points_scales, rename, with_batch_counts

_SPELLINGS = (
    (re.compile(r"^(class_embed|bbox_embed)\."), r"model.decoder.\1."),  # the same tensors, reached by another way
    (re.compile(r"^model\.encoder\.aifi\."), "model.encoder.encoder."),
    (re.compile(r"(\.layers\.\d+)\.mlp\.(fc[12])\."), r"\1.\2."),
    (re.compile(r"\.self_attn\.o_proj\."), ".self_attn.out_proj."),
)
_BUFFER = ".n_points_scale"


def canonical_transformers_names(state: State) -> State:
    """The state in the spelling of files, without what RTDetrV2 stores though it can be computed.

    Raises:
        WeightsError: two spellings of one name are there, with different values.
    """
    canonical: State = {}
    for name, tensor in state.items():
        if name.endswith(_BUFFER):
            continue
        spelled = name
        for pattern, replacement in _SPELLINGS:
            spelled = pattern.sub(replacement, spelled)
        if spelled in canonical and not torch.equal(canonical[spelled], tensor):
            raise WeightsError(f"{name} and {spelled} stand for one tensor, but their values differ.")
        canonical[spelled] = tensor
    return canonical


def to_transformers(state: State, config: ModelConfig) -> State:
    """Our state under the names of files of `transformers`, attention weights unpacked."""
    unpacked: State = {}
    for name, tensor in rename(state, _modules(config)).items():
        if ".in_proj." in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                unpacked[name.replace(".in_proj.", f".{part}_proj.")] = chunk.clone()
        else:
            unpacked[name] = tensor
    return unpacked


def from_transformers(state: State, config: ModelConfig) -> State:
    """The inverse of `to_transformers`; takes either spelling. The counts of frozen norms become zero.

    Raises:
        WeightsError: a tensor belongs to no known module, or a part of an attention is missing.
    """
    state = canonical_transformers_names(state)
    packed: State = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            if missing := [part for part in parts if part not in state]:
                raise WeightsError(f"{missing[0]} is missing.")
            packed[name.replace(".q_proj.", ".in_proj.")] = torch.cat([state[part] for part in parts])
        else:
            packed[name] = tensor
    return with_batch_counts(rename(packed, inverse(_modules(config))))


def transformers_buffers(config: ModelConfig) -> State:
    """What RTDetrV2 stores besides the weights."""
    scales = points_scales(config.decoder.points_per_level)
    layers = range(config.decoder.layers)
    return {f"model.decoder.layers.{layer}.encoder_attn{_BUFFER}": scales.clone() for layer in layers}


def _modules(config: ModelConfig) -> dict[str, str]:
    backbone = config.backbone
    pairs = _resnet(backbone) if isinstance(backbone, ResNetConfig) else _hgnetv2(backbone)
    return dict(pairs) | dict(_encoder(config)) | dict(_decoder(config))


def _resnet(config: ResNetConfig) -> Pairs:
    root = "model.backbone.model"
    for index in range(3):
        yield from _conv_norm(f"backbone.stem.{index}", f"{root}.embedder.embedder.{index}")
    for stage, blocks in enumerate(config.blocks):
        for block in range(blocks):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"{root}.encoder.stages.{stage}.layers.{block}"
            for index in range(2 if config.block == "basic" else 3):
                yield from _conv_norm(f"{ours}.conv{index + 1}", f"{theirs}.layer.{index}")
        shortcut = f"{root}.encoder.stages.{stage}.layers.0.shortcut"
        yield from _conv_norm(f"backbone.stages.{stage}.0.shortcut.conv", shortcut if stage == 0 else f"{shortcut}.1")


def _hgnetv2(config: HGNetV2Config) -> Pairs:
    root = "model.backbone.model"
    for name in ("1", "2a", "2b", "3", "4"):
        yield from _conv_norm(f"backbone.stem.conv{name}", f"{root}.embedder.stem{name}")
    for index, stage in enumerate(config.stages):
        if stage.downsample:
            yield from _conv_norm(f"backbone.stages.{index}.0", f"{root}.encoder.stages.{index}.downsample")
        for block in range(stage.blocks):
            ours = f"backbone.stages.{index}.{block + stage.downsample}"
            theirs = f"{root}.encoder.stages.{index}.blocks.{block}"
            for layer in range(stage.layers):
                if stage.light:
                    yield from _conv_norm(f"{ours}.layers.{layer}.pointwise", f"{theirs}.layers.{layer}.conv1")
                    yield from _conv_norm(f"{ours}.layers.{layer}.depthwise", f"{theirs}.layers.{layer}.conv2")
                else:
                    yield from _conv_norm(f"{ours}.layers.{layer}", f"{theirs}.layers.{layer}")
            yield from _conv_norm(f"{ours}.squeeze", f"{theirs}.aggregation.0")
            yield from _conv_norm(f"{ours}.excite", f"{theirs}.aggregation.1")


def _conv_norm(ours: str, theirs: str) -> Pairs:
    yield f"{ours}.conv", f"{theirs}.convolution"
    yield f"{ours}.norm", f"{theirs}.normalization"


def _encoder(config: ModelConfig) -> Pairs:
    for level in range(LEVELS):
        for ours, theirs in (("encoder.input_proj", "encoder_input_proj"), ("memory_proj", "decoder_input_proj")):
            yield f"{ours}.{level}.conv", f"model.{theirs}.{level}.0"
            yield f"{ours}.{level}.norm", f"model.{theirs}.{level}.1"
    for layer in range(config.encoder.aifi_layers):
        ours, theirs = f"encoder.aifi.layers.{layer}", f"model.encoder.encoder.0.layers.{layer}"
        yield from _layer(ours, theirs, norms=("self_attn_layer_norm", "final_layer_norm"))
    yield from fusion(config.encoder, theirs_root="model.encoder")


def _decoder(config: ModelConfig) -> Pairs:
    yield "query_selection.project", "model.enc_output.0"
    yield "query_selection.norm", "model.enc_output.1"
    yield "query_selection.class_head", "model.enc_score_head"
    yield "query_selection.box_head", "model.enc_bbox_head"
    yield "decoder.denoising_embedding", "model.denoising_class_embed"
    yield "decoder.query_position", "model.decoder.query_pos_head"
    for layer in range(config.decoder.layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.decoder.layers.{layer}"
        norms = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        yield from _layer(ours, theirs, norms=norms)
        yield f"{ours}.cross_attention", f"{theirs}.encoder_attn"
        yield f"decoder.class_heads.{layer}", f"model.decoder.class_embed.{layer}"
        yield f"decoder.box_heads.{layer}", f"model.decoder.bbox_embed.{layer}"


def _layer(ours: str, theirs: str, *, norms: tuple[str, ...]) -> Pairs:
    yield f"{ours}.self_attention.in_proj", f"{theirs}.self_attn.in_proj"
    yield f"{ours}.self_attention.out_proj", f"{theirs}.self_attn.out_proj"
    for index, norm in enumerate(norms):
        yield f"{ours}.norm{index + 1}", f"{theirs}.{norm}"
    for index in (1, 2):
        yield f"{ours}.linear{index}", f"{theirs}.fc{index}"
