"""Contrastive denoising queries: noised copies of the truth that the decoder learns to clean.

After DN-DETR and DINO, as RT-DETR trains with (authors' published settings: 100 queries' worth of groups,
label noise 0.5 of which half is applied, box noise 1.0). They are made here, outside the model's forward,
from a generator of random numbers of one's own, so that a forward stays deterministic.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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

    @property
    def copies(self) -> int:
        """Number of queries in a group."""
        return self.labels.shape[1] // self.groups


def make_denoising_queries(
    targets: Targets,
    *,
    num_classes: int,
    queries: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    generator: torch.Generator,
) -> DenoisingQueries | None:
    """Noised copies of the boxes of a batch, in as many groups as make about `queries` positives.

    Each group holds every box twice: a positive whose corners move by less than `box_noise` half-sizes, and a
    negative whose corners move by one to two times that (DINO, section 3.3).

    Args:
        targets: the batch's truth.
        num_classes: of the model; also the label of padding.
        queries: positives to aim at; 0 makes none.
        label_noise: every label is drawn anew with half this probability.
        box_noise: size of the noise in half-widths and half-heights of the box.
        generator: source of the random numbers, on the CPU.

    Returns:
        None where the batch has no boxes.
    """
    most = max(targets.counts, default=0)
    if most == 0 or queries == 0:
        return None
    groups = max(1, queries // most)
    batch, device = len(targets.counts), targets.labels.device
    counts = torch.tensor(targets.counts)
    within = torch.arange(most)[None, :] < counts[:, None]  # (B, most): which slots hold a box

    labels = torch.full((batch, most), num_classes, dtype=torch.int64)
    boxes = torch.zeros(batch, most, 4, dtype=targets.boxes_cxcywh.dtype)
    labels[within] = targets.labels.cpu()
    boxes[within] = targets.boxes_cxcywh.cpu()

    labels = labels.repeat(1, 2 * groups)
    boxes = boxes.repeat(1, 2 * groups, 1)
    is_box = within.repeat(1, 2 * groups)
    half = torch.arange(2 * groups * most) // most % 2  # 0: positive, 1: negative

    flipped = torch.rand(labels.shape, generator=generator) < 0.5 * label_noise
    drawn = torch.randint(num_classes, labels.shape, generator=generator)
    labels = torch.where(flipped & is_box, drawn, labels)

    reach = torch.rand(boxes.shape, generator=generator, dtype=boxes.dtype) + half[:, None]
    sign = torch.randint(2, boxes.shape, generator=generator) * 2 - 1
    half_size = boxes[..., 2:].repeat(1, 1, 2) * 0.5
    corners = cxcywh_to_xyxy(boxes) + sign * reach * box_noise * half_size
    boxes = xyxy_to_cxcywh(_ordered(corners.clamp(0, 1)))

    positive_batch, positive_query = torch.nonzero(is_box & (half == 0), as_tuple=True)
    first = counts.cumsum(0) - counts
    return DenoisingQueries(
        labels=labels.to(device),
        boxes_cxcywh=boxes.to(device),
        groups=groups,
        positive_index=(positive_batch.to(device), positive_query.to(device)),
        target_index=(first[positive_batch] + positive_query % most).to(device),
    )


def _ordered(corners: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Corners with left ≤ right and top ≤ bottom: strong noise can turn a box inside out."""
    first, second = corners.split(2, dim=-1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=-1)
