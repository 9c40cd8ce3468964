"""Reversible tables between our tensor names and other people's.

A table maps the path of a module of ours to the path of the same module elsewhere; a tensor is renamed by the
longest module path that it starts with. Nothing is guessed: a name that no entry covers is an error.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from setdet.errors import WeightsError
from setdet.models.variants import ModelConfig, ResNetConfig

State = dict[str, Tensor]


def authors_v1_modules(config: ModelConfig) -> dict[str, str]:
    """Our module paths → those of the RT-DETR authors' PyTorch code, version 1, for ResNet-vd models.

    Raises:
        WeightsError: the model has another backbone.
    """
    return dict(_authors_backbone(_resnet(config))) | dict(_authors_rest(config))


def transformers_modules(config: ModelConfig) -> dict[str, str]:
    """Our module paths → those of `transformers`' RTDetrForObjectDetection, for ResNet-vd models.

    Where it has separate `q_proj`, `k_proj`, `v_proj`, ours has one `in_proj`: see `from_transformers`.

    Raises:
        WeightsError: the model has another backbone.
    """
    return dict(_transformers_backbone(_resnet(config))) | dict(_transformers_rest(config))


def rename(state: State, modules: dict[str, str]) -> State:
    """The state with every tensor's module path replaced; the inverse table undoes it.

    Raises:
        WeightsError: a tensor lies in a module that the table does not know.
    """
    renamed: State = {}
    unknown = []
    for name, tensor in state.items():
        path = name
        while path and path not in modules:
            path = path.rpartition(".")[0]
        if path:
            renamed[modules[path] + name[len(path) :]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(f"{len(unknown)} tensors belong to no known module, first: {', '.join(unknown[:3])}.")
    return renamed


def to_authors_v1(state: State, config: ModelConfig) -> State:
    """Our state under the authors' names; attention weights are packed alike on both sides."""
    renamed = rename(state, authors_v1_modules(config))
    return {name.replace(".in_proj.", ".in_proj_"): tensor for name, tensor in renamed.items()}


def from_authors_v1(state: State, config: ModelConfig) -> State:
    """The inverse of `to_authors_v1`."""
    inverse = {theirs: ours for ours, theirs in authors_v1_modules(config).items()}
    return rename({name.replace(".in_proj_", ".in_proj."): tensor for name, tensor in state.items()}, inverse)


def to_transformers(state: State, config: ModelConfig) -> State:
    """Our state under the names of `transformers`, attention weights unpacked."""
    unpacked: State = {}
    for name, tensor in rename(state, transformers_modules(config)).items():
        if ".in_proj." in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                unpacked[name.replace(".in_proj.", f".{part}_proj.")] = chunk.clone()
        else:
            unpacked[name] = tensor
    return unpacked


def from_transformers(state: State, config: ModelConfig) -> State:
    """The inverse of `to_transformers`."""
    packed: State = {}
    for name, tensor in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [state[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            packed[name.replace(".q_proj.", ".in_proj.")] = torch.cat(parts)
        else:
            packed[name] = tensor
    return rename(packed, {theirs: ours for ours, theirs in transformers_modules(config).items()})


def _resnet(config: ModelConfig) -> ResNetConfig:
    if not isinstance(config.backbone, ResNetConfig):
        raise WeightsError(f"{config.name} has no table of names: only ResNet-vd models have one.")
    return config.backbone


def _authors_backbone(config: ResNetConfig) -> Iterator[tuple[str, str]]:
    for index in range(3):
        yield f"backbone.stem.{index}", f"backbone.conv1.conv1_{index + 1}"
    for stage, blocks in enumerate(config.blocks):
        for block in range(blocks):
            ours, theirs = f"backbone.stages.{stage}.{block}", f"backbone.res_layers.{stage}.blocks.{block}"
            for index, letter in enumerate("ab" if config.block == "basic" else "abc"):
                yield f"{ours}.conv{index + 1}", f"{theirs}.branch2{letter}"
        # Only a stage's first block projects, behind a pooling from the second stage on.
        shortcut = f"backbone.res_layers.{stage}.blocks.0.short"
        yield f"backbone.stages.{stage}.0.shortcut.conv", shortcut if stage == 0 else f"{shortcut}.conv"


def _authors_rest(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for level in range(3):
        yield f"encoder.input_proj.{level}.conv", f"encoder.input_proj.{level}.0"
        yield f"encoder.input_proj.{level}.norm", f"encoder.input_proj.{level}.1"
        yield f"memory_proj.{level}", f"decoder.input_proj.{level}"
    for layer in range(config.encoder.aifi_layers):
        ours, theirs = f"encoder.aifi.layers.{layer}", f"encoder.encoder.0.layers.{layer}"
        yield f"{ours}.self_attention", f"{theirs}.self_attn"
        for part in ("linear1", "linear2", "norm1", "norm2"):
            yield f"{ours}.{part}", f"{theirs}.{part}"
    yield from _fusion(config, theirs_root="encoder")

    yield "query_selection.project", "decoder.enc_output.0"
    yield "query_selection.norm", "decoder.enc_output.1"
    yield "query_selection.class_head", "decoder.enc_score_head"
    yield "query_selection.box_head", "decoder.enc_bbox_head"
    yield "decoder.denoising_embedding", "decoder.denoising_class_embed"
    yield "decoder.query_position", "decoder.query_pos_head"
    for layer in range(config.decoder.layers):
        ours, theirs = f"decoder.layers.{layer}", f"decoder.decoder.layers.{layer}"
        yield f"{ours}.self_attention", f"{theirs}.self_attn"
        yield f"{ours}.cross_attention", f"{theirs}.cross_attn"
        for part in ("linear1", "linear2", "norm1", "norm2", "norm3"):
            yield f"{ours}.{part}", f"{theirs}.{part}"
        yield f"decoder.class_heads.{layer}", f"decoder.dec_score_head.{layer}"
        yield f"decoder.box_heads.{layer}", f"decoder.dec_bbox_head.{layer}"


def _transformers_backbone(config: ResNetConfig) -> Iterator[tuple[str, str]]:
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


def _conv_norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield f"{ours}.conv", f"{theirs}.convolution"
    yield f"{ours}.norm", f"{theirs}.normalization"


def _transformers_rest(config: ModelConfig) -> Iterator[tuple[str, str]]:
    for level in range(3):
        for ours, theirs in (("encoder.input_proj", "encoder_input_proj"), ("memory_proj", "decoder_input_proj")):
            yield f"{ours}.{level}.conv", f"model.{theirs}.{level}.0"
            yield f"{ours}.{level}.norm", f"model.{theirs}.{level}.1"
    for layer in range(config.encoder.aifi_layers):
        ours, theirs = f"encoder.aifi.layers.{layer}", f"model.encoder.aifi.0.layers.{layer}"
        yield from _transformers_layer(ours, theirs, norms=("self_attn_layer_norm", "final_layer_norm"))
    yield from _fusion(config, theirs_root="model.encoder")

    yield "query_selection.project", "model.enc_output.0"
    yield "query_selection.norm", "model.enc_output.1"
    yield "query_selection.class_head", "model.enc_score_head"
    yield "query_selection.box_head", "model.enc_bbox_head"
    yield "decoder.denoising_embedding", "model.denoising_class_embed"
    yield "decoder.query_position", "model.decoder.query_pos_head"
    for layer in range(config.decoder.layers):
        ours, theirs = f"decoder.layers.{layer}", f"model.decoder.layers.{layer}"
        norms = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
        yield from _transformers_layer(ours, theirs, norms=norms)
        yield f"{ours}.cross_attention", f"{theirs}.encoder_attn"
        yield f"decoder.class_heads.{layer}", f"model.decoder.class_embed.{layer}"
        yield f"decoder.box_heads.{layer}", f"model.decoder.bbox_embed.{layer}"


def _transformers_layer(ours: str, theirs: str, *, norms: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    yield f"{ours}.self_attention.in_proj", f"{theirs}.self_attn.in_proj"
    yield f"{ours}.self_attention.out_proj", f"{theirs}.self_attn.o_proj"
    for index, norm in enumerate(norms):
        yield f"{ours}.norm{index + 1}", f"{theirs}.{norm}"
    for index in (1, 2):
        yield f"{ours}.linear{index}", f"{theirs}.mlp.fc{index}"


def _fusion(config: ModelConfig, *, theirs_root: str) -> Iterator[tuple[str, str]]:
    names = (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks"))
    for index in range(2):
        yield f"encoder.lateral.{index}", f"{theirs_root}.lateral_convs.{index}"
        yield f"encoder.downsample.{index}", f"{theirs_root}.downsample_convs.{index}"
        for ours, theirs in names:
            for part in ("conv1", "conv2", "conv3"):
                yield f"encoder.{ours}.{index}.{part}", f"{theirs_root}.{theirs}.{index}.{part}"
            for block in range(config.encoder.fusion_blocks):
                branch = f"{theirs_root}.{theirs}.{index}.bottlenecks.{block}"
                yield f"encoder.{ours}.{index}.blocks.{block}.conv3x3", f"{branch}.conv1"
                yield f"encoder.{ours}.{index}.blocks.{block}.conv1x1", f"{branch}.conv2"
