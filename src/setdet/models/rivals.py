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
        self.embed = MLP(5, width, width)
        for parameter in self.embed.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, boxes_cxcywh: Float[Tensor, "batch queries 4"], logits: Float[Tensor, "batch queries classes"]
    ) -> Float[Tensor, "batch queries width"]:
        return self.embed(rivalry(boxes_cxcywh.detach(), logits.detach()))


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
    probability = logits.sigmoid()
    direction = probability / probability.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    score = logits.amax(dim=-1)
    ahead = ((score[:, None, :] - score[:, :, None]) * _SHARPNESS).sigmoid()  # (B, Q, Q): of the second to the first
    others = 1 - torch.eye(score.shape[1], dtype=dtype, device=score.device)
    alike = (direction @ direction.transpose(1, 2)).to(dtype) * others

    x1, y1, x2, y2 = cxcywh_to_xyxy(boxes).movedim(-1, 0).contiguous()
    shared_width = torch.minimum(x2[:, :, None], x2[:, None]) - torch.maximum(x1[:, :, None], x1[:, None])
    shared_height = torch.minimum(y2[:, :, None], y2[:, None]) - torch.maximum(y1[:, :, None], y1[:, None])
    shared = shared_width.clamp(min=0) * shared_height.clamp(min=0)
    area = ((x2 - x1) * (y2 - y1)).clamp(min=1e-9)
    iou = alike * shared / (area[:, :, None] + area[:, None] - shared)
    better = ahead * alike * shared
    return torch.stack(
        [
            (ahead * iou).amax(dim=2),
            (better / area[:, :, None]).amax(dim=2),
            (better / area[:, None]).amax(dim=2),
            (ahead * iou).sum(dim=2).log1p(),
            ((1 - ahead) * iou).sum(dim=2).log1p(),
        ],
        dim=-1,
    )
