"""The terms of the loss, each for all layers at once: one value a layer, not yet divided or weighted."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from setdet.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from setdet.losses.matcher import Matches
from setdet.models.distributions import edge_targets
from setdet.models.outputs import EdgeDistributions
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


def edge_loss(
    edges: EdgeDistributions, quality: Float[Tensor, " pairs"], targets: Targets, matches: Matches
) -> Float[Tensor, " refined"]:
    """Cross-entropy of the two bins around each edge of a matched box, by the box's `quality` (D-FINE, eq. 6).

    Pairs of layers that have no distributions (the encoder's) are left out.
    """
    layers = len(edges.logits)
    logits = edges.logits[matches.layer.clamp(max=layers - 1), matches.image, matches.query]
    reference = edges.reference_cxcywh[matches.image, matches.query].detach()
    below, share = edge_targets(targets.boxes_cxcywh[matches.target], reference)
    chosen = logits.log_softmax(dim=-1).gather(2, torch.stack([below, below + 1], dim=-1))  # (pairs, 4, 2)
    entropy = -(chosen * torch.stack([1 - share, share], dim=-1)).sum(dim=(1, 2))
    return logits.new_zeros(layers + 1).index_add(0, matches.layer.clamp(max=layers), quality * entropy)[:layers]


def edge_distillation(
    edges: EdgeDistributions,
    class_logits: Float[Tensor, "layers batch queries classes"],
    quality: Float[Tensor, " pairs"],
    matches: Matches,
    *,
    temperature: float = 5.0,
) -> Float[Tensor, " refined"]:
    """How far the distributions of each layer are from the last one's (D-FINE, section 4.2, eq. 7).

    A matched query weighs as much as its box is good, any other as much as the last layer is sure of it; both kinds
    count by the square roots of their numbers. Already a mean, and 0 for the last layer.
    """
    layers, batch = edges.logits.shape[:2]
    teacher = (edges.logits[-1] / temperature).softmax(dim=-1).detach()
    student = (edges.logits / temperature).log_softmax(dim=-1)
    apart = F.kl_div(student, teacher.expand_as(student), reduction="none").sum(dim=-1).mean(dim=-1)  # (L, B, Q)

    # One layer more than there are, for the pairs of the encoder's.
    at = (matches.layer.clamp(max=layers), matches.image, matches.query)
    weight = class_logits[layers - 1].detach().sigmoid().amax(dim=-1).repeat(layers + 1, 1, 1).to(apart.dtype)
    weight[at] = quality.to(weight.dtype)
    matched = torch.zeros_like(weight)
    matched[at] = 1
    weight, matched = weight[:layers], matched[:layers]
    apart = temperature**2 * weight * apart
    total, count = weight.new_zeros(layers), weight.new_zeros(layers)
    for kind in (matched, 1 - matched):
        number = kind.sum(dim=(1, 2))
        share = (number * (8 / batch)).sqrt()
        total = total + share * (apart * kind).sum(dim=(1, 2)) / number.clamp(min=1)
        count = count + share
    return total / count.clamp(min=1e-6)


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
