"""Hungarian matching: which query answers for which box, for every layer and picture of a batch at once."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, Shaped
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from setdet.boxes import cxcywh_to_xyxy, generalized_box_iou
from setdet.losses.config import LossConfig
from setdet.targets import Targets

_WORST = 1e6  # the cost of a prediction that is not finite


@dataclass(frozen=True)
class Matches:
    """Pairs of a query and a box, over all layers.

    Attributes:
        layer, image, query: where the query of each pair stands in a tensor of all layers.
        target: the box of each pair, an index into the packed `Targets`.
    """

    layer: Int[Tensor, " pairs"]
    image: Int[Tensor, " pairs"]
    query: Int[Tensor, " pairs"]
    target: Int[Tensor, " pairs"]


class HungarianMatcher:
    """The assignment of boxes to queries with the least cost (DETR, section 3.1), each layer by itself."""

    def __init__(self, *, config: LossConfig) -> None:
        self.config = config
        self._warned: set[str] = set()

    @torch.no_grad()
    def __call__(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
        *,
        copies: Sequence[int] | None = None,
    ) -> Matches:
        """Matches every layer. Call it with float32 or wider.

        Layer i gives every box `copies[i]` queries, or as many as there are for each; None: one everywhere.

        Warns:
            UserWarning: a picture has more boxes than there are queries; the surplus stays unmatched.
        """
        self._warn_of_surplus(targets, queries=logits.shape[2])
        # Whatever is matched to a prediction that is not finite, the loss is not: the training step sees to that.
        cost = self._cost(logits, boxes_cxcywh, targets).nan_to_num(nan=_WORST, posinf=_WORST, neginf=_WORST)
        pairs = _assign(cost.cpu().numpy(), targets.counts, copies)  # the one transfer of a step
        layer, image, query, target = torch.from_numpy(pairs).to(logits.device).unbind()
        return Matches(layer=layer, image=image, query=query, target=target)

    def _cost(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
    ) -> Float[Tensor, "layers boxes queries"]:
        """Cost of every box with every query of its own picture."""
        config, image = self.config, targets.image_index
        probability = logits.transpose(2, 3)[:, image, targets.labels].sigmoid()  # (L, N, Q), of the box's class
        alpha, gamma, tiny = config.match_alpha, config.match_gamma, 1e-8
        positive = -alpha * (1 - probability) ** gamma * (probability + tiny).log()
        negative = -(1 - alpha) * probability**gamma * (1 - probability + tiny).log()

        truth = targets.boxes_cxcywh
        distance = (_per_box(boxes_cxcywh, image) - _planar(truth[:, None])).abs().sum(dim=-1)
        predicted_xyxy = _per_box(cxcywh_to_xyxy(boxes_cxcywh), image)
        giou = generalized_box_iou(predicted_xyxy, _planar(cxcywh_to_xyxy(truth)[:, None]))
        return config.match_class * (positive - negative) + config.match_l1 * distance - config.match_giou * giou

    def _warn_of_surplus(self, targets: Targets, *, queries: int) -> None:
        """Warns of each picture once, however many epochs it is seen in."""
        crowded = {_name(targets, image): count for image, count in enumerate(targets.counts) if count > queries}
        new = {name: count for name, count in crowded.items() if name not in self._warned}
        if new:
            self._warned |= new.keys()
            named = ", ".join(f"{name} ({count} boxes)" for name, count in new.items())
            warnings.warn(
                f"More boxes than the {queries} queries: {named}. Those left over are not learned from; "
                "train with more queries (--set queries=…).",
                stacklevel=4,
            )


def _planar(boxes: Float[Tensor, "*shape 4"]) -> Float[Tensor, "*shape 4"]:
    """The same values with each coordinate contiguous in memory: what works on one runs several times faster."""
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)


def _per_box(
    boxes: Float[Tensor, "layers batch queries 4"], image: Int[Tensor, " boxes"]
) -> Float[Tensor, "layers boxes queries 4"]:
    """The predictions of each box's picture, planar."""
    return boxes.movedim(-1, 0).contiguous().index_select(2, image).movedim(0, -1)


def _assign(
    cost: Shaped[np.ndarray, "layers boxes queries"], counts: Sequence[int], copies: Sequence[int] | None
) -> Int64[np.ndarray, "4 pairs"]:
    """The cheapest pairs of every picture and layer, as rows of layer, image, query and target."""
    layers, _, queries = cost.shape
    pairs: list[Int64[np.ndarray, "4 some"]] = [np.zeros((4, 0), dtype=np.int64)]
    first = 0
    for image, count in enumerate(counts):
        for layer in range(layers if count else 0):
            times = max(1, min(copies[layer] if copies else 1, queries // count))
            row, query = linear_sum_assignment(cost[layer, first : first + count].repeat(times, axis=0))
            pairs.append(np.stack([np.full_like(row, layer), np.full_like(row, image), query, first + row // times]))
        first += count
    return np.concatenate(pairs, axis=1)


def _name(targets: Targets, image: int) -> str:
    return targets.names[image] if targets.names else f"picture {image} of the batch"
