"""The names of the RT-DETR authors' PyTorch code, versions 1 and 2.

Version 2 calls a few modules otherwise, and stores what can be computed: anchors, their validity, the scales of the
sampling points. Those buffers are left out on the way in (`is_buffer`) and made anew on the way out.
"""

from typing import Literal

from torch import Tensor

from setdet.models.decoder import LEVELS
from setdet.models.queries import anchor_logits
from setdet.models.variants import HGNetV2Config, ModelConfig, ResNetConfig
from setdet.weights.remap.table import Pairs, State, fusion, inverse, points_scales, rename, with_batch_counts

Version = Literal[1, 2]

_BUFFERS = (".anchors", ".valid_mask", ".num_points_scale")
_CLASSIFIER = ("fc.", "head.", "last_conv.")  # of a backbone that was trained on ImageNet


def is_authors_v2(names: "dict[str, Tensor]") -> bool:
    """Whether these are version 2's names."""
    return "decoder.enc_output.proj.weight" in names


def to_authors_v1(state: State, config: ModelConfig) -> State:
    """Our state under the names of version 1; attention weights are packed alike on both sides."""
    return _to(state, config, version=1)


def from_authors_v1(state: State, config: ModelConfig) -> State:
    """The inverse of `to_authors_v1`. The counts of frozen norms, which are not stored there, become zero.

    Raises:
        WeightsError: a tensor belongs to no known module.
    """
    return _from(state, config, version=1)


def to_authors_v2(state: State, config: ModelConfig) -> State:
    """Our state under the names of version 2, without its buffers (`authors_buffers`)."""
    return _to(state, config, version=2)


def from_authors_v2(state: State, config: ModelConfig) -> State:
    """The inverse of `to_authors_v2`; the stored buffers are left out, the counts of frozen norms become zero.

    Raises:
        WeightsError: a tensor belongs to no known module.
    """
    return _from(state, config, version=2)


def authors_buffers(config: ModelConfig, *, image_size: tuple[int, int]) -> State:
    """What version 2 stores besides the weights, for an input of (height, width) pixels."""
    scales = points_scales(config.decoder.points_per_level)
    shapes = [(image_size[0] // stride, image_size[1] // stride) for stride in (8, 16, 32)]
    anchors, valid = anchor_logits(shapes, like=scales)
    buffers = {"decoder.anchors": anchors[None], "decoder.valid_mask": valid[None, :, None]}
    return buffers | {
        f"decoder.decoder.layers.{layer}.cross_attn.num_points_scale": scales.clone()
        for layer in range(config.decoder.layers)
    }


def from_authors_backbone(state: State, config: ModelConfig) -> State:
    """A backbone alone, as published for ImageNet, under our names (`backbone.…`); its classifier is left out.

    Raises:
        WeightsError: a tensor belongs to no known module.
    """
    kept = {f"backbone.{name}": tensor for name, tensor in state.items() if not name.startswith(_CLASSIFIER)}
    return with_batch_counts(rename(kept, inverse(dict(_backbone(config)))))


def is_buffer(name: str) -> bool:
    """Whether version 2 stores this beside the weights, though it follows from the configuration."""
    return name.endswith(_BUFFERS)


def _to(state: State, config: ModelConfig, *, version: Version) -> State:
    renamed = rename(state, _modules(config, version))
    return {name.replace(".in_proj.", ".in_proj_"): tensor for name, tensor in renamed.items()}


def _from(state: State, config: ModelConfig, *, version: Version) -> State:
    kept = {
        name.replace(".in_proj_", ".in_proj."): tensor
        for name, tensor in state.items()
        if version == 1 or not is_buffer(name)
    }
    return with_batch_counts(rename(kept, inverse(_modules(config, version))))


def _modules(config: ModelConfig, version: Version) -> dict[str, str]:
    return dict(_backbone(config)) | dict(_encoder(config, version)) | dict(_decoder(config, version))


def _backbone(config: ModelConfig) -> Pairs:
    backbone = config.backbone
    return _resnet(backbone) if isinstance(backbone, ResNetConfig) else _hgnetv2(backbone)


def _resnet(config: ResNetConfig) -> Pairs:
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


def _hgnetv2(config: HGNetV2Config) -> Pairs:
    for name in ("1", "2a", "2b", "3", "4"):
        # The two 2×2 convolutions stand behind a padding layer.
        conv = "conv.1" if name in ("2a", "2b") else "conv"
        yield f"backbone.stem.conv{name}.conv", f"backbone.stem.stem{name}.{conv}"
        yield f"backbone.stem.conv{name}.norm", f"backbone.stem.stem{name}.bn"
    for index, stage in enumerate(config.stages):
        root = f"backbone.stages.{index}"
        if stage.downsample:
            yield from _conv_bn(f"{root}.0", f"{root}.downsample")
        for block in range(stage.blocks):
            ours, theirs = f"{root}.{block + stage.downsample}", f"{root}.blocks.{block}"
            for layer in range(stage.layers):
                if stage.light:
                    yield from _conv_bn(f"{ours}.layers.{layer}.pointwise", f"{theirs}.layers.{layer}.conv1")
                    yield from _conv_bn(f"{ours}.layers.{layer}.depthwise", f"{theirs}.layers.{layer}.conv2")
                else:
                    yield from _conv_bn(f"{ours}.layers.{layer}", f"{theirs}.layers.{layer}")
            yield from _conv_bn(f"{ours}.squeeze", f"{theirs}.aggregation_squeeze_conv")
            yield from _conv_bn(f"{ours}.excite", f"{theirs}.aggregation_excitation_conv")


def _conv_bn(ours: str, theirs: str) -> Pairs:
    yield f"{ours}.conv", f"{theirs}.conv"
    yield f"{ours}.norm", f"{theirs}.bn"


def _encoder(config: ModelConfig, version: Version) -> Pairs:
    conv, norm = ("0", "1") if version == 1 else ("conv", "norm")
    for level in range(LEVELS):
        yield f"encoder.input_proj.{level}.conv", f"encoder.input_proj.{level}.{conv}"
        yield f"encoder.input_proj.{level}.norm", f"encoder.input_proj.{level}.{norm}"
    for layer in range(config.encoder.aifi_layers):
        ours, theirs = f"encoder.aifi.layers.{layer}", f"encoder.encoder.0.layers.{layer}"
        yield f"{ours}.self_attention", f"{theirs}.self_attn"
        for part in ("linear1", "linear2", "norm1", "norm2"):
            yield f"{ours}.{part}", f"{theirs}.{part}"
    yield from fusion(config.encoder, theirs_root="encoder")


def _decoder(config: ModelConfig, version: Version) -> Pairs:
    project, norm = ("0", "1") if version == 1 else ("proj", "norm")
    for level in range(LEVELS):
        yield f"memory_proj.{level}", f"decoder.input_proj.{level}"
    yield "query_selection.project", f"decoder.enc_output.{project}"
    yield "query_selection.norm", f"decoder.enc_output.{norm}"
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
