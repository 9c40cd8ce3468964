"""Building blocks that several rooms share: convolution with norm, MLP, self-attention."""

import math
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "silu", "gelu", "none"]


def make_activation(name: Activation) -> nn.Module:
    """The activation of that name; in place where its input is needed by nobody else."""
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "silu":
            return nn.SiLU(inplace=True)
        case "gelu":
            return nn.GELU()
        case "none":
            return nn.Identity()


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation; padded so that stride 1 keeps the size."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        self.conv = (nn.Conv2d if groups == 1 else GroupedConv2d)(
            channels_in,
            channels_out,
            kernel,
            stride,
            padding=(kernel - 1) // 2 if padding is None else padding,
            groups=groups,
            bias=False,
        )
        self.norm: nn.Module = nn.BatchNorm2d(channels_out)
        self.activation = make_activation(activation)

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        x = self.norm(self.conv(x))
        if x.requires_grad and x.device.type == "cpu":
            x.register_hook(_dense)
        return self.activation(x)


def _dense(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own, channels last where it is.

    What a concatenation hands back is a part of a larger tensor, and on a CPU the backward pass of a norm takes fifty
    times as long on that.
    """
    return gradient.contiguous(memory_format=torch.channels_last) if gradient.stride(1) == 1 else gradient.contiguous()


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups (depthwise, where there are as many as channels)."""

    def forward(self, x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "batch out height2 width2"]:
        if not (x.requires_grad and x.device.type == "cpu" and x.dtype == torch.bfloat16):
            return super().forward(x)
        # Training on a CPU: in bfloat16 the backward pass of a strided one takes twenty times as long as in float32.
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(x.dtype)


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


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
        mask: Bool[Tensor, "tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attends; `mask` is True where a token (row) may look at another (column)."""
        query, key, value = self.query_key_value(x, position)
        attended = attend(query, key, value, mask)
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
    mask: Bool[Tensor, "queries keys"] | None,
) -> Float[Tensor, "batch heads queries channels"]:
    """Scaled dot-product attention; `mask` is True where a query (row) may look at a key (column)."""
    if not (query.requires_grad and query.device.type == "cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Training on a CPU: the fused kernel's backward pass takes three times as long as plain matrix products.
    bias = torch.zeros((), dtype=query.dtype)
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -math.inf)
    query, key = (query * query.shape[-1] ** -0.5).flatten(0, 1), key.flatten(0, 1)
    scores = torch.baddbmm(bias.expand(len(query), query.shape[1], key.shape[1]), query, key.transpose(1, 2))
    return (scores.softmax(dim=-1) @ value.flatten(0, 1)).unflatten(0, value.shape[:2])


def inverse_sigmoid(x: Float[Tensor, "*shape"], eps: float = 1e-5) -> Float[Tensor, "*shape"]:
    """The logit of x (0 to 1), finite at both ends."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
