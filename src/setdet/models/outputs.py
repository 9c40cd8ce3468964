"""What a forward returns, the same in training and in evaluation."""

from dataclasses import dataclass

import torch.export
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class EdgeDistributions:
    """Where the edges of boxes lie, as distributions (D-FINE, section 4.1).

    Attributes:
        logits: over the shifts of the left, top, right and bottom edge, of every decoder layer.
        reference_cxcywh: the box whose edges are shifted: the first layer's first guess, 0 to 1.
    """

    logits: Float[Tensor, "layers batch queries 4 bins"]
    reference_cxcywh: Float[Tensor, "batch queries 4"]


@dataclass(frozen=True)
class RTDETROutput:
    """Predictions of every decoder layer and of the encoder's query selection.

    Boxes are centre, width, height as shares of the picture's size, 0 to 1 (refined as distributions, they may reach
    beyond); logits are before the sigmoid.

    Attributes:
        logits: class logits of every decoder layer that ran, first to last.
        boxes_cxcywh: boxes of every decoder layer that ran, first to last.
        encoder_logits: class logits of the encoder features that were selected as queries; None where queries are
            learned.
        encoder_boxes_cxcywh: boxes of those features; None where queries are learned.
        denoising_logits: as `logits`, for the denoising queries; None where there were none.
        denoising_boxes_cxcywh: as `boxes_cxcywh`, for the denoising queries; None where there were none.
        edges: what the boxes come from where they are refined as distributions, else None.
        denoising_edges: the same for the denoising queries.
    """

    logits: Float[Tensor, "layers batch queries classes"]
    boxes_cxcywh: Float[Tensor, "layers batch queries 4"]
    encoder_logits: Float[Tensor, "batch queries classes"] | None
    encoder_boxes_cxcywh: Float[Tensor, "batch queries 4"] | None
    denoising_logits: Float[Tensor, "layers batch denoising classes"] | None = None
    denoising_boxes_cxcywh: Float[Tensor, "layers batch denoising 4"] | None = None
    edges: EdgeDistributions | None = None
    denoising_edges: EdgeDistributions | None = None


torch.export.register_dataclass(EdgeDistributions)
torch.export.register_dataclass(RTDETROutput)
