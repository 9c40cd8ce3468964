"""Hungarian matching: which query answers for which box, for every layer and picture of a batch at once."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from setdet.boxes import cxcywh_to_xyxy, generalized_box_iou
from setdet.errors import TrainingError
from setdet.losses.config import LossConfig
from setdet.targets import Targets


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

    @torch.no_grad()
    def __call__(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
    ) -> Matches:
        """Matches every layer.

        Raises:
            TrainingError: a prediction is not finite; the message names the picture and the layer.

        Warns:
            UserWarning: a picture has more boxes than there are queries; the surplus stays unmatched.
        """
        layers, _, queries, _ = logits.shape
        _warn_of_surplus(targets, queries)
        cost = self._cost(logits, boxes_cxcywh, targets).cpu().numpy()  # the one transfer of a step
        if not np.isfinite(cost).all():
            raise _not_finite(cost, targets)

        pairs: list[NDArray[np.int64]] = []  # each (4, n): layer, image, query, target
        first = 0
        for image, count in enumerate(targets.counts):
            for layer in range(layers if count else 0):
                rows, columns = linear_sum_assignment(cost[layer, first : first + count])
                place = np.broadcast_to([[layer], [image]], (2, len(rows)))
                pairs.append(np.concatenate([place, columns[None], first + rows[None]]))
            first += count
        together = np.concatenate(pairs, axis=1) if pairs else np.zeros((4, 0), dtype=np.int64)
        index = torch.from_numpy(together).to(logits.device)
        return Matches(layer=index[0], image=index[1], query=index[2], target=index[3])

    def _cost(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
    ) -> Float[Tensor, "layers boxes queries"]:
        """Cost of every box with every query of its own picture."""
        config, image = self.config, targets.image_index
        probability = logits[:, image].sigmoid()  # (L, N, Q, classes)
        label = targets.labels[None, :, None, None].expand(probability.shape[0], -1, probability.shape[2], 1)
        probability = probability.gather(3, label)[..., 0]  # (L, N, Q), of the box's class
        alpha, gamma, tiny = config.match_alpha, config.match_gamma, 1e-8
        positive = -alpha * (1 - probability) ** gamma * (probability + tiny).log()
        negative = -(1 - alpha) * probability**gamma * (1 - probability + tiny).log()

        predicted, truth = boxes_cxcywh[:, image], targets.boxes_cxcywh[None, :, None]
        distance = (predicted - truth).abs().sum(dim=-1)
        giou = generalized_box_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(truth))
        return config.match_class * (positive - negative) + config.match_l1 * distance - config.match_giou * giou


def _warn_of_surplus(targets: Targets, queries: int) -> None:
    crowded = [image for image, count in enumerate(targets.counts) if count > queries]
    if crowded:
        named = ", ".join(f"{_name(targets, image)} ({targets.counts[image]} boxes)" for image in crowded)
        warnings.warn(
            f"More boxes than the {queries} queries: {named}. The surplus is not learned from; train with more queries.",
            stacklevel=4,
        )


def _not_finite(cost: NDArray[np.floating], targets: Targets) -> TrainingError:
    layer, box = np.argwhere(~np.isfinite(cost))[0][:2]
    image = int(np.searchsorted(np.cumsum(targets.counts), box, side="right"))
    return TrainingError(
        f"The prediction for {_name(targets, image)} is not finite in layer {layer}. "
        "The weights have diverged or half precision overflowed: lower the learning rate, or train with bf16 or fp32."
    )


def _name(targets: Targets, image: int) -> str:
    return targets.names[image] if targets.names else f"picture {image} of the batch"
