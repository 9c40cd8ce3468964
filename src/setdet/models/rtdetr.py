"""RT-DETR (Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024, figure 4)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setdet.models.ablations import make_encoder
from setdet.models.decoder import LEVELS, Decoder
from setdet.models.denoising import DenoisingQueries
from setdet.models.hgnetv2 import HGNetV2
from setdet.models.layers import ConvNorm
from setdet.models.outputs import EdgeDistributions, RTDETROutput
from setdet.models.queries import LearnedQueries, QuerySelection
from setdet.models.resnet import ResNetVD
from setdet.models.variants import ModelConfig, ResNetConfig, model_config


class RTDETR(nn.Module):
    """Pictures → boxes and classes, without anchors to tune and without non-maximum suppression."""

    def __init__(self, *, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        backbone = config.backbone
        self.backbone = ResNetVD(config=backbone) if isinstance(backbone, ResNetConfig) else HGNetV2(config=backbone)
        self.encoder = make_encoder(config.encoder, channels=backbone.channels)
        self.memory_proj = nn.ModuleList(ConvNorm(config.encoder.width, config.decoder.width) for _ in range(LEVELS))
        self.query_selection = (
            QuerySelection(config=config.decoder, num_classes=config.num_classes)
            if config.decoder.query_source == "encoder"
            else LearnedQueries(config=config.decoder)
        )
        self.decoder = Decoder(config=config.decoder, num_classes=config.num_classes)
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        images: Float[Tensor, "batch 3 height width"],
        denoising: DenoisingQueries | None = None,
    ) -> RTDETROutput:
        """Detects.

        Args:
            images: RGB, 0 to 1; height and width are multiples of 32.
            denoising: noised copies of the truth, in training (`make_denoising_queries`).
        """
        features = self.encoder(self.backbone(images))
        levels = [project(feature) for project, feature in zip(self.memory_proj, features, strict=True)]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, tokens, C)

        selected = self.query_selection(memory, shapes)
        decoded = self.decoder(selected, memory=memory, shapes=shapes, denoising=denoising)

        noised = 0 if denoising is None else denoising.labels.shape[1]
        return RTDETROutput(
            logits=decoded.logits[:, :, noised:],
            boxes_cxcywh=decoded.boxes_cxcywh[:, :, noised:],
            encoder_logits=selected.logits,
            encoder_boxes_cxcywh=selected.boxes_cxcywh,
            denoising_logits=decoded.logits[:, :, :noised] if noised else None,
            denoising_boxes_cxcywh=decoded.boxes_cxcywh[:, :, :noised] if noised else None,
            edges=_edges_of(decoded.edges, slice(noised, None)),
            denoising_edges=_edges_of(decoded.edges, slice(0, noised)) if noised else None,
        )


def _edges_of(edges: EdgeDistributions | None, queries: slice) -> EdgeDistributions | None:
    if edges is None:
        return None
    return EdgeDistributions(logits=edges.logits[:, :, queries], reference_cxcywh=edges.reference_cxcywh[:, queries])


def build_model(model: str | ModelConfig, *, num_classes: int | None = None) -> RTDETR:
    """A freshly initialised model.

    Args:
        model: a name such as "rtdetr-r18" (`setdet models` lists them), or a configuration.
        num_classes: in place of the configuration's.

    Raises:
        ConfigError: there is no model of that name.
    """
    config = model_config(model) if isinstance(model, str) else model
    if num_classes is not None:
        config = ModelConfig.from_dict({**config.to_dict(), "num_classes": num_classes}, source="build_model")
    return RTDETR(config=config)
