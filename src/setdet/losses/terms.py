"""The terms of the loss, each for all layers at once: one value a layer, not yet divided or weighted."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from setdet.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from setdet.losses.matcher import Matches
from setdet.targets import Targets


def matched_iou(
    boxes_cxcywh: Float[Tensor, "layers batch queries 4"], targets: Targets, matches: Matches
) -> Float[Tensor, " pairs"]:
    """IoU of every matched pair, without a gradient."""
    predicted = boxes_cxcywh[matches.layer, matches.image, matches.query].detach()
    return box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(targets.boxes_cxcywh[matches.target]))


def varifocal_loss(
    logits: Float[Tensor, "layers batch queries classes"],
    quality: Float[Tensor, " pairs"],
    targets: Targets,
    matches: Matches,
    *,
    alpha: float,
    gamma: float,
) -> Float[Tensor, " layers"]:
    """Cross-entropy whose target is the `quality` of the matched pair (Zhang et al. 2021, "VarifocalNet", eq. 2).

    With the IoU as the quality, this is what makes the scores, and with them query selection, aware of the IoU
    (RT-DETR, section 4.3).
    """
    at = (matches.layer, matches.image, matches.query, targets.labels[matches.target])
    target = torch.zeros_like(logits)
    target[at] = quality.to(logits.dtype)
    weight = alpha * logits.detach().sigmoid() ** gamma
    weight[at] = target[at]
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none").sum(dim=(1, 2, 3))


def matchability_loss(
    logits: Float[Tensor, "layers batch queries classes"],
    quality: Float[Tensor, " pairs"],
    targets: Targets,
    matches: Matches,
    *,
    gamma: float,
) -> Float[Tensor, " layers"]:
    """Cross-entropy towards the `quality` to the power `gamma`, whole for every matched pair (Huang et al. 2025,
    "DEIM", eq. 4).

    Where the varifocal loss weighs a pair by its quality, so that poor ones hardly count, here a confident query on a
    poor box costs as much as any: one-to-one matching makes many of those early on.
    """
    at = (matches.layer, matches.image, matches.query, targets.labels[matches.target])
    target = torch.zeros_like(logits)
    target[at] = quality.to(logits.dtype) ** gamma
    weight = logits.detach().sigmoid() ** gamma
    weight[at] = 1
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none").sum(dim=(1, 2, 3))


def box_losses(
    boxes_cxcywh: Float[Tensor, "layers batch queries 4"], targets: Targets, matches: Matches
) -> tuple[Float[Tensor, " layers"], Float[Tensor, " layers"]]:
    """L1 distance and 1 − GIoU of the matched pairs, summed over each layer."""
    predicted = boxes_cxcywh[matches.layer, matches.image, matches.query]
    truth = targets.boxes_cxcywh[matches.target]
    l1 = (predicted - truth).abs().sum(dim=-1)
    giou = 1 - generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
    # A batch without boxes keeps its (empty) selection in the graph: every parameter still gets a gradient, of zero,
    # as DDP expects.
    zeros = boxes_cxcywh.new_zeros(len(boxes_cxcywh))
    return zeros.index_add(0, matches.layer, l1), zeros.index_add(0, matches.layer, giou)
