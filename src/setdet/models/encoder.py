"""The efficient hybrid encoder: attention inside S5 (AIFI), then convolutions across scales (CCFF).

RT-DETR paper, section 4.2 and figure 4; CCFF is called CCFM in the paper's first version.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from setdet.models.layers import ConvNorm
from setdet.models.self_attention import SelfAttention
from setdet.models.variants import EncoderConfig

Features = tuple[
    Float[Tensor, "batch c3 h3 w3"],
    Float[Tensor, "batch c4 h4 w4"],
    Float[Tensor, "batch c5 h5 w5"],
]
FusedFeatures = tuple[
    Float[Tensor, "batch width h3 w3"],
    Float[Tensor, "batch width h4 w4"],
    Float[Tensor, "batch width h5 w5"],
]


class HybridEncoder(nn.Module):
    """(S3, S4, S5) of the backbone → (P3, P4, P5) of one width."""

    def __init__(
        self,
        *,
        config: EncoderConfig,
        channels: tuple[int, int, int],
        interaction: Callable[..., nn.Module],
        fusion: Callable[..., nn.Module],
    ) -> None:
        """`interaction(config=...)` makes what happens inside S5, `fusion(config=...)` what happens where levels meet.

        In RT-DETR they are `AIFI` and `FusionBlock`; `setdet.models.ablations` has others.
        """
        super().__init__()
        width = config.width
        self.input_proj = nn.ModuleList(ConvNorm(channels_in, width) for channels_in in channels)
        self.aifi = interaction(config=config)
        self.lateral = nn.ModuleList(ConvNorm(width, width, activation="silu") for _ in range(2))
        self.top_down = nn.ModuleList(fusion(config=config) for _ in range(2))
        self.downsample = nn.ModuleList(ConvNorm(width, width, kernel=3, stride=2, activation="silu") for _ in range(2))
        self.bottom_up = nn.ModuleList(fusion(config=config) for _ in range(2))

    def forward(self, features: Features) -> FusedFeatures:
        s3, s4, s5 = (project(feature) for project, feature in zip(self.input_proj, features, strict=True))
        return self.fuse(s3, s4, self.aifi(s5))

    def fuse(
        self,
        s3: Float[Tensor, "batch width h3 w3"],
        s4: Float[Tensor, "batch width h4 w4"],
        f5: Float[Tensor, "batch width h5 w5"],
    ) -> FusedFeatures:
        """CCFF: top-down, then bottom-up."""
        f5 = self.lateral[0](f5)
        f4 = self.lateral[1](self.top_down[0](torch.cat([_upsample(f5), s4], dim=1)))
        p3 = self.top_down[1](torch.cat([_upsample(f4), s3], dim=1))

        p4 = self.bottom_up[0](torch.cat([self.downsample[0](p3), f4], dim=1))
        p5 = self.bottom_up[1](torch.cat([self.downsample[1](p4), f5], dim=1))
        return p3, p4, p5


class AIFI(nn.Module):
    """Attention-based intra-scale feature interaction: transformer layers on the tokens of S5 alone."""

    def __init__(self, *, config: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AIFILayer(config=config) for _ in range(config.aifi_layers))

    def forward(self, s5: Float[Tensor, "batch width h5 w5"]) -> Float[Tensor, "batch width h5 w5"]:
        _, width, height5, width5 = s5.shape
        tokens = s5.flatten(2).transpose(1, 2)  # (B, h5·w5, C)
        position = sine_cosine_positions(height5, width5, width, like=tokens)
        for layer in self.layers:
            tokens = layer(tokens, position)
        return tokens.transpose(1, 2).unflatten(2, (height5, width5))


class AIFILayer(nn.Module):
    """A post-norm transformer encoder layer with GELU."""

    def __init__(self, *, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(width=config.width, heads=config.heads)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(
        self, x: Float[Tensor, "batch tokens width"], position: Float[Tensor, "1 tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        x = self.norm1(x + self.self_attention(x, position))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))


class FusionBlock(nn.Module):
    """The fusion block of CCFF (figure 4): two 1×1 branches, RepVGG blocks on one, summed, and a 1×1 back."""

    def __init__(self, *, config: EncoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.expansion)
        self.conv1 = ConvNorm(2 * config.width, hidden, activation="silu")
        self.conv2 = ConvNorm(2 * config.width, hidden, activation="silu")
        self.blocks = nn.Sequential(*(RepVGGBlock(hidden) for _ in range(config.fusion_blocks)))
        self.conv3 = ConvNorm(hidden, config.width, activation="silu") if hidden != config.width else nn.Identity()

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        return self.conv3(self.blocks(self.conv1(x)) + self.conv2(x))


class RepVGGBlock(nn.Module):
    """3×3 beside 1×1, summed; foldable into one 3×3 (Ding et al. 2021, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3x3 = ConvNorm(channels, channels, kernel=3)
        self.conv1x1 = ConvNorm(channels, channels)

    def forward(self, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
        return F.silu(self.conv3x3(x) + self.conv1x1(x))


def sine_cosine_positions(
    height: int, width: int, channels: int, *, like: Tensor, step: int = 1, temperature: float = 10000.0
) -> Float[Tensor, "1 tokens channels"]:
    """2-D positions [sin y, cos y, sin x, cos x] of a grid in row-major order, a quarter of the channels each.

    `step` is what y and x grow by from cell to cell.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    quarter = torch.arange(channels // 4, dtype=dtype, device=like.device)
    frequency = temperature ** (-quarter / (channels // 4))
    angle_y = torch.arange(0, height * step, step, dtype=dtype, device=like.device)[:, None] * frequency
    angle_x = torch.arange(0, width * step, step, dtype=dtype, device=like.device)[:, None] * frequency
    rows = torch.cat([angle_y.sin(), angle_y.cos()], dim=1)[:, None].expand(height, width, -1)
    columns = torch.cat([angle_x.sin(), angle_x.cos()], dim=1)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, channels).to(like.dtype)


def _upsample(x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height2 width2"]:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
