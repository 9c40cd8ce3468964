"""What a query is told of its rivals: the better-scored queries whose boxes overlap its own.

Two queries on one object have nearly the same content and the same box, and nothing in them says which of the two is to
answer for it. That they learn it all the same, by self-attention, takes many pictures: on a few hundred, what is left
are duplicates. Here each query is told, in five numbers, what non-maximum suppression would look at, and decides by
itself what follows. After EASE-DETR (Gao et al., CVPR 2024), which tells self-attention who is ahead of whom.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setdet.boxes import cxcywh_to_xyxy
from setdet.models.layers import MLP

_SHARPNESS = 10.0  # of "is ahead", in logits: a tenth decides, and rounding does not turn one query into another


class RivalEmbedding(nn.Module):
    """From boxes and scores to what each query adds to its content; it starts by adding nothing."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.positions = Rivalry()  # exports keep what is called so in float32
        self.embed = MLP(5, width, width)
        for parameter in self.embed.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, boxes_cxcywh: Float[Tensor, "batch queries 4"], logits: Float[Tensor, "batch queries classes"]
    ) -> Float[Tensor, "batch queries width"]:
        return self.embed(self.positions(boxes_cxcywh.detach(), logits.detach()))


class Rivalry(nn.Module):
    """`rivalry`, by a name in the graph."""

    def forward(
        self, boxes_cxcywh: Float[Tensor, "batch queries 4"], logits: Float[Tensor, "batch queries classes"]
    ) -> Float[Tensor, "batch queries 5"]:
        return rivalry(boxes_cxcywh, logits)


def rivalry(
    boxes_cxcywh: Float[Tensor, "batch queries 4"], logits: Float[Tensor, "batch queries classes"]
) -> Float[Tensor, "batch queries 5"]:
    """How others of like classes overlap each query's box.

    Of those with better scores: the largest IoU, the largest share of this box that one covers, the largest share of
    one that this box covers, and how many there are, as log(1 + ΣIoU); of those with lower scores: how many there are,
    likewise.
    """
    dtype = torch.promote_types(boxes_cxcywh.dtype, torch.float32)
    boxes, logits = boxes_cxcywh.to(dtype), logits.to(dtype)
    # Columns (B, Q, 1) are of the query that is told, rows (B, 1, Q) of the others. Nothing here adds or drops a
    # dimension: OpenVINO would round there.
    score = logits.amax(dim=-1, keepdim=True)
    ahead = ((score.transpose(1, 2) - score) * _SHARPNESS).sigmoid()  # (B, Q, Q)
    probability = logits.sigmoid()
    direction = probability / probability.norm(dim=-1, keepdim=True).clamp(min=1e-4)
    others = 1 - torch.eye(score.shape[1], dtype=dtype, device=score.device)
    alike = (direction @ direction.transpose(1, 2)).to(dtype) * others

    corners = cxcywh_to_xyxy(boxes)
    x1, y1, x2, y2 = corners.split(1, dim=2)
    other_x1, other_y1, other_x2, other_y2 = corners.transpose(1, 2).contiguous().split(1, dim=1)
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp(min=0)
    height = (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp(min=0)
    area = ((x2 - x1) * (y2 - y1)).clamp(min=1e-6)  # half precision has no much smaller number
    other_area = area.transpose(1, 2)
    shared = alike * width * height
    iou = shared / (area + other_area - width * height)
    better = ahead * shared
    return torch.cat(
        [
            (ahead * iou).amax(dim=2, keepdim=True),
            (better / area).amax(dim=2, keepdim=True),
            (better / other_area).amax(dim=2, keepdim=True),
            (ahead * iou).sum(dim=2, keepdim=True).log1p(),
            ((1 - ahead) * iou).sum(dim=2, keepdim=True).log1p(),
        ],
        dim=2,
    )
