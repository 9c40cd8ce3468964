"""The decoder: queries look at each other and at the picture, and their boxes are refined layer by layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from setdet.models.attention import DeformableAttention
from setdet.models.denoising import DenoisingQueries
from setdet.models.distributions import boxes_from_edges
from setdet.models.layers import MLP, inverse_sigmoid
from setdet.models.outputs import EdgeDistributions
from setdet.models.queries import SelectedQueries, make_box_head, make_class_head, make_edge_head
from setdet.models.rivals import RivalEmbedding
from setdet.models.self_attention import QueryGroups, SelfAttention
from setdet.models.variants import DecoderConfig

LEVELS = 3


@dataclass(frozen=True)
class DecoderOutput:
    """Of each layer that ran, denoising queries first: logits, boxes as shares of the picture, what boxes come from."""

    logits: Float[Tensor, "layers batch queries classes"]
    boxes_cxcywh: Float[Tensor, "layers batch queries 4"]
    edges: EdgeDistributions | None


class Decoder(nn.Module):
    """`layers` decoder layers, each with a class head and a box head of its own."""

    def __init__(self, *, config: DecoderConfig, num_classes: int) -> None:
        super().__init__()
        self.eval_layers = config.eval_layers or config.layers
        self.queries = config.queries
        self.layers = nn.ModuleList(DecoderLayer(config=config) for _ in range(config.layers))
        self.class_heads = nn.ModuleList(make_class_head(config.width, num_classes) for _ in range(config.layers))
        make_head = make_edge_head if config.box_refinement == "distribution" else make_box_head
        self.box_heads = nn.ModuleList(make_head(config.width) for _ in range(config.layers))
        self.first_box_head = make_box_head(config.width) if config.box_refinement == "distribution" else None
        self.query_position = MLP(4, 2 * config.width, config.width)
        self.denoising_embedding = nn.Embedding(num_classes + 1, config.width, padding_idx=num_classes)
        for parameter in self.query_position.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
        with torch.random.fork_rng(devices=[]):  # a seed gives all other parts the same weights, with rivals or without
            count = config.layers if config.rivals else 0
            self.rivals = nn.ModuleList(RivalEmbedding(width=config.width) for _ in range(count))

    def forward(
        self,
        selected: SelectedQueries,
        *,
        memory: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
        denoising: DenoisingQueries | None,
    ) -> DecoderOutput:
        content, reference = selected.content, selected.reference_cxcywh
        noised = 0 if denoising is None else denoising.labels.shape[1]
        if denoising is not None:
            embedded = self.denoising_embedding(denoising.labels).to(content.dtype)
            content = torch.cat([embedded, content], dim=1)
            noised_boxes = inverse_sigmoid(denoising.boxes_cxcywh.to(reference.dtype)).sigmoid()
            reference = torch.cat([noised_boxes, reference], dim=1)
        groups = self._groups(content, denoising)

        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        edges: list[Tensor] = []
        previous = first = reference
        scores = selected.logits
        for index in range(len(self.layers) if self.training else self.eval_layers):
            if self.rivals and scores is not None:
                told = self._told_of_rivals(index, reference[:, noised:], scores)
                content = content + F.pad(told, (0, 0, noised, 0))  # denoising queries have no rivals
            content = self.layers[index](
                content,
                position=self.query_position(reference),
                reference_cxcywh=reference,
                memory=memory,
                shapes=shapes,
                groups=groups,
            )
            logits.append(self.class_heads[index](content))
            change = self.box_heads[index](content)
            if self.first_box_head is None:
                refined = (change + inverse_sigmoid(reference)).sigmoid()
                # With the gradient of the layer before: "look forward twice" (DINO, section 3.4).
                boxes.append((change + inverse_sigmoid(previous)).sigmoid() if index > 0 else refined)
            else:
                if index == 0:
                    first = (self.first_box_head(content) + inverse_sigmoid(reference)).sigmoid()
                change = change.unflatten(2, (4, -1)).to(first.dtype)
                edges.append(change if index == 0 else edges[-1] + change)
                refined = boxes_from_edges(edges[-1], first.detach())
                boxes.append(refined)
            previous, reference, scores = refined, refined.detach(), logits[-1][:, noised:]
        return DecoderOutput(
            logits=torch.stack(logits),
            boxes_cxcywh=torch.stack(boxes),
            edges=EdgeDistributions(logits=torch.stack(edges), reference_cxcywh=first) if edges else None,
        )

    def _groups(
        self, content: Float[Tensor, "batch all width"], denoising: DenoisingQueries | None
    ) -> QueryGroups | None:
        """None where all look at all."""
        count, copies = (0, 0) if denoising is None else (denoising.groups, denoising.copies)
        chosen = content.shape[1] - count * copies
        if not count and chosen <= self.queries:
            return None
        return QueryGroups(
            denoising=count,
            copies=copies,
            chosen=min(self.queries, chosen),
            total=content.shape[1],
            device=content.device,
        )

    def _told_of_rivals(
        self,
        index: int,
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        logits: Float[Tensor, "batch queries classes"],
    ) -> Float[Tensor, "batch queries width"]:
        """What layer `index` adds to its queries. Those of another group are no rivals."""
        batch, total, _ = logits.shape
        if not self.training or total <= self.queries:
            return self.rivals[index](reference_cxcywh, logits)
        groups = (x.unflatten(1, (-1, self.queries)).flatten(0, 1) for x in (reference_cxcywh, logits))
        return self.rivals[index](*groups).unflatten(0, (batch, -1)).flatten(1, 2)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward network; post-norm."""

    def __init__(self, *, config: DecoderConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attention = SelfAttention(width=width, heads=config.heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = DeformableAttention(
            width=width, heads=config.heads, points=config.points_per_level, sampling=config.sampling
        )
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, width)
        self.norm3 = nn.LayerNorm(width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        *,
        position: Float[Tensor, "batch queries width"],
        reference_cxcywh: Float[Tensor, "batch queries 4"],
        memory: Float[Tensor, "batch tokens width"],
        shapes: list[tuple[int, int]],
        groups: QueryGroups | None,
    ) -> Float[Tensor, "batch queries width"]:
        x = self.norm1(x + self.self_attention(x, position, groups))
        attended = self.cross_attention(x + position, reference_cxcywh=reference_cxcywh, memory=memory, shapes=shapes)
        x = self.norm2(x + attended)
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))
