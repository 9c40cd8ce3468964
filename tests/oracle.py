"""The models of `transformers` as oracles: built offline, every parameter and statistic randomised."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import (
    HGNetV2Config as TheirHGNetV2Config,
)
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from setdet.models.rtdetr import RTDETR
from setdet.models.variants import HGNetV2Config, ModelConfig, ResNetConfig
from setdet.weights.remap import from_transformers

Oracle = RTDetrForObjectDetection | RTDetrV2ForObjectDetection


def build_oracle(config: ModelConfig) -> Oracle:
    """`transformers`' RTDetr, or RTDetrV2 for a name that says so, of the same architecture as a model of ours."""
    backbone = config.backbone
    settings = {
        "backbone_config": _resnet(backbone) if isinstance(backbone, ResNetConfig) else _hgnet(backbone),
        "encoder_in_channels": list(backbone.channels),
        "encoder_hidden_dim": config.encoder.width,
        "encoder_ffn_dim": config.encoder.feedforward,
        "encoder_layers": config.encoder.aifi_layers,
        "hidden_expansion": config.encoder.expansion,
        "decoder_in_channels": [config.encoder.width] * 3,
        "decoder_layers": config.decoder.layers,
        "decoder_n_points": config.decoder.points,
        "num_queries": config.decoder.queries,
        "num_labels": config.num_classes,
        "freeze_backbone_batch_norms": False,
        "anchor_image_size": None,
    }
    if not config.name.startswith("rtdetrv2-"):
        return RTDetrForObjectDetection(RTDetrConfig(**settings)).eval()
    method = {"bilinear": "default", "discrete": "discrete"}[config.decoder.sampling]
    return RTDetrV2ForObjectDetection(RTDetrV2Config(**settings, decoder_method=method)).eval()


def _resnet(config: ResNetConfig) -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=[64 if config.block == "basic" else 256, *config.channels],
        depths=list(config.blocks),
        layer_type=config.block,
        out_features=["stage2", "stage3", "stage4"],
    )


def _hgnet(config: HGNetV2Config) -> TheirHGNetV2Config:
    stages = config.stages
    return TheirHGNetV2Config(
        stem_channels=[3, *config.stem],
        depths=[stage.blocks for stage in stages],
        hidden_sizes=[stage.channels_out for stage in stages],
        stage_in_channels=[stage.channels_in for stage in stages],
        stage_mid_channels=[stage.channels_mid for stage in stages],
        stage_out_channels=[stage.channels_out for stage in stages],
        stage_num_blocks=[stage.blocks for stage in stages],
        stage_downsample=[stage.downsample for stage in stages],
        stage_light_block=[stage.light for stage in stages],
        stage_kernel_size=[stage.kernel for stage in stages],
        stage_numb_of_layers=[stage.layers for stage in stages],
        out_features=["stage2", "stage3", "stage4"],
    )


def randomise(model: nn.Module, *, seed: int) -> None:
    """Random everywhere, scaled so that activations stay of order one and no layer hides behind zeros."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, scale: float, shift: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * scale + shift)

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                normal(tensor, 0.2)
            elif name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
            elif name.endswith(
                ("num_batches_tracked", "n_points_scale")
            ):  # a count, and a constant of the second version
                continue
            elif tensor.dim() <= 1:
                normal(tensor, 0.2, shift=1.0 if name.endswith("weight") else 0.0)
            elif "class_embed" in name or "score_head" in name:
                normal(tensor, 2.0 / tensor[0].numel() ** 0.5)
            else:
                normal(tensor, 1.0 / tensor[0].numel() ** 0.5)


def copy_weights(oracle: Oracle, model: RTDETR) -> None:
    """Loads the oracle's weights into a model of ours, strictly."""
    model.load_state_dict(from_transformers(oracle.state_dict(), model.config))


def matched_difference(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """Largest difference of logits and boxes between two sets of queries, whatever their order.

    Each query answers for one of the other set: queries from tokens without a valid anchor are all alike.
    """
    a, b = torch.cat(ours, dim=-1), torch.cat(theirs, dim=-1)
    rows, columns = linear_sum_assignment(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").numpy())
    return float((a[rows] - b[columns]).abs().max())
