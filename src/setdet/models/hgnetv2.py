"""HGNetV2: the backbone of rtdetr-n and of rtdetr-hgnetv2-l, -x and -h, after PaddleClas' PP-HGNetV2."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from setdet.models.layers import ConvNorm
from setdet.models.variants import HGNetStage, HGNetV2Config


class Stem(nn.Module):
    """Stride 4; a branch of 2×2 convolutions beside a max-pool, padded right and bottom."""

    def __init__(self, *, channels_mid: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels_mid, kernel=3, stride=2, activation="relu")
        self.conv2a = ConvNorm(channels_mid, channels_mid // 2, kernel=2, padding=0, activation="relu")
        self.conv2b = ConvNorm(channels_mid // 2, channels_mid, kernel=2, padding=0, activation="relu")
        self.pool = nn.MaxPool2d(2, 1)
        self.conv3 = ConvNorm(2 * channels_mid, channels_mid, kernel=3, stride=2, activation="relu")
        self.conv4 = ConvNorm(channels_mid, channels_out, activation="relu")

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch out height2 width2"]:
        x = F.pad(self.conv1(images), (0, 1, 0, 1))
        convolved = self.conv2b(F.pad(self.conv2a(x), (0, 1, 0, 1)))
        return self.conv4(self.conv3(torch.cat([self.pool(x), convolved], dim=1)))


class LightConv(nn.Module):
    """1×1 without activation, then depthwise k×k with ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, kernel: int) -> None:
        super().__init__()
        self.pointwise = ConvNorm(channels_in, channels_out)
        self.depthwise = ConvNorm(channels_out, channels_out, kernel=kernel, groups=channels_out, activation="relu")

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        return self.depthwise(self.pointwise(x))


class Block(nn.Module):
    """A chain of convolutions whose input and outputs are all concatenated, then squeezed by two 1×1."""

    def __init__(self, channels_in: int, *, stage: HGNetStage, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        widths = [channels_in] + [stage.channels_mid] * stage.layers
        self.layers = nn.ModuleList(
            LightConv(a, b, kernel=stage.kernel)
            if stage.light
            else ConvNorm(a, b, kernel=stage.kernel, activation="relu")
            for a, b in pairwise(widths)
        )
        self.squeeze = ConvNorm(sum(widths), stage.channels_out // 2, activation="relu")
        self.excite = ConvNorm(stage.channels_out // 2, stage.channels_out, activation="relu")

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        features = [x]
        for layer in self.layers:
            features.append(layer(features[-1]))
        out = self.excite(self.squeeze(torch.cat(features, dim=1)))
        return out + x if self.residual else out


class HGNetV2(nn.Module):
    """Pictures → (S3, S4, S5) at strides 8, 16, 32."""

    def __init__(self, *, config: HGNetV2Config) -> None:
        super().__init__()
        self.stem = Stem(channels_mid=config.stem[0], channels_out=config.stem[1])
        self.stages = nn.ModuleList(_make_stage(stage) for stage in config.stages)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> tuple[
        Float[Tensor, "batch c3 h3 w3"],
        Float[Tensor, "batch c4 h4 w4"],
        Float[Tensor, "batch c5 h5 w5"],
    ]:
        s2 = self.stages[0](self.stem(images))
        s3 = self.stages[1](s2)
        s4 = self.stages[2](s3)
        s5 = self.stages[3](s4)
        return s3, s4, s5


def _make_stage(stage: HGNetStage) -> nn.Sequential:
    parts: list[nn.Module] = []
    if stage.downsample:
        parts.append(ConvNorm(stage.channels_in, stage.channels_in, kernel=3, stride=2, groups=stage.channels_in))
    for position in range(stage.blocks):
        channels_in = stage.channels_in if position == 0 else stage.channels_out
        parts.append(Block(channels_in, stage=stage, residual=position > 0))
    return nn.Sequential(*parts)
