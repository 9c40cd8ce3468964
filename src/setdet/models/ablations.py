"""What the hybrid encoder is compared with: the variants of the paper's figure 3, and other interactions inside S5.

The paper leaves the details of its variants open. Here all share the input projections, the transformer layer and the
path of the hybrid encoder, so that a comparison shows the one thing that differs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setdet.models.encoder import (
    AIFI,
    AIFILayer,
    Features,
    FusedFeatures,
    FusionBlock,
    HybridEncoder,
    RepVGGBlock,
    sine_cosine_positions,
)
from setdet.models.layers import ConvNorm
from setdet.models.self_attention import attend
from setdet.models.variants import EncoderConfig


def make_encoder(config: EncoderConfig, *, channels: tuple[int, int, int]) -> nn.Module:
    """The encoder that `config.variant` and `config.interaction` name, for S3, S4 and S5 of that many channels."""
    interaction = {"aifi": AIFI, "none": nn.Identity, "cross": CrossInteraction}[config.interaction]
    match config.variant:
        case "A":
            return Projections(config=config, channels=channels)
        case "B":
            return SingleScaleEncoder(config=config, channels=channels)
        case "C":
            return MultiScaleEncoder(config=config, channels=channels)
        case "D":
            return DecoupledEncoder(config=config, channels=channels, interaction=AIFI, fusion=PlainFusion)
        case "D_S5":
            return HybridEncoder(config=config, channels=channels, interaction=interaction, fusion=PlainFusion)
        case "E":
            return HybridEncoder(config=config, channels=channels, interaction=interaction, fusion=FusionBlock)


class Projections(nn.Module):
    """Variant A: every level is brought to one width, and that is all."""

    def __init__(self, *, config: EncoderConfig, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(ConvNorm(channels_in, config.width) for channels_in in channels)

    def forward(self, features: Features) -> FusedFeatures:
        s3, s4, s5 = (project(feature) for project, feature in zip(self.input_proj, features, strict=True))
        return s3, s4, s5


class SingleScaleEncoder(Projections):
    """Variant B: attention inside each level, by layers that the levels share."""

    def __init__(self, *, config: EncoderConfig, channels: tuple[int, int, int]) -> None:
        super().__init__(config=config, channels=channels)
        self.aifi = AIFI(config=config)

    def forward(self, features: Features) -> FusedFeatures:
        s3, s4, s5 = super().forward(features)
        return self.aifi(s3), self.aifi(s4), self.aifi(s5)


class MultiScaleEncoder(Projections):
    """Variant C: attention over the tokens of all levels together, as in most DETRs before."""

    def __init__(self, *, config: EncoderConfig, channels: tuple[int, int, int]) -> None:
        super().__init__(config=config, channels=channels)
        self.layers = nn.ModuleList(AIFILayer(config=config) for _ in range(config.aifi_layers))
        self.level_embedding = nn.Embedding(len(channels), config.width)

    def forward(self, features: Features) -> FusedFeatures:
        levels = super().forward(features)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)  # (B, h3·w3 + …, C)
        positions = []
        for index, level in enumerate(levels):
            # Counted in cells of S3, so that a place has about the same position in every level.
            _, width, level_height, level_width = level.shape
            position = sine_cosine_positions(level_height, level_width, width, like=level, step=2**index)
            positions.append(position + self.level_embedding.weight[index])
        for layer in self.layers:
            tokens = layer(tokens, torch.cat(positions, dim=1))
        parts = tokens.transpose(1, 2).split([level.shape[2] * level.shape[3] for level in levels], dim=2)
        p3, p4, p5 = (part.unflatten(2, level.shape[2:]) for part, level in zip(parts, levels, strict=True))
        return p3, p4, p5


class DecoupledEncoder(HybridEncoder):
    """Variant D: attention inside each level, by layers that the levels share, then the hybrid encoder's path."""

    def forward(self, features: Features) -> FusedFeatures:
        s3, s4, s5 = (project(feature) for project, feature in zip(self.input_proj, features, strict=True))
        return self.fuse(self.aifi(s3), self.aifi(s4), self.aifi(s5))


class PlainFusion(nn.Module):
    """Where two levels meet in the variants D and D_S5: a 1×1 and a 3×3 convolution in place of a fusion block."""

    def __init__(self, *, config: EncoderConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.expansion)
        self.narrow = ConvNorm(2 * config.width, hidden, activation="silu")
        self.conv = ConvNorm(hidden, config.width, kernel=3, activation="silu")

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height width"]:
        return self.conv(self.narrow(x))


class CrossInteraction(nn.Module):
    """Inside S5: convolutions and attention side by side, each branch then looking at the other one.

    After the intra-scale cross-interaction of ICIF-Net (Feng et al. 2022), whose branches exchange local and global
    features at one resolution while each keeps its own:

        local = convolutions(S5)        global = attention(S5)
        S5' = merge(local + attend(local → global), global + attend(global → local))
    """

    def __init__(self, *, config: EncoderConfig) -> None:
        super().__init__()
        self.convolutions = RepVGGBlock(config.width)
        self.attention = AIFI(config=config)
        self.local_from_global = CrossAttention(width=config.width, heads=config.heads)
        self.global_from_local = CrossAttention(width=config.width, heads=config.heads)
        self.merge = ConvNorm(2 * config.width, config.width, activation="silu")

    def forward(self, s5: Float[Tensor, "batch width h5 w5"]) -> Float[Tensor, "batch width h5 w5"]:
        _, width, height5, width5 = s5.shape
        local_tokens = self.convolutions(s5).flatten(2).transpose(1, 2)  # (B, h5·w5, C)
        global_tokens = self.attention(s5).flatten(2).transpose(1, 2)
        position = sine_cosine_positions(height5, width5, width, like=s5)
        both = torch.cat(
            [
                self.local_from_global(local_tokens, global_tokens, position),
                self.global_from_local(global_tokens, local_tokens, position),
            ],
            dim=2,
        )
        return self.merge(both.transpose(1, 2).unflatten(2, (height5, width5)))


class CrossAttention(nn.Module):
    """Tokens that look at others of the same places, added to what they were; post-norm."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        for linear in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        others: Float[Tensor, "batch tokens width"],
        position: Float[Tensor, "1 tokens width"],
    ) -> Float[Tensor, "batch tokens width"]:
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, C / heads)
            for projected in (self.query(x + position), self.key(others + position), self.value(others))
        )
        attended = attend(query, key, value)
        return self.norm(x + self.out_proj(attended.transpose(1, 2).flatten(2)))
