"""Tokens look at each other: all at all, or the queries of a decoder in training within their groups."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

# As many tokens make 64 MiB of weights in bfloat16, of each picture and layer, with eight heads.
MANY_TOKENS = 2048


@dataclass(frozen=True)
class QueryGroups:
    """Who looks at whom among queries in training.

    Denoising queries come first, group by group, then the chosen ones, group by group. All look at their own group;
    denoising ones also at the first group of chosen ones.

    Attributes:
        denoising: number of groups of denoising queries.
        copies: denoising queries in each of them.
        chosen: chosen queries in a group.
        total: of all queries.
        device: where they are.
    """

    denoising: int
    copies: int
    chosen: int
    total: int
    device: torch.device

    @property
    def noised(self) -> int:
        """Number of denoising queries."""
        return self.denoising * self.copies

    @cached_property
    def mask(self) -> Bool[Tensor, "total total"]:
        """True where a query (row) may look at another (column)."""
        noised = torch.arange(self.noised, device=self.device) // max(self.copies, 1)
        chosen = torch.arange(self.total - self.noised, device=self.device) // self.chosen
        group = torch.cat([noised, self.denoising + chosen])
        mask = group[:, None] == group
        mask[: self.noised, self.noised : self.noised + self.chosen] = True
        return mask


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other; positions are added to query and key, not to the value."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        position: Float[Tensor, "#batch tokens width"],
        groups: QueryGroups | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attends, everywhere or within groups."""
        query, key, value = self.query_key_value(x, position)
        attended = attend(query, key, value, groups)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def query_key_value(
        self, x: Float[Tensor, "batch tokens width"], position: Float[Tensor, "#batch tokens width"]
    ) -> tuple[
        Float[Tensor, "batch heads tokens channels"],
        Float[Tensor, "batch heads tokens channels"],
        Float[Tensor, "batch heads tokens channels"],
    ]:
        """What each head asks with, is found by, and gives."""
        batch, tokens, width = x.shape
        weight_qk, weight_v = self.in_proj.weight.split([2 * width, width])
        bias_qk, bias_v = self.in_proj.bias.split([2 * width, width])
        query_key = F.linear(x + position, weight_qk, bias_qk)
        query_key = query_key.view(batch, tokens, 2, self.heads, -1)  # (B, T, 2, heads, C / heads)
        query, key = query_key.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, C / heads)
        value = F.linear(x, weight_v, bias_v).view(batch, tokens, self.heads, -1).transpose(1, 2)
        return query, key, value


def attend(
    query: Float[Tensor, "batch heads queries channels"],
    key: Float[Tensor, "batch heads keys channels"],
    value: Float[Tensor, "batch heads keys channels"],
    groups: QueryGroups | None = None,
) -> Float[Tensor, "batch heads queries channels"]:
    """Scaled dot-product attention, within `groups` where keys are those of the queries themselves."""
    many = groups is None and key.shape[2] > MANY_TOKENS
    if many or not (query.requires_grad and query.device.type == "cpu"):
        mask = None if groups is None else groups.mask
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Training on a CPU: the fused kernel's backward pass takes three times as long as plain matrix products, which keep
    # every weight of the attention in memory.
    query = query * query.shape[-1] ** -0.5
    if groups is None:
        attended = _attend_by_products(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
    else:
        attended = _attend_within(groups, query, key, value)
    return attended.unflatten(0, query.shape[:2])


def _attend_by_products(
    query: Float[Tensor, "rows queries channels"],
    key: Float[Tensor, "rows keys channels"],
    value: Float[Tensor, "rows keys channels"],
) -> Float[Tensor, "rows queries channels"]:
    return (query @ key.transpose(1, 2)).softmax(dim=-1) @ value


def _attend_within(
    groups: QueryGroups,
    query: Float[Tensor, "batch heads tokens channels"],
    key: Float[Tensor, "batch heads tokens channels"],
    value: Float[Tensor, "batch heads tokens channels"],
) -> Float[Tensor, "rows tokens channels"]:
    """Computes what a mask would leave, and nothing else: with 192 denoising queries in groups of 12 beside 100 chosen
    ones, 37 % of all pairs. Rows are the batch's heads.
    """
    parts = (x.split([groups.noised, groups.total - groups.noised], dim=2) for x in (query, key, value))
    noised, chosen = zip(*((x.flatten(0, 1), y.flatten(0, 1)) for x, y in parts), strict=True)

    apart = [_apart(x, groups.chosen) for x in chosen]
    attended = _attend_by_products(*apart).view_as(chosen[0])
    if not groups.noised:
        return attended

    query, key, value = noised
    _, first_key, first_value = (x[:, : groups.chosen] for x in chosen)
    own_query, own_key, own_value = (_apart(x, groups.copies) for x in noised)
    own_scores = (own_query @ own_key.transpose(1, 2)).view(*query.shape[:2], groups.copies)
    scores = torch.cat([query @ first_key.transpose(1, 2), own_scores], dim=2)
    to_first, to_own = scores.softmax(dim=2).split([groups.chosen, groups.copies], dim=2)
    own = (_apart(to_own, groups.copies) @ own_value).view_as(query)
    return torch.cat([torch.baddbmm(own, to_first, first_value), attended], dim=1)


def _apart(x: Float[Tensor, "rows tokens n"], size: int) -> Float[Tensor, "more size n"]:
    """Every group of `size` tokens a row of its own."""
    return x.reshape(-1, size, x.shape[2])
