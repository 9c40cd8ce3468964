"""Contrastive denoising queries: noised copies of the truth that the decoder learns to clean.

After DN-DETR and DINO, as RT-DETR trains with (authors' published settings: 100 queries' worth of groups,
label noise 0.5 of which half is applied, box noise 1.0). They are made here, outside the model's forward,
from a generator of random numbers of one's own, so that a forward stays deterministic.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from setdet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from setdet.targets import Targets


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised copies of a batch's boxes: `groups` groups, each all positives, then all negatives.

    Attributes:
        labels: noised class of each query; `num_classes` stands for padding.
        boxes_cxcywh: noised boxes, shares of the picture's size (0 to 1).
        groups: number of groups; queries of different groups must not see each other.
        positive_index: (batch index, query index) of every positive query, in the order of `target_index`.
        target_index: index into the packed `Targets` of the box that each positive query is a copy of.
    """

    labels: Int[Tensor, "batch denoising"]
    boxes_cxcywh: Float[Tensor, "batch denoising 4"]
    groups: int
    positive_index: tuple[Int[Tensor, " positives"], Int[Tensor, " positives"]]
    target_index: Int[Tensor, " positives"]

    def group_mask(self) -> Bool[Tensor, "denoising denoising"]:
        """Which denoising query (row) may attend to which (column): those of its own group."""
        total = self.labels.shape[1]
        group = torch.arange(total, device=self.labels.device) // (total // self.groups)
        return group[:, None] == group[None, :]
