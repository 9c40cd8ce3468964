"""Every model by name, as data. No torch.

Sizes are those of the RT-DETR paper (Zhao et al., CVPR 2024, arXiv 2304.08069) and of its authors' code; those of
`rtdetr-hgnetv2-h` are of PaddleDetection's model zoo. `rtdetr-n` is ours: HGNetV2-B0's widths for the backbone,
everything behind it half as wide. RT-DETRv2 (arXiv 2407.17140) is the same network under another training recipe; its
models named `-dsp` sample discretely.
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from setdet.config import Config, suggest
from setdet.errors import ConfigError

Sampling = Literal["bilinear", "discrete"]


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"{heads} heads cannot share {width} channels: width must be a multiple of heads")


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
    """An HGNetV2 backbone (PaddleClas; that of RT-DETR-L, X and H)."""

    kind: Literal["hgnetv2"] = "hgnetv2"
    stem: tuple[int, int] = Field(description="channels inside the stem and after it")
    stages: tuple[HGNetStage, HGNetStage, HGNetStage, HGNetStage]

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of S3, S4 and S5."""
        return (self.stages[1].channels_out, self.stages[2].channels_out, self.stages[3].channels_out)


class EncoderConfig(Config):
    """The efficient hybrid encoder (paper, section 4.2), and what it is compared with (figure 3)."""

    variant: Literal["A", "B", "C", "D", "D_S5", "E"] = Field(
        default="E",
        description="A: projections alone; B: attention inside each level, by one shared layer; C: attention over the "
        "tokens of all levels together; D: B, then plain fusion by convolutions; D_S5: attention inside S5 alone, then "
        "plain fusion; E: RT-DETR's own, AIFI and CCFF",
    )
    interaction: Literal["aifi", "none", "cross"] = Field(
        default="aifi",
        description="what happens inside S5 in the variants D_S5 and E: attention, nothing, or convolutions and "
        "attention side by side that look at each other (after ICIF-Net)",
    )
    width: int = Field(default=256, ge=4, multiple_of=4, description="channels of every level")
    feedforward: int = Field(default=1024, ge=1, description="hidden width of AIFI's feed-forward network")
    heads: int = Field(default=8, ge=1, description="of AIFI's attention")
    aifi_layers: int = Field(default=1, ge=0, description="transformer layers on S5")
    expansion: float = Field(default=1.0, gt=0, description="width inside a fusion block, as a share of `width`")
    fusion_blocks: int = Field(default=3, ge=0, description="RepVGG blocks in a fusion block")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "EncoderConfig":
        _check_heads(self.width, self.heads)
        return self

    @field_validator("interaction")
    @classmethod
    def _only_where_s5_is_by_itself(cls, interaction: str, info: Any) -> str:
        variant = info.data.get("variant", "E")
        if interaction != "aifi" and variant not in ("D_S5", "E"):
            raise ValueError(f"variant {variant} has no interaction inside S5 to replace; use variant D_S5 or E")
        return interaction


class DecoderConfig(Config):
    """Query selection and the decoder (paper, sections 4.3 and 4.1)."""

    width: int = Field(default=256, ge=1, description="channels of a query")
    feedforward: int = Field(default=1024, ge=1, description="hidden width of a layer's feed-forward network")
    heads: int = Field(default=8, ge=1, description="of self-attention and of deformable attention")
    layers: int = Field(default=6, ge=1, description="layers that are trained")
    eval_layers: int | None = Field(default=None, ge=1, description="layers that run in evaluation; None: all")
    points: int | tuple[int, int, int] = Field(
        default=4, description="sampling points of a query and head on every level, or on each of the three (RT-DETRv2)"
    )
    sampling: Sampling = Field(
        default="bilinear",
        description="a point reads its four nearest cells, or a single one: for runtimes without grid sampling, "
        "fine-tuned from bilinear weights (RT-DETRv2); the offsets of the points are not trained then",
    )
    queries: int = Field(default=300, ge=1, description="encoder features selected as queries")
    box_refinement: Literal["direct", "distribution"] = Field(
        default="direct",
        description="a layer adds to the box of the one before; or it refines distributions over where the box's edges "
        "lie (D-FINE)",
    )
    training_groups: int = Field(
        default=1,
        ge=1,
        description="groups of `queries` queries in training, each decoded and matched by itself (Group DETR): the "
        "next best features make the next group, and the first alone runs in evaluation",
    )
    query_source: Literal["encoder", "learned"] = Field(
        default="encoder",
        description="queries are the encoder's best features, or learned, the same for every picture (as in DETR); "
        "learned ones have no encoder loss",
    )
    rivals: bool = Field(
        default=False,
        description="every layer tells each query how better-scored ones overlap its box, so that one object has one "
        "query (after EASE-DETR)",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "DecoderConfig":
        _check_heads(self.width, self.heads)
        if self.training_groups > 1 and self.box_refinement == "distribution":
            raise ValueError("groups of queries and edges as distributions don't go together: choose one")
        if self.training_groups > 1 and self.query_source == "learned":
            raise ValueError("learned queries have no next best to make groups of: leave out training_groups")
        if self.rivals and self.query_source == "learned":
            raise ValueError("learned queries come without scores, so none is better than another: leave out rivals")
        return self

    @field_validator("eval_layers")
    @classmethod
    def _only_trained_ones(cls, eval_layers: int | None, info: Any) -> int | None:
        layers = info.data.get("layers")
        if eval_layers is not None and layers is not None and eval_layers > layers:
            raise ValueError(f"only {layers} layers are trained")
        return eval_layers

    @field_validator("points")
    @classmethod
    def _some_points(cls, points: int | tuple[int, int, int]) -> int | tuple[int, int, int]:
        if min([points] if isinstance(points, int) else points) < 1:
            raise ValueError("every level needs at least one point")
        return points

    @property
    def points_per_level(self) -> tuple[int, int, int]:
        """Sampling points of a query and head on P3, P4 and P5."""
        return (self.points,) * 3 if isinstance(self.points, int) else self.points


class ModelConfig(Config):
    """Everything needed to build a model."""

    name: str
    num_classes: int = Field(default=80, ge=1)
    backbone: ResNetConfig | HGNetV2Config = Field(discriminator="kind")
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()


def _hgnet(*, stem: tuple[int, int], stages: list[tuple[int, int, int, int, bool, bool, int, int]]) -> HGNetV2Config:
    """An HGNetV2 whose stages are rows in the order of the fields of `HGNetStage`."""
    rows = [dict(zip(HGNetStage.model_fields, row, strict=True)) for row in stages]
    return HGNetV2Config.from_dict({"stem": stem, "stages": rows})


_HGNETV2_B0 = _hgnet(
    stem=(16, 16),
    stages=[
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 512, 2, True, True, 5, 3),
        (512, 128, 1024, 1, True, True, 5, 3),
    ],
)
_HGNETV2_L = _hgnet(
    stem=(32, 48),
    stages=[
        (48, 48, 128, 1, False, False, 3, 6),
        (128, 96, 512, 1, True, False, 3, 6),
        (512, 192, 1024, 3, True, True, 5, 6),
        (1024, 384, 2048, 1, True, True, 5, 6),
    ],
)
_HGNETV2_X = _hgnet(
    stem=(32, 64),
    stages=[
        (64, 64, 128, 1, False, False, 3, 6),
        (128, 128, 512, 2, True, False, 3, 6),
        (512, 256, 1024, 5, True, True, 5, 6),
        (1024, 512, 2048, 2, True, True, 5, 6),
    ],
)
_HGNETV2_H = _hgnet(
    stem=(48, 96),
    stages=[
        (96, 96, 192, 2, False, False, 3, 6),
        (192, 192, 512, 3, True, False, 3, 6),
        (512, 384, 1024, 6, True, True, 5, 6),
        (1024, 768, 2048, 3, True, True, 5, 6),
    ],
)

_NANO = ModelConfig(
    name="rtdetr-n",
    backbone=_HGNETV2_B0,
    encoder=EncoderConfig(width=128, feedforward=512, expansion=0.5),
    decoder=DecoderConfig(width=128, feedforward=512, heads=4, layers=3),
)
_V1 = (
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
    ModelConfig(
        name="rtdetr-hgnetv2-l",
        backbone=_HGNETV2_L,
    ),
    ModelConfig(
        name="rtdetr-hgnetv2-x",
        backbone=_HGNETV2_X,
        encoder=EncoderConfig(width=384, feedforward=2048),
    ),
    ModelConfig(
        name="rtdetr-hgnetv2-h",
        backbone=_HGNETV2_H,
        encoder=EncoderConfig(width=512, feedforward=2048, aifi_layers=2),
    ),
)
_V2 = tuple(config.model_copy(update={"name": config.name.replace("rtdetr-", "rtdetrv2-")}) for config in _V1)
_V2_DISCRETE = tuple(
    config.model_copy(
        update={"name": f"{config.name}-dsp", "decoder": config.decoder.model_copy(update={"sampling": "discrete"})}
    )
    for config in _V2
    if config.name in ("rtdetrv2-r18", "rtdetrv2-r34", "rtdetrv2-r50m", "rtdetrv2-r50")
)

MODELS: dict[str, ModelConfig] = {config.name: config for config in (_NANO, *_V1, *_V2, *_V2_DISCRETE)}


def model_config(name: str, *, num_classes: int | None = None) -> ModelConfig:
    """The configuration of a model by its name.

    Raises:
        ConfigError: there is no model of that name (the nearest one is suggested).
    """
    if name not in MODELS:
        raise ConfigError(f"There is no model '{name}'.{suggest(name, MODELS)}")
    config = MODELS[name]
    return config if num_classes is None else config.model_copy(update={"num_classes": num_classes})
