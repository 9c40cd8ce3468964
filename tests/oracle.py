"""The model of `transformers` as an oracle: built offline, every parameter and statistic randomised."""

import torch
from torch import Tensor, nn
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from setdet.models.rtdetr import RTDETR
from setdet.models.variants import ModelConfig, ResNetConfig
from setdet.weights.remap import from_transformers


def build_oracle(config: ModelConfig) -> RTDetrForObjectDetection:
    """`transformers`' RTDetr of the same architecture as a ResNet-vd model of ours."""
    backbone = config.backbone
    assert isinstance(backbone, ResNetConfig)
    hidden_sizes = [64 if backbone.block == "basic" else 256, *backbone.channels]
    resnet = RTDetrResNetConfig(
        embedding_size=64,
        hidden_sizes=hidden_sizes,
        depths=list(backbone.blocks),
        layer_type=backbone.block,
        out_features=["stage2", "stage3", "stage4"],
    )
    return RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=resnet,
            encoder_in_channels=hidden_sizes[1:],
            encoder_hidden_dim=config.encoder.width,
            encoder_ffn_dim=config.encoder.feedforward,
            encoder_layers=config.encoder.aifi_layers,
            hidden_expansion=config.encoder.expansion,
            decoder_layers=config.decoder.layers,
            num_queries=config.decoder.queries,
            num_labels=config.num_classes,
            freeze_backbone_batch_norms=False,
            anchor_image_size=None,
        )
    ).eval()


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
            elif name.endswith("num_batches_tracked"):
                continue
            elif tensor.dim() <= 1:
                normal(tensor, 0.2, shift=1.0 if name.endswith("weight") else 0.0)
            elif "class_embed" in name or "score_head" in name:
                normal(tensor, 2.0 / tensor[0].numel() ** 0.5)
            else:
                normal(tensor, 1.0 / tensor[0].numel() ** 0.5)


def copy_weights(oracle: RTDetrForObjectDetection, model: RTDETR) -> None:
    """Loads the oracle's weights into a model of ours, strictly."""
    model.load_state_dict(from_transformers(oracle.state_dict(), model.config))
