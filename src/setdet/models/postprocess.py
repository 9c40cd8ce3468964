"""From the last layer's output to detections: no non-maximum suppression, only a top-k."""

from jaxtyping import Float, Int
from torch import Tensor

from setdet.boxes import cxcywh_to_xyxy
from setdet.models.outputs import RTDETROutput


def top_detections(
    output: RTDETROutput, *, top_k: int = 300
) -> tuple[Float[Tensor, "batch k 4"], Float[Tensor, "batch k"], Int[Tensor, "batch k"]]:
    """The best pairs of query and class: boxes as corners (0 to 1), scores (0 to 1, falling), labels."""
    scores = output.logits[-1].float().sigmoid()  # (B, Q, classes)
    boxes = cxcywh_to_xyxy(output.boxes_cxcywh[-1].float())
    classes = scores.shape[2]
    flat = scores.flatten(1)
    scores, index = flat.topk(min(top_k, flat.shape[1]), dim=1)
    query = (index // classes)[..., None].expand(-1, -1, 4)
    return boxes.gather(1, query), scores, index % classes
