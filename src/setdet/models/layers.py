"""Building blocks that several rooms share: convolution with norm, MLP."""

from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "silu", "none"]


def make_activation(name: Activation) -> nn.Module:
    """The activation of that name; in place where its input is needed by nobody else."""
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "silu":
            return nn.SiLU(inplace=True)
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


def inverse_sigmoid(x: Float[Tensor, "*shape"], eps: float = 1e-5) -> Float[Tensor, "*shape"]:
    """The logit of x (0 to 1), finite at both ends."""
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
