"""Deformable sampling for exported graphs: by GridSample, or by gathers where a runtime gets GridSample wrong."""

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from setdet.models.attention import DeformableAttention, sample_levels

GraphSampling = Literal["grid", "gather", "discrete"]

POSITIONS = ".positions/"
"""In the names of the nodes that compute positions, which want float32."""


class GraphAttention(nn.Module):
    """`DeformableAttention` as it is exported: one way of sampling, nothing that asks where it runs.

    grid: one GridSample a level. gather: the same four cells and weights by plain Gather, which every runtime has and
    none gets wrong. discrete: one Gather of the cell that RT-DETRv2's discrete sampling names.
    """

    def __init__(self, *, attention: DeformableAttention, sampling: GraphSampling) -> None:
        super().__init__()
        self.value_proj, self.output_proj = attention.value_proj, attention.output_proj
        self.sample: nn.Module
        if sampling == "grid":
            self.sample = GridSampling(attention=attention)
        else:
            self.sample = CellSampling(attention=attention, corners=1 if sampling == "discrete" else 4)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        *,
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        memory: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "batch queries width"]:
        """As `DeformableAttention.forward`."""
        return self.output_proj(self.sample(query, reference_cxcywh, self.value_proj(memory), shapes))


class GridSampling(nn.Module):
    """Bilinear samples by one GridSample a level."""

    def __init__(self, *, attention: DeformableAttention) -> None:
        super().__init__()
        self.heads, self.points = attention.heads, attention.points
        self.offsets, self.weights = attention.sampling_offsets, attention.attention_weights
        self.register_buffer("step", _step(attention.points)[:, None], persistent=False)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        value: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "batch queries width"]:
        """The weighted sum of each head's samples, heads side by side."""
        each = (-1, query.shape[1], self.heads, sum(self.points))
        offsets = self.offsets(query).view(*each, 2)
        weights = self.weights(query).view(each).softmax(dim=-1)
        center, size = reference_cxcywh[:, :, None, None].split(2, dim=-1)
        locations = center + offsets * self.step * size
        return sample_levels(value.transpose(1, 2), shapes, locations, weights, points=self.points, sampling="bilinear")


class CellSampling(nn.Module):
    """Samples as weighted sums of cells, in as few operations as can be.

    A point is there once for each of its corners from the projections on, which have rows for every one of them: all
    that follows is elementwise on (batch, queries, heads, corners · points), and runtimes fuse it into a few loops.
    """

    def __init__(self, *, attention: DeformableAttention, corners: Literal[1, 4]) -> None:
        super().__init__()
        heads, points, width = attention.heads, sum(attention.points), attention.sampling_offsets.in_features
        self.heads = heads
        for_each = (heads, 1, points)  # of one corner
        shape = (heads, corners, points)

        offsets = attention.sampling_offsets.weight.view(*for_each, 2, width)
        bias = attention.sampling_offsets.bias.view(*for_each, 2, 1)
        both = torch.cat([offsets, bias], dim=4) * _step(attention.points)[:, None, None]
        self.offsets = _linear(both.expand(*shape, 2, -1).movedim(3, 0))  # all horizontal ones first

        weights = attention.attention_weights.weight.view(*for_each, width)
        both = torch.cat([weights, attention.attention_weights.bias.view(*for_each, 1)], dim=3)
        self.weights = _linear(both.expand(*shape, -1))
        self.positions = CellPositions(heads=heads, points=attention.points, corners=corners)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        value: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "batch queries width"]:
        """The weighted sum of each head's cells, heads side by side."""
        batch, tokens, width = value.shape
        queries, heads = query.shape[1], self.heads
        # Over all corners of all points: each weight is there once for every corner, at so small a share of itself.
        weights = self.weights(query).view(-1, queries, heads, self.positions.reads).softmax(dim=-1)
        rows, shares = self.positions(self.offsets(query), reference_cxcywh, shapes)
        picture = torch.arange(batch, device=value.device)[:, None, None, None] * (tokens * heads)
        # One Gather of rows, a head's channels of a token each, without moving `value` first.
        read = value.reshape(-1, width // heads)[rows + picture]  # (B, Q, heads, reads, C / heads)
        return ((weights * shares)[..., None, :] @ read).reshape(-1, queries, width)


class CellPositions(nn.Module):
    """Which cells the points read, and their shares of the samples.

    Wants float32: in bfloat16 a coordinate has eight bits, and a cell's number is off by rows.
    """

    def __init__(self, *, heads: int, points: tuple[int, ...], corners: Literal[1, 4]) -> None:
        super().__init__()
        self.heads, self.corners = heads, corners
        self.reads = corners * sum(points)
        level = torch.arange(len(points)).repeat_interleave(torch.tensor(points))
        self.level: Tensor
        self.register_buffer("level", level.repeat(corners), persistent=False)
        self.head: Tensor
        self.register_buffer("head", torch.arange(heads)[:, None], persistent=False)
        corner = torch.arange(corners).repeat_interleave(sum(points))
        self.right: Tensor
        self.register_buffer("right", (corner % 2).float(), persistent=False)
        self.lower: Tensor
        self.register_buffer("lower", (corner // 2).float(), persistent=False)

    def forward(
        self,
        offsets: Float[Tensor, "batch queries offsets"],
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        shapes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Rows of a table (tokens · heads) as int64, and shares times the corners: each (B, Q, heads, reads).

        One corner: floor(x · width + 0.5) kept inside the level. Four: bilinear interpolation between the centres of
        cells; a cell outside counts as zero.

        Args:
            offsets: (batch, queries, 2 · heads · reads) in shares of the reference box, all horizontal ones first.
            reference_cxcywh: 0 to 1.
            shapes: (height, width) of every level.
        """
        queries = offsets.shape[1]
        dx, dy = offsets.view(-1, queries, 2 * self.heads, self.reads).split(self.heads, dim=2)
        cx, cy, w, h = reference_cxcywh.view(-1, queries, 4, 1).split(1, dim=2)
        width, height = (self._per_read([shape[axis] for shape in shapes]) for axis in (1, 0))
        x, y = (cx + dx * w) * width, (cy + dy * h) * height
        column, share_x = self._along(x, width, self.right)
        row, share_y = self._along(y, height, self.lower)
        # Whole numbers, and clamped, as floats: clamping integers is slow or missing somewhere. But no constant here is
        # beyond 2048, to which half precision counts, should a file keep its numbers so.
        starts = [sum(rows * columns for rows, columns in shapes[:level]) for level in range(len(shapes))]
        cells = (row * width + column).to(torch.int64) + self._per_read(starts, torch.int64)
        return cells * self.heads + self.head, share_x * share_y

    def _along(self, x: Tensor, cells: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Along one axis: the cell that is read, and its share; `second` is 1 where it is the second of two."""
        if self.corners == 1:
            return torch.minimum((x + 0.5).floor().clamp(min=0), cells - 1), torch.ones_like(x)
        x = x - 0.5
        first = x.floor()
        cell = first + second
        inside = torch.minimum(cell.clamp(min=0), cells - 1)
        share = ((x - first) - (1 - second)).abs()
        return inside, torch.where(inside == cell, 2 * share, 0.0)  # of two on this axis

    def _per_read(self, values: list[int], dtype: torch.dtype = torch.float32) -> Shaped[Tensor, " reads"]:
        return torch.stack([torch.scalar_tensor(value, dtype=dtype) for value in values])[self.level]


def _step(points: tuple[int, ...]) -> Float[Tensor, " points"]:
    """Offsets are measured in halves of the box, shared among the points of a level."""
    counts = torch.tensor(points)
    return torch.repeat_interleave(0.5 / counts, counts)


def _linear(rows: Float[Tensor, "*out in_and_bias"]) -> nn.Linear:
    """The layer with these rows, each followed by its bias."""
    rows = rows.flatten(0, -2)
    layer = nn.Linear(rows.shape[1] - 1, len(rows))
    layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (rows[:, :-1], rows[:, -1]))
    return layer
