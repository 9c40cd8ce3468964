"""The loss of RT-DETR: L = L_box + L_cls(ĉ, IoU) for every layer, the query selection and the denoising queries."""

from dataclasses import replace

import torch
import torch.distributed
from jaxtyping import Float
from torch import Tensor

from setdet.errors import TrainingError
from setdet.losses.config import LossConfig
from setdet.losses.matcher import HungarianMatcher, Matches
from setdet.losses.terms import box_losses, edge_distillation, edge_loss, matchability_loss, matched_iou, varifocal_loss
from setdet.models.denoising import DenoisingQueries
from setdet.models.outputs import EdgeDistributions, RTDETROutput
from setdet.targets import Targets


class Criterion:
    """Weighted terms by name, whose sum is the loss (RT-DETR, section 4.3, eq. 2 and 3)."""

    def __init__(self, *, config: LossConfig, num_classes: int, queries: int | None = None) -> None:
        """Judges a model of `num_classes` classes; `queries` make a group, each matched by itself (None: all)."""
        self.config = config
        self.num_classes = num_classes
        self.queries = queries
        self.matcher = HungarianMatcher(config=config)

    def __call__(
        self, output: RTDETROutput, targets: Targets, denoising: DenoisingQueries | None
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of one batch, such as `class/decoder.2`, `l1/encoder` or `giou/denoising.0`.

        Learned queries have no encoder terms.

        Computed in float32 at least. Every process of a distributed run must call it for every batch, with or
        without boxes or denoising: they agree on the normaliser.

        Args:
            output: of the model.
            targets: the batch's truth, on the same device.
            denoising: the queries that the model was given, or None where it was given none.

        Raises:
            TrainingError: what was given does not belong together.
        """
        self._check(output, targets, denoising)
        # Half precision is too coarse for areas and sums: float32, or float64 where that was given.
        dtype = torch.promote_types(torch.promote_types(output.logits.dtype, output.boxes_cxcywh.dtype), torch.float32)
        targets = replace(targets, boxes_cxcywh=targets.boxes_cxcywh.to(dtype))
        normaliser = _boxes_per_process(targets)
        logits, boxes = output.logits, output.boxes_cxcywh
        names = [f"decoder.{layer}" for layer in range(len(output.logits))]
        copies = [1] * len(names)
        if output.encoder_logits is not None and output.encoder_boxes_cxcywh is not None:
            # The encoder's selection is one more layer: matched by itself, but in the same few operations.
            logits = torch.cat([logits, output.encoder_logits[None]])
            boxes = torch.cat([boxes, output.encoder_boxes_cxcywh[None]])
            names.append("encoder")
            copies.append(self.config.selection_copies)
        # A group of queries is as good as further layers: matched by itself.
        logits, boxes = self._groups_as_layers(logits).to(dtype), self._groups_as_layers(boxes).to(dtype)
        matches = self.matcher(logits, boxes, targets, copies=copies * (len(logits) // len(names)))
        per_layer = normaliser * torch.tensor(copies).to(normaliser.device, non_blocking=True)
        terms = self._terms(logits, boxes, targets, matches, normaliser=per_layer, names=names, edges=output.edges)

        if denoising is not None and output.denoising_logits is not None and output.denoising_boxes_cxcywh is not None:
            layers = len(output.denoising_logits)
            terms |= self._terms(
                output.denoising_logits.to(dtype),
                output.denoising_boxes_cxcywh.to(dtype),
                targets,
                _denoising_matches(denoising, layers),
                normaliser=normaliser[None] * denoising.groups,
                names=[f"denoising.{layer}" for layer in range(layers)],
                edges=output.denoising_edges,
            )
        return terms

    def _groups_as_layers(self, x: Float[Tensor, "layers batch queries n"]) -> Float[Tensor, "more batch fewer n"]:
        """All layers of the first group, then all of the second, and so on."""
        size = min(self.queries or x.shape[2], x.shape[2])
        return x.unflatten(2, (-1, size)).movedim(2, 0).flatten(0, 1)

    def _check(self, output: RTDETROutput, targets: Targets, denoising: DenoisingQueries | None) -> None:
        batch, classes = output.logits.shape[1], output.logits.shape[3]
        if classes != self.num_classes:
            raise TrainingError(
                f"The model predicts {classes} classes, the loss is for {self.num_classes}: "
                "build both for the same data."
            )
        boxes = (sum(targets.counts), len(targets.labels), len(targets.boxes_cxcywh))
        if len(targets.counts) != batch or len(set(boxes)) != 1:
            raise TrainingError(
                f"The model saw {batch} pictures, the targets are of {len(targets.counts)} with {boxes[0]} boxes by "
                f"count, {boxes[1]} labels and {boxes[2]} boxes: the targets must be of the same batch, and complete."
            )
        # Read on the CPU only, where it costs nothing: on a GPU it would wait for the whole forward.
        if targets.labels.device.type == "cpu" and boxes[0]:
            lowest, highest = int(targets.labels.min()), int(targets.labels.max())
            if lowest < 0 or highest >= self.num_classes:
                raise TrainingError(
                    f"Labels go from {lowest} to {highest}, but the loss is for {self.num_classes} classes: "
                    f"number the classes from 0 to {self.num_classes - 1}."
                )
        if (denoising is None) != (output.denoising_logits is None):
            given, made = ("no ", "") if denoising is None else ("", "no ")
            raise TrainingError(
                f"The loss was given {given}denoising queries, but the output has {made}predictions for them: "
                "give the criterion what the model was given."
            )

    def _terms(
        self,
        logits: Float[Tensor, "layers batch queries classes"],
        boxes_cxcywh: Float[Tensor, "layers batch queries 4"],
        targets: Targets,
        matches: Matches,
        *,
        normaliser: Float[Tensor, "#named"],
        names: list[str],
        edges: EdgeDistributions | None,
    ) -> dict[str, Float[Tensor, ""]]:
        config = self.config
        quality = matched_iou(boxes_cxcywh, targets, matches)
        if config.selection_target == "one" and "encoder" in names:
            quality = quality.masked_fill(matches.layer % len(names) == names.index("encoder"), 1)
        if config.classification == "matchability":
            classes = matchability_loss(logits, quality, targets, matches, gamma=config.matchability_gamma)
        else:
            classes = varifocal_loss(
                logits, quality, targets, matches, alpha=config.varifocal_alpha, gamma=config.varifocal_gamma
            )
        l1, giou = box_losses(boxes_cxcywh, targets, matches)
        weighted = {
            term: weight * values.view(-1, len(names)).mean(dim=0) / normaliser  # over groups of queries
            for term, weight, values in (
                ("class", config.class_weight, classes),
                ("l1", config.l1_weight, l1),
                ("giou", config.giou_weight, giou),
            )
        }
        if edges is not None:
            edges = replace(edges, logits=edges.logits.to(boxes_cxcywh.dtype))
            # The guess that the edges are shifts of is judged as the first layer's box.
            guess = edges.reference_cxcywh.to(boxes_cxcywh.dtype).expand_as(boxes_cxcywh)
            for term, weight, values in zip(
                ("l1", "giou"), (config.l1_weight, config.giou_weight), box_losses(guess, targets, matches), strict=True
            ):
                weighted[f"{term}-guess"] = weight * values[:1] / normaliser[:1]
            by_truth = edge_loss(edges, quality, targets, matches)
            weighted["edge"] = config.edge_weight * by_truth / normaliser[: len(by_truth)]
            by_last = edge_distillation(edges, logits, quality, matches)
            weighted["distill"] = config.distill_weight * by_last[:-1]
        return {
            f"{term}/{name}": value
            for term, values in weighted.items()
            for name, value in zip(names, values, strict=False)
        }


def _boxes_per_process(targets: Targets) -> Float[Tensor, ""]:
    """Number of boxes, averaged over the processes that train together, at least 1."""
    # Filled in place on the device: a copy of a Python number would wait for the forward on a GPU.
    count = targets.boxes_cxcywh.new_full((), float(sum(targets.counts)))
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
