"""The loss of RT-DETR: L = L_box + L_cls(ĉ, IoU) for every layer, the query selection and the denoising queries."""

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

from setdet.losses.config import LossConfig
from setdet.losses.matcher import HungarianMatcher, Matches
from setdet.losses.terms import box_losses, varifocal_loss
from setdet.models.denoising import DenoisingQueries
from setdet.models.outputs import RTDETROutput
from setdet.targets import Targets

__all__ = ["Criterion", "LossConfig"]


class Criterion:
    """Weighted terms by name, whose sum is the loss (RT-DETR, section 4.3, eq. 2 and 3)."""

    def __init__(self, *, config: LossConfig, num_classes: int) -> None:
        self.config = config
        self.num_classes = num_classes
        self.matcher = HungarianMatcher(config=config)

    def __call__(
        self, output: RTDETROutput, targets: Targets, denoising: DenoisingQueries | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of one batch, such as `class/decoder.2`, `l1/encoder` or `giou/denoising.0`.

        Computed in float32 at least. Every process of a distributed run must call it for every batch.

        Raises:
            TrainingError: a prediction is not finite.
        """
        layers = len(output.logits)
        # The encoder's selection is one more layer: matched by itself, but in the same few operations.
        logits = _precise(torch.cat([output.logits, output.encoder_logits[None]]))
        boxes = _precise(torch.cat([output.boxes_cxcywh, output.encoder_boxes_cxcywh[None]]))
        names = [f"decoder.{layer}" for layer in range(layers)] + ["encoder"]
        normaliser = _boxes_per_process(targets)
        matches = self.matcher(logits, boxes, targets)
        terms = self._terms(logits, boxes, targets, matches, normaliser=normaliser, names=names)

        if denoising is not None and output.denoising_logits is not None and output.denoising_boxes_cxcywh is not None:
            terms |= self._terms(
                _precise(output.denoising_logits),
                _precise(output.denoising_boxes_cxcywh),
                targets,
                _denoising_matches(denoising, layers),
                normaliser=normaliser * denoising.groups,
                names=[f"denoising.{layer}" for layer in range(layers)],
            )
        return terms

    def _terms(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
        matches: Matches,
        *,
        normaliser: Float[Tensor, ""],
        names: list[str],
    ) -> dict[str, Float[Tensor, ""]]:
        config = self.config
        classes = varifocal_loss(
            logits, boxes_cxcywh, targets, matches, alpha=config.varifocal_alpha, gamma=config.varifocal_gamma
        )
        l1, giou = box_losses(boxes_cxcywh, targets, matches)
        weighted = {
            "class": config.class_weight * classes / normaliser,
            "l1": config.l1_weight * l1 / normaliser,
            "giou": config.giou_weight * giou / normaliser,
        }
        return {
            f"{term}/{name}": value
            for term, values in weighted.items()
            for name, value in zip(names, values, strict=True)
        }


def _boxes_per_process(targets: Targets) -> Float[Tensor, ""]:
    """Number of boxes, averaged over the processes that train together, at least 1."""
    count = torch.tensor(float(sum(targets.counts)), device=targets.labels.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


def _denoising_matches(denoising: DenoisingQueries, layers: int) -> Matches:
    """Every layer's positives answer for the box that they are a copy of: nothing is left to match."""
    image, query = denoising.positive_index
    return Matches(
        layer=torch.arange(layers, device=image.device).repeat_interleave(len(image)),
        image=image.repeat(layers),
        query=query.repeat(layers),
        target=denoising.target_index.repeat(layers),
    )


def _precise(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x.to(torch.promote_types(x.dtype, torch.float32))
