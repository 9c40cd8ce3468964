"""Deformable sampling for exported graphs: by GridSample, or by gathers where a runtime gets GridSample wrong."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setdet.models.attention import DeformableAttention, sample_levels

GraphSampling = Literal["grid", "gather", "discrete"]


class GraphAttention(nn.Module):
    """`DeformableAttention` as it is exported: one way of sampling, nothing that asks where it runs.

    grid: one GridSample a level. gather: the same four cells and weights by plain Gather, which every runtime has and
    none gets wrong. discrete: one Gather of the cell that RT-DETRv2's discrete sampling names.
    """

    def __init__(self, *, attention: DeformableAttention, sampling: GraphSampling) -> None:
        super().__init__()
        self.attention, self.sampling = attention, sampling
        counts = torch.tensor(attention.points)
        # Offsets are measured in halves of the box, shared among the points of a level.
        self.register_buffer("step", torch.repeat_interleave(0.5 / counts, counts)[:, None], persistent=False)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        *,
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        memory: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
    ) -> Float[Tensor, "batch queries width"]:
        """As `DeformableAttention.forward`."""
        own = self.attention
        queries, points = query.shape[1], sum(own.points)
        offsets = own.sampling_offsets(query).view(-1, queries, own.heads, points, 2)
        weights = own.attention_weights(query).view(-1, queries, own.heads, points).softmax(dim=-1)
        center, size = reference_cxcywh[:, :, None, None].split(2, dim=-1)
        locations = center + offsets * self.step * size
        value = own.value_proj(memory)
        if self.sampling == "grid":
            sampled = sample_levels(
                value.transpose(1, 2), shapes, locations, weights, points=own.points, sampling="bilinear"
            )
        else:
            cells, shares = _corners(shapes, locations, own.points, nearest=self.sampling == "discrete")
            sampled = _gather(value, cells, shares * weights[..., None])
        return own.output_proj(sampled)


def _corners(
    shapes: list[tuple[int, int]], locations: Tensor, points: tuple[int, ...], *, nearest: bool
) -> tuple[Tensor, Tensor]:
    """The tokens that each point reads, (B, Q, heads, points, 1 or 4) int64, and their shares of its sample.

    `nearest`: one cell a point, floor(x · width + 0.5) kept inside the level. Else the four around it, by bilinear
    interpolation between the centres of cells; a cell outside counts as zero.
    """
    cells, shares, start = [], [], 0
    for (height, width), level in zip(shapes, locations.split(points, dim=3), strict=True):
        x, y = level[..., 0] * width, level[..., 1] * height
        if nearest:
            x, y = (x + 0.5).floor().clamp(0, width - 1), (y + 0.5).floor().clamp(0, height - 1)
            columns, rows = x[..., None], y[..., None]
            shares.append(torch.ones_like(columns))
        else:
            x, y = x - 0.5, y - 0.5
            left, top = x.floor(), y.floor()
            right_share, lower_share = x - left, y - top
            columns = torch.stack([left, left + 1, left, left + 1], dim=-1)
            rows = torch.stack([top, top, top + 1, top + 1], dim=-1)
            inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
            by_column = torch.stack([1 - right_share, right_share] * 2, dim=-1)
            by_row = torch.stack([1 - lower_share, 1 - lower_share, lower_share, lower_share], dim=-1)
            shares.append(by_column * by_row * inside.to(x.dtype))
            columns, rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1)
        # As floats up to here: they are whole numbers below 2^24, and clamping integers is slow or missing somewhere.
        cells.append((rows * width + columns).to(torch.int64) + start)
        start = start + height * width
    return torch.cat(cells, dim=3), torch.cat(shares, dim=3)


def _gather(
    value: Float[Tensor, "batch tokens width"], cells: Tensor, shares: Tensor
) -> Float[Tensor, "batch queries width"]:
    """Weighted sum of the tokens' channels, each head its own: one Gather of rows, without moving `value` first."""
    batch, tokens, width = value.shape
    queries, heads = cells.shape[1:3]
    picture = torch.arange(batch, device=value.device)[:, None, None, None, None]
    head = torch.arange(heads, device=value.device)[:, None, None]
    rows = (picture * tokens + cells) * heads + head  # row of a head's channels of a token of a picture
    read = value.reshape(-1, width // heads)[rows.flatten(3)]  # (B, Q, heads, points · corners, C / heads)
    return (shares.flatten(3)[..., None, :] @ read).reshape(-1, queries, width)
