"""Every model by name, as data. No torch.

Sizes of the ResNet-vd models are those of the RT-DETR paper (Zhao et al., CVPR 2024, arXiv 2304.08069) and its
authors' code. `rtdetr-n` is ours: HGNetV2-B0's widths for the backbone, everything behind it half as wide.
"""

from typing import Literal

from pydantic import Field

from setdet.config import Config, suggest
from setdet.errors import ConfigError


class ResNetConfig(Config):
    """A ResNet-vd backbone (He et al. 2018, "Bag of Tricks", fig. 2, tweaks B, C and D)."""

    kind: Literal["resnet-vd"] = "resnet-vd"
    block: Literal["basic", "bottleneck"] = Field(
        description="two 3×3 convolutions, or 1×1, 3×3, 1×1 four times as wide"
    )
    blocks: tuple[int, int, int, int] = Field(description="residual blocks in each of the four stages")

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4 and S5."""
        return (128, 256, 512) if self.block == "basic" else (512, 1024, 2048)


class HGNetStage(Config):
    """One stage of an HGNetV2 backbone."""

    channels_in: int
    channels_mid: int = Field(description="channels of each convolution in a block's chain")
    channels_out: int
    blocks: int
    downsample: bool = Field(description="starts with a depthwise 3×3 of stride 2")
    light: bool = Field(description="chain of 1×1 and depthwise pairs in place of full convolutions")
    kernel: int
    layers: int = Field(description="convolutions in a block's chain")


class HGNetV2Config(Config):
    """An HGNetV2 backbone (PaddleClas; the reference of RT-DETR-L and X)."""

    kind: Literal["hgnetv2"] = "hgnetv2"
    stem: tuple[int, int] = Field(description="channels inside the stem and after it")
    stages: tuple[HGNetStage, HGNetStage, HGNetStage, HGNetStage]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4 and S5."""
        return (self.stages[1].channels_out, self.stages[2].channels_out, self.stages[3].channels_out)


class EncoderConfig(Config):
    """The efficient hybrid encoder (paper, section 4.2)."""

    width: int = Field(default=256, description="channels of every level")
    feedforward: int = Field(default=1024, description="hidden width of AIFI's feed-forward network")
    heads: int = 8
    aifi_layers: int = Field(default=1, description="transformer layers on S5")
    expansion: float = Field(default=1.0, description="width inside a fusion block, as a share of `width`")
    fusion_blocks: int = Field(default=3, description="RepVGG blocks in a fusion block")


class DecoderConfig(Config):
    """Query selection and the decoder (paper, sections 4.3 and 4.1)."""

    width: int = 256
    feedforward: int = 1024
    heads: int = 8
    layers: int = Field(default=6, description="layers that are trained")
    eval_layers: int | None = Field(default=None, description="layers that run in evaluation; None: all")
    points: int = Field(default=4, description="sampling points of a query, level and head")
    queries: int = Field(default=300, description="encoder features selected as queries")


class ModelConfig(Config):
    """Everything needed to build a model."""

    name: str
    num_classes: int = Field(default=80, ge=1)
    backbone: ResNetConfig | HGNetV2Config = Field(discriminator="kind")
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()


def _hgnet_stages(*rows: tuple[int, int, int, int, bool, bool, int, int]) -> tuple[HGNetStage, ...]:
    names = ("channels_in", "channels_mid", "channels_out", "blocks", "downsample", "light", "kernel", "layers")
    return tuple(HGNetStage(**dict(zip(names, row, strict=True))) for row in rows)  # type: ignore[arg-type]


_HGNETV2_B0 = HGNetV2Config(
    stem=(16, 16),
    stages=_hgnet_stages(
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 512, 2, True, True, 5, 3),
        (512, 128, 1024, 1, True, True, 5, 3),
    ),  # type: ignore[arg-type]
)

MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(
            name="rtdetr-n",
            backbone=_HGNETV2_B0,
            encoder=EncoderConfig(width=128, feedforward=512, expansion=0.5),
            decoder=DecoderConfig(width=128, feedforward=512, heads=4, layers=3),
        ),
        ModelConfig(
            name="rtdetr-r18",
            backbone=ResNetConfig(block="basic", blocks=(2, 2, 2, 2)),
            encoder=EncoderConfig(expansion=0.5),
            decoder=DecoderConfig(layers=3),
        ),
        ModelConfig(
            name="rtdetr-r34",
            backbone=ResNetConfig(block="basic", blocks=(3, 4, 6, 3)),
            encoder=EncoderConfig(expansion=0.5),
            decoder=DecoderConfig(layers=4),
        ),
        ModelConfig(
            name="rtdetr-r50m",
            backbone=ResNetConfig(block="bottleneck", blocks=(3, 4, 6, 3)),
            encoder=EncoderConfig(expansion=0.5),
            decoder=DecoderConfig(eval_layers=3),
        ),
        ModelConfig(
            name="rtdetr-r50",
            backbone=ResNetConfig(block="bottleneck", blocks=(3, 4, 6, 3)),
        ),
        ModelConfig(
            name="rtdetr-r101",
            backbone=ResNetConfig(block="bottleneck", blocks=(3, 4, 23, 3)),
            encoder=EncoderConfig(width=384, feedforward=2048),
        ),
    )
}


def model_config(name: str, *, num_classes: int | None = None) -> ModelConfig:
    """The configuration of a model by its name.

    Raises:
        ConfigError: there is no model of that name (the nearest one is suggested).
    """
    if name not in MODELS:
        raise ConfigError(f"There is no model '{name}'.{suggest(name, MODELS)}")
    config = MODELS[name]
    return config if num_classes is None else config.model_copy(update={"num_classes": num_classes})
