"""Query selection: the encoder features that become the decoder's queries.

RT-DETR paper, section 4.3. "IoU-aware" in its first version and "uncertainty-minimal" in the CVPR one are the
same selection; what makes it so is the training target of `class_head` (varifocal loss, IoU-valued).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from setdet.models.distributions import BINS
from setdet.models.layers import MLP, inverse_sigmoid
from setdet.models.variants import DecoderConfig

PRIOR_PROBABILITY = 0.01  # of a class at the start, so that the first losses are not drowned by background


@dataclass(frozen=True)
class SelectedQueries:
    """What query selection hands to the decoder and, for its own loss, to the output.

    Attributes:
        content: the selected features, detached; or learned ones.
        reference_cxcywh: their boxes (0 to 1), detached; or learned ones.
        logits: class logits of the selected features; None where queries are learned.
        boxes_cxcywh: boxes (0 to 1) of the selected features; None where queries are learned.
    """

    content: Float[Tensor, "batch queries width"]
    reference_cxcywh: Float[Tensor, "batch queries 4"]
    logits: Float[Tensor, "batch queries classes"] | None
    boxes_cxcywh: Float[Tensor, "batch queries 4"] | None


class QuerySelection(nn.Module):
    """Scores every encoder token and keeps the best as queries."""

    def __init__(self, *, config: DecoderConfig, num_classes: int) -> None:
        super().__init__()
        self.queries = config.queries
        self.training_groups = config.training_groups
        self.project = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width)
        self.class_head = make_class_head(config.width, num_classes)
        self.box_head = make_box_head(config.width)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, memory: Float[Tensor, "batch tokens width"], shapes: list[tuple[int, int]]) -> SelectedQueries:
        anchors, valid = anchor_logits(shapes, like=memory)
        features = self.norm(self.project(torch.where(valid[:, None], memory, 0)))
        logits = self.class_head(features)

        count = min(self.queries, memory.shape[1])  # a small picture has fewer tokens than queries
        if self.training:
            count *= min(self.training_groups, memory.shape[1] // count)
        chosen = logits.amax(dim=-1).topk(count, dim=1).indices  # (B, K)
        content = take_tokens(features, chosen)
        # The box head runs on the chosen tokens alone: the same boxes as scoring all 8400 first.
        boxes = (self.box_head(content) + anchors[chosen]).sigmoid()
        return SelectedQueries(
            content=content.detach(),
            reference_cxcywh=boxes.detach(),
            logits=take_tokens(logits, chosen),
            boxes_cxcywh=boxes,
        )


def take_tokens(
    x: Float[Tensor, "batch tokens width"], chosen: Int[Tensor, "batch queries"]
) -> Float[Tensor, "batch queries width"]:
    """Each picture's chosen tokens. By rows, since the gradient of `gather` goes from number to number."""
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + chosen).flatten()).unflatten(0, chosen.shape)


class LearnedQueries(nn.Module):
    """The same queries for every picture, learned: content and reference box (DETR; DAB-DETR, section 3.1).

    What query selection is compared with. There is nothing to select by, and so no loss of its own.
    """

    def __init__(self, *, config: DecoderConfig) -> None:
        super().__init__()
        self.queries = config.queries
        self.content = nn.Parameter(torch.randn(config.queries, config.width))
        # Boxes of up to half the picture, spread all over it.
        boxes = torch.rand(config.queries, 4) * torch.tensor([1.0, 1.0, 0.5, 0.5])
        self.reference_logits = nn.Parameter(inverse_sigmoid(boxes, eps=0.01))

    def forward(self, memory: Float[Tensor, "batch tokens width"], shapes: list[tuple[int, int]]) -> SelectedQueries:
        batch = memory.shape[0]
        return SelectedQueries(
            content=self.content.expand(batch, -1, -1),
            reference_cxcywh=self.reference_logits.sigmoid().expand(batch, -1, -1),
            logits=None,
            boxes_cxcywh=None,
        )


def anchor_logits(
    shapes: list[tuple[int, int]], *, like: Tensor, base_size: float = 0.05, margin: float = 0.01
) -> tuple[Float[Tensor, "tokens 4"], Bool[Tensor, " tokens"]]:
    """A square anchor at every token, as logits of (cx, cy, w, h), and which of them are valid.

    The side is `base_size` · 2^level of the picture. An anchor with a coordinate outside (margin, 1 − margin) is
    invalid; its logits are +inf, so its box is (1, 1, 1, 1) whatever the box head adds.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    levels = []
    for level, (height, width) in enumerate(shapes):
        y = (torch.arange(height, dtype=dtype, device=like.device) + 0.5) / height
        x = (torch.arange(width, dtype=dtype, device=like.device) + 0.5) / width
        center_y, center_x = torch.meshgrid(y, x, indexing="ij")
        size = torch.full_like(center_x, base_size * 2**level)
        levels.append(torch.stack([center_x, center_y, size, size], dim=-1).view(-1, 4))
    anchors = torch.cat(levels)
    valid = ((anchors > margin) & (anchors < 1 - margin)).all(dim=-1)
    return torch.where(valid[:, None], torch.log(anchors / (1 - anchors)), math.inf), valid


def make_class_head(width: int, num_classes: int) -> nn.Linear:
    """A linear layer whose scores start at `PRIOR_PROBABILITY`."""
    head = nn.Linear(width, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


def make_box_head(width: int) -> MLP:
    """A three-layer MLP that starts by adding nothing to its reference."""
    return _adding_nothing(MLP(width, width, width, 4))


def make_edge_head(width: int) -> MLP:
    """A three-layer MLP that starts with all shifts of every edge alike, which shifts none."""
    return _adding_nothing(MLP(width, width, width, 4 * (BINS + 1)))


def _adding_nothing(head: MLP) -> MLP:
    for parameter in head.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return head
