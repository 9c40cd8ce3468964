"""Multi-scale deformable attention (Zhu et al. 2021, "Deformable DETR", eq. 3) with box references."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Each query samples a few points of every level around its reference box and sums them up."""

    def __init__(self, *, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        # Each head starts looking in its own direction, point k at k steps; all weights equal.
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = directions[:, None, None, :] * steps[None, None, :, None]  # (heads, 1, points, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        *,
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        memory: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "batch queries width"]:
        """Samples `memory`, the tokens of all levels one after the other, whose (height, width) are `shapes`."""
        batch, queries, _ = query.shape
        # Weight · memory, not memory · weight: sampling wants each channel's tokens next to each other.
        value = torch.addmm(self.value_proj.bias[:, None], self.value_proj.weight, memory.flatten(0, 1).t())
        value = value.unflatten(1, (batch, -1)).transpose(0, 1)  # (B, C, tokens)
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1)
        weights = weights.softmax(dim=-1).view(batch, queries, self.heads, self.levels, self.points)
        center, size = reference_cxcywh[:, :, None, None, None].split(2, dim=-1)
        locations = center + offsets * (0.5 / self.points) * size
        sampled = sample_levels(value, shapes, locations, weights)
        return self.output_proj(sampled.to(query.dtype))


def sample_levels(
    value: Float[Tensor, "batch width tokens"],
    shapes: list[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads levels points 2"],
    weights: Float[Tensor, "batch queries heads levels points"],
) -> Float[Tensor, "batch queries width"]:
    """Weighted sum of bilinear samples; `locations` are (x, y) as shares of the picture, zeros lie outside.

    Sampled in float32 at least: half precision has too few steps for positions on a large grid.
    """
    batch, queries, heads = locations.shape[:3]
    dtype = torch.promote_types(value.dtype, torch.float32)
    # Queries last: what is summed over points then runs over long stretches of memory.
    grids = (2 * locations - 1).to(dtype).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # (L, B·heads, P, Q, 2)
    weights = weights.to(dtype).permute(3, 0, 2, 4, 1).flatten(1, 2)[:, :, None]  # (L, B·heads, 1, P, Q)
    total: Tensor | None = None
    value = value.to(dtype, memory_format=torch.contiguous_format)
    for level, tokens in enumerate(value.split([height * width for height, width in shapes], dim=2)):
        plane = tokens.reshape(batch * heads, -1, *shapes[level])
        sampled = F.grid_sample(plane, grids[level], align_corners=False)  # (B·heads, C / heads, P, Q)
        level_sum = (sampled * weights[level]).sum(dim=2)  # (B·heads, C / heads, Q)
        total = level_sum if total is None else total + level_sum
    assert total is not None  # there is at least one level
    return total.view(batch, -1, queries).transpose(1, 2)
