"""Weights of the loss and of the matching."""

from typing import Literal

from pydantic import Field

from setdet.config import Config


class LossConfig(Config):
    """What is minimised, with the published weights as defaults (paper, section 4.3; authors' configurations)."""

    class_weight: float = Field(default=1.0, ge=0, description="of the classification loss")
    l1_weight: float = Field(default=5.0, ge=0, description="of the L1 distance of boxes (cxcywh, 0 to 1)")
    giou_weight: float = Field(default=2.0, ge=0, description="of 1 − GIoU")
    edge_weight: float = Field(
        default=0.15, ge=0, description="of the edges' distributions against the truth (D-FINE's fine-grained loss)"
    )
    distill_weight: float = Field(
        default=1.5, ge=0, description="of every layer's distributions against the last layer's (D-FINE's distillation)"
    )
    classification: Literal["varifocal", "matchability"] = Field(
        default="varifocal",
        description="varifocal: RT-DETR's; matchability: DEIM's, which punishes a confident query on a poor box more",
    )
    varifocal_alpha: float = Field(default=0.75, ge=0, le=1, description="weight of negatives in the varifocal loss")
    varifocal_gamma: float = Field(default=2.0, ge=0, description="how much easy negatives are damped")
    matchability_gamma: float = Field(
        default=1.5, gt=0, description="power of the IoU and of the score in the matchability-aware loss"
    )
    selection_target: Literal["iou", "one"] = Field(
        default="iou",
        description="what the encoder's selection learns to score a matched token by: the IoU of its box, or 1 (plain "
        "query selection, the paper's table 4); decoder layers learn the IoU either way",
    )
    selection_copies: int = Field(
        default=1,
        ge=1,
        description="tokens of the encoder's selection that learn each box; more than 1: one-to-many, for a denser "
        "signal where there are few boxes; fewer in a picture whose boxes would have more than there are queries",
    )
    match_class: float = Field(default=2.0, ge=0, description="weight of the focal class cost in matching")
    match_l1: float = Field(default=5.0, ge=0, description="weight of the L1 distance in matching")
    match_giou: float = Field(default=2.0, ge=0, description="weight of −GIoU in matching")
    match_alpha: float = Field(default=0.25, ge=0, le=1, description="α of the focal class cost")
    match_gamma: float = Field(default=2.0, ge=0, description="γ of the focal class cost")
