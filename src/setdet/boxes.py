"""Pure box functions on tensors: formats, IoU, GIoU. A box is four numbers in the last dimension."""

import torch
from jaxtyping import Float
from torch import Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Centre, width, height → left, top, right, bottom."""
    center, size = boxes_cxcywh.split(2, dim=-1)
    return torch.cat([center - 0.5 * size, center + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Left, top, right, bottom → centre, width, height."""
    top_left, bottom_right = boxes_xyxy.split(2, dim=-1)
    return torch.cat([0.5 * (top_left + bottom_right), bottom_right - top_left], dim=-1)


def box_area(boxes_xyxy: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Width times height."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def box_iou_and_union(
    a_xyxy: Float[Tensor, "*a 4"], b_xyxy: Float[Tensor, "*b 4"]
) -> tuple[Float[Tensor, "*out"], Float[Tensor, "*out"]]:
    """IoU (0 to 1) and union area of boxes that broadcast against each other; empty pairs have an IoU of 0."""
    overlap = (torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])).clamp(
        min=0
    )
    intersection = overlap[..., 0] * overlap[..., 1]
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny), union


def box_iou(a_xyxy: Float[Tensor, "*a 4"], b_xyxy: Float[Tensor, "*b 4"]) -> Float[Tensor, "*out"]:
    """IoU of boxes that broadcast against each other: `box_iou(a[:, None], b)` for all pairs."""
    return box_iou_and_union(a_xyxy, b_xyxy)[0]


def generalized_box_iou(a_xyxy: Float[Tensor, "*a 4"], b_xyxy: Float[Tensor, "*b 4"]) -> Float[Tensor, "*out"]:
    """GIoU (−1 to 1; Rezatofighi et al. 2019, eq. 1) of boxes that broadcast against each other."""
    iou, union = box_iou_and_union(a_xyxy, b_xyxy)
    size = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull = (size[..., 0] * size[..., 1]).clamp(min=torch.finfo(union.dtype).tiny)
    return iou - (hull - union) / hull
