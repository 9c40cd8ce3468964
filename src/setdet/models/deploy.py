"""A copy of a model for deployment: norms and RepVGG branches folded into convolutions, unused layers dropped."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from setdet.models.encoder import RepVGGBlock
from setdet.models.layers import ConvNorm
from setdet.models.rtdetr import RTDETR


def fold(model: RTDETR) -> RTDETR:
    """A folded copy in evaluation mode with the same outputs; it cannot be trained any further.

    Every batch norm goes into its convolution, the two branches of a RepVGG block into one 3×3 convolution
    (Ding et al. 2021, section 3.3), and decoder layers that evaluation does not run are left out.
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad():
        for module in list(folded.modules()):
            if isinstance(module, ConvNorm):
                _fold_norm(module)
        for module in list(folded.modules()):
            if isinstance(module, RepVGGBlock):
                _fold_branches(module)
    decoder = folded.decoder
    decoder.layers = decoder.layers[: decoder.eval_layers]
    decoder.class_heads = decoder.class_heads[: decoder.eval_layers]
    decoder.box_heads = decoder.box_heads[: decoder.eval_layers]
    return folded.requires_grad_(False)


def _fold_norm(module: ConvNorm) -> None:
    norm, conv = module.norm, module.conv
    if not isinstance(norm, nn.BatchNorm2d):
        return
    assert norm.running_mean is not None and norm.running_var is not None  # ConvNorm always tracks them
    # In float64, so that the folded convolution differs from the pair by its own rounding alone.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype))
    module.norm = nn.Identity()


def _fold_branches(module: RepVGGBlock) -> None:
    conv, pointwise = module.conv3x3.conv, module.conv1x1.conv
    assert conv.bias is not None and pointwise.bias is not None  # both norms are folded by now
    conv.weight = nn.Parameter(conv.weight + F.pad(pointwise.weight, (1, 1, 1, 1)))
    conv.bias = nn.Parameter(conv.bias + pointwise.bias)
    module.conv1x1 = _Nothing()  # type: ignore[assignment]


class _Nothing(nn.Module):
    """Stands where a branch was folded away."""

    def forward(self, x: torch.Tensor) -> float:
        return 0.0
