"""Multi-scale deformable attention (Zhu et al. 2021, "Deformable DETR", eq. 3) with box references.

RT-DETRv2 (Lv et al. 2024, section 3.1) lets the number of points differ from level to level, and can read the nearest
cell alone in place of bilinear sampling.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from setdet.models.sampling import can_sample_rows, sample_rows
from setdet.models.variants import Sampling


class DeformableAttention(nn.Module):
    """Each query samples a few points of every level around its reference box and sums them up."""

    def __init__(self, *, width: int, heads: int, points: tuple[int, ...], sampling: Sampling) -> None:
        """`points` are the sampling points of a query and head on each level."""
        super().__init__()
        self.heads, self.points, self.sampling = heads, points, sampling
        self.sampling_offsets = nn.Linear(width, heads * sum(points) * 2)
        self.attention_weights = nn.Linear(width, heads * sum(points))
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._reset_parameters()
        if sampling == "discrete":  # which cell is read has no gradient: the offsets stay as they were loaded
            self.sampling_offsets.requires_grad_(False)

    def _reset_parameters(self) -> None:
        # Each head starts looking in its own direction, point k of a level at k steps; all weights equal.
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1, dtype=torch.float32) for count in self.points])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((directions[:, None, :] * steps[None, :, None]).flatten())
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
        batch = len(query)
        locations, weights = self.sampling_points(query, reference_cxcywh=reference_cxcywh)
        if self.sampling == "bilinear" and can_sample_rows(memory):
            sampled = sample_rows(self.value_proj(memory), shapes, locations, weights, points=self.points)
        else:
            # Weight · memory, not memory · weight: this sampling wants each channel's tokens next to each other.
            value = torch.addmm(self.value_proj.bias[:, None], self.value_proj.weight, memory.flatten(0, 1).t())
            value = value.unflatten(1, (batch, -1)).transpose(0, 1)  # (B, C, tokens)
            sampled = sample_levels(value, shapes, locations, weights, points=self.points, sampling=self.sampling)
        return self.output_proj(sampled.to(query.dtype))

    def sampling_points(
        self, query: Float[Tensor, "batch queries width"], *, reference_cxcywh: Float[Tensor, "batch queries 4"]
    ) -> tuple[Float[Tensor, "batch queries heads points 2"], Float[Tensor, "batch queries heads points"]]:
        """Where each query and head looks, (x, y) as shares of the picture, and how much each point counts.

        Points are those of the first level, then of the second, and so on; the weights of a head sum to 1.
        """
        batch, queries, _ = query.shape
        weights = self.attention_weights(query).view(batch, queries, self.heads, -1).softmax(dim=-1)
        # Offsets are measured in halves of the box, shared among the points of a level.
        step = torch.cat([reference_cxcywh.new_full((count, 1), 0.5 / count) for count in self.points])
        center, size = reference_cxcywh.split(2, dim=-1)
        # Laid out like the offsets, since sums of tensors of one layout run over long stretches of memory.
        steps = (size[:, :, None] * step).flatten(2).repeat(1, 1, self.heads)  # (B, Q, heads · points · 2)
        centers = center.repeat(1, 1, self.heads * len(step))
        locations = torch.addcmul(centers, self.sampling_offsets(query).to(steps.dtype), steps)
        return locations.view(batch, queries, self.heads, -1, 2), weights


def sample_levels(
    value: Float[Tensor, "batch width tokens"],
    shapes: list[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads points 2"],
    weights: Float[Tensor, "batch queries heads points"],
    *,
    points: tuple[int, ...],
    sampling: Sampling,
) -> Float[Tensor, "batch queries width"]:
    """Weighted sum of samples; `locations` are (x, y) as shares of the picture.

    The first `points[0]` of them are on the first level, the next `points[1]` on the second, and so on. Sampled in
    float32 at least: half precision has too few steps for positions on a large grid.
    """
    batch, queries, heads = locations.shape[:3]
    dtype = torch.promote_types(value.dtype, torch.float32)
    # Queries last: what is summed over points then runs over long stretches of memory.
    locations = locations.to(dtype).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B·heads, points, Q, 2)
    weights = weights.to(dtype).permute(0, 2, 3, 1).flatten(0, 1)[:, None]  # (B·heads, 1, points, Q)
    value = value.to(dtype, memory_format=torch.contiguous_format)
    sample = _sample_bilinear if sampling == "bilinear" else _sample_nearest
    total: Tensor | None = None
    levels = zip(
        value.split([height * width for height, width in shapes], dim=2),
        shapes,
        locations.split(points, dim=1),
        weights.split(points, dim=2),
        strict=True,
    )
    for tokens, shape, level_locations, level_weights in levels:
        plane = tokens.reshape(batch * heads, -1, *shape)  # (B·heads, C / heads, height, width)
        level_sum = (sample(plane, level_locations) * level_weights).sum(dim=2)  # (B·heads, C / heads, Q)
        total = level_sum if total is None else total + level_sum
    assert total is not None  # there is at least one level
    return total.view(batch, -1, queries).transpose(1, 2)


def _sample_bilinear(
    plane: Float[Tensor, "n c height width"], locations: Float[Tensor, "n points queries 2"]
) -> Float[Tensor, "n c points queries"]:
    """Interpolates between the centres of the four nearest cells; zeros lie outside."""
    return F.grid_sample(plane, 2 * locations - 1, align_corners=False)


def _sample_nearest(
    plane: Float[Tensor, "n c height width"], locations: Float[Tensor, "n points queries 2"]
) -> Float[Tensor, "n c points queries"]:
    """Reads one cell a point, as RT-DETRv2 numbers them: floor(x · width + 0.5), kept inside the level."""
    height, width = plane.shape[2:]
    # Casting cuts towards zero: what differs from floor lies outside, and is clamped to the first cell either way.
    x = (locations[..., 0] * width + 0.5).long().clamp(0, width - 1)
    y = (locations[..., 1] * height + 0.5).long().clamp(0, height - 1)
    cells = (y * width + x).flatten(1)[:, None].expand(-1, plane.shape[1], -1)
    return plane.flatten(2).gather(2, cells).unflatten(2, x.shape[1:])
