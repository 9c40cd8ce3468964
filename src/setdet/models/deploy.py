"""A copy of a model for deployment: norms and RepVGG branches folded into convolutions, unused layers dropped.

And reading a model out early, after fewer decoder layers or with fewer queries than it was trained with, which trades
accuracy for time without training again (paper, section 4.4 and table 5).
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from setdet.errors import UsageError
from setdet.models.encoder import RepVGGBlock
from setdet.models.layers import ConvNorm
from setdet.models.queries import QuerySelection
from setdet.models.rtdetr import RTDETR
from setdet.models.variants import ModelConfig


def fold(model: RTDETR, *, decoder_layers: int | None = None, queries: int | None = None) -> RTDETR:
    """A folded copy in evaluation mode with the same outputs; it cannot be trained any further.

    Every batch norm goes into its convolution, the two branches of a RepVGG block into one 3×3 convolution
    (Ding et al. 2021, section 3.3), and decoder layers that evaluation does not run are left out.

    Args:
        model: stays as it is.
        decoder_layers: as in `read_out`.
        queries: as in `read_out`.

    Raises:
        UsageError: as `read_out`.
    """
    folded = copy.deepcopy(model).eval()
    folded.config = read_out(folded, decoder_layers=decoder_layers, queries=queries)
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
    decoder.rivals = decoder.rivals[: decoder.eval_layers]
    return folded.requires_grad_(False)


def read_out(model: RTDETR, *, decoder_layers: int | None = None, queries: int | None = None) -> ModelConfig:
    """Has a model run fewer decoder layers or fewer queries from now on; training still runs all of its layers.

    Args:
        model: changed in place, up and down as often as wanted; its weights and its `config` stay.
        decoder_layers: how many run, the first ones; the last of them is read out. None: as before.
        queries: how many encoder features are selected, the best ones. None: as before.

    Returns:
        The configuration of what runs now.

    Raises:
        UsageError: the model has fewer layers or queries, or its queries are learned: they have no order, so none can
            be left out.
    """
    name, available, trained = model.config.name, len(model.decoder.layers), model.config.decoder.queries
    if decoder_layers is not None and not 1 <= decoder_layers <= available:
        raise UsageError(f"decoder_layers={decoder_layers}: {name} has {available}; ask for 1 to {available}.")
    if queries is not None and not isinstance(model.query_selection, QuerySelection):
        raise UsageError(
            f"queries={queries}: {name} has learned queries, which have no order to cut them by; train with "
            "query_source=encoder to run with fewer."
        )
    if queries is not None and not 1 <= queries <= trained:
        raise UsageError(f"queries={queries}: {name} was trained to select {trained}; ask for 1 to {trained}.")
    if decoder_layers is not None:
        model.decoder.eval_layers = decoder_layers
    if queries is not None:
        model.query_selection.queries = queries
    running = {"eval_layers": model.decoder.eval_layers, "queries": model.query_selection.queries}
    return model.config.model_copy(update={"decoder": model.config.decoder.model_copy(update=running)})


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
