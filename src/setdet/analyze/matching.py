"""How much the assignment of true boxes to queries jumps about: from layer to layer, and from epoch to epoch.

After the instability of DN-DETR (Li et al. 2022, section 3.1), as a share of the true boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from setdet.analyze.watch import watch
from setdet.boxes import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from setdet.data.schema import Record, check_size
from setdet.images import Placement, Preprocessing, preprocess, read_image
from setdet.losses.config import LossConfig
from setdet.losses.matcher import HungarianMatcher
from setdet.models.rtdetr import RTDETR
from setdet.targets import Targets

UNMATCHED = -1
_BATCH = 8
_FOLLOWED = 32  # pictures at most


def targets_of(pictures: Sequence[tuple[Record, Placement]]) -> Targets:
    """The truth of some pictures as the matcher takes it; crowd boxes are left out."""
    boxes = [placement.to_input(record.boxes_xyxy_px[~record.crowd]) for record, placement in pictures]
    labels = [record.labels[~record.crowd] for record, _ in pictures]
    return Targets(
        labels=torch.from_numpy(np.concatenate(labels)),
        boxes_cxcywh=xyxy_to_cxcywh(torch.from_numpy(np.concatenate(boxes))),
        counts=tuple(len(one) for one in labels),
        names=tuple(str(record.image) for record, _ in pictures),
    )


def matched_queries(
    matcher: HungarianMatcher, logits: Tensor, boxes_cxcywh: Tensor, targets: Targets
) -> NDArray[np.int64]:
    """(layers, boxes) the query that each layer matches to each true box; `UNMATCHED` where there are too few.

    Args:
        matcher: with the costs of training.
        logits: (layers, batch, queries, classes).
        boxes_cxcywh: (layers, batch, queries, 4), shares of the input.
        targets: the truth of the batch.
    """
    matches = matcher(logits, boxes_cxcywh, targets)
    queries = np.full((len(logits), len(targets.labels)), UNMATCHED, dtype=np.int64)
    queries[matches.layer.cpu().numpy(), matches.target.cpu().numpy()] = matches.query.cpu().numpy()
    return queries


def changed_share(before: NDArray[np.int64], after: NDArray[np.int64]) -> float | None:
    """The share of the true boxes whose match is another one than before, 0 to 1; None without a box."""
    return float(np.mean(before != after)) if len(after) else None


@dataclass(frozen=True)
class Matched:
    """What the last layer matches to some true boxes, after an epoch.

    Attributes:
        positions: (boxes,) the token of P3, P4, P5 (one level after the other, each by rows) that the matched query
            was selected from; where queries are learned, the query itself. `UNMATCHED` where there is none.
        boxes_xyxy: (boxes, 4) float32, the matched boxes as shares of the input; zeros where there is none.
    """

    positions: NDArray[np.int64]
    boxes_xyxy: NDArray[np.float32]

    def to_plain(self) -> dict[str, list[Any]]:
        """Lists, for a run's state."""
        return {"positions": self.positions.tolist(), "boxes_xyxy": self.boxes_xyxy.tolist()}

    @classmethod
    def from_plain(cls, values: dict[str, list[Any]]) -> "Matched":
        """The opposite of `to_plain`."""
        return cls(
            positions=np.array(values["positions"], dtype=np.int64),
            boxes_xyxy=np.array(values["boxes_xyxy"], dtype=np.float32).reshape(-1, 4),
        )


def instability(before: Matched, after: Matched) -> dict[str, float]:
    """How much the matches of the same true boxes changed between two epochs.

    Returns:
        "matching_instability": the share of the true boxes whose match comes from another position, 0 to 1. Queries
        are selected anew in each epoch, so that their numbers say nothing.
        "matched_iou": the mean IoU of the box that is matched now with the one that was, 0 to 1.
        Empty without a true box.
    """
    share = changed_share(before.positions, after.positions)
    if share is None:
        return {}
    iou = box_iou(torch.from_numpy(before.boxes_xyxy), torch.from_numpy(after.boxes_xyxy))
    return {"matching_instability": share, "matched_iou": float(iou.mean())}


class FollowedPictures:
    """A fixed handful of training pictures whose matches are followed through a run.

    They are looked at in evaluation mode and without augmentation: no random number is drawn, and neither weights nor
    statistics change.
    """

    def __init__(self, records: Sequence[Record], *, preprocessing: Preprocessing, config: LossConfig) -> None:
        """Chooses the pictures; they are read when they are first needed, and kept.

        Args:
            records: some of these, evenly spread over those that have boxes; labels are the model's classes.
            preprocessing: the network's input.
            config: whose matching costs count.
        """
        some = [record for record in records if not record.crowd.all()]
        self._records = tuple(some[:: -(-len(some) // _FOLLOWED) or 1])
        self._preprocessing = preprocessing
        self._matcher = HungarianMatcher(config=config)
        self._pictures: list[tuple[NDArray[np.uint8], Placement]] = []

    @torch.no_grad()
    def match(self, model: RTDETR) -> Matched:
        """What the last layer of `model`, in evaluation mode, matches to the pictures' boxes.

        Raises:
            ImageError, DataError: a picture cannot be read, or has another size than its annotations declare.
        """
        if not self._pictures:
            self._pictures = [self._read(record) for record in self._records]
        if not self._records:
            return Matched(positions=np.zeros(0, np.int64), boxes_xyxy=np.zeros((0, 4), np.float32))
        device = next(model.parameters()).device
        positions, boxes = [], []
        for first in range(0, len(self._records), _BATCH):
            part = slice(first, first + _BATCH)
            pixels = np.stack([image for image, _ in self._pictures[part]])
            images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
            with watch(model) as passes:
                model(images)
            seen = passes[0]
            placements = [placement for _, placement in self._pictures[part]]
            targets = targets_of(list(zip(self._records[part], placements, strict=True)))
            last = seen.output.boxes_cxcywh[-1:].float().cpu()
            logits = seen.output.logits[-1:].float().cpu()
            queries = matched_queries(self._matcher, logits, last, targets)[0]
            picture, there = targets.image_index.numpy(), queries != UNMATCHED
            where = queries if seen.tokens is None else seen.tokens.cpu().numpy()[picture, queries]
            positions.append(np.where(there, where, UNMATCHED))
            corners = cxcywh_to_xyxy(last[0]).numpy()[picture, queries]
            boxes.append(np.where(there[:, None], corners, 0).astype(np.float32))
        return Matched(positions=np.concatenate(positions), boxes_xyxy=np.concatenate(boxes))

    def _read(self, record: Record) -> tuple[NDArray[np.uint8], Placement]:
        image = read_image(record.image)
        check_size(record, *image.shape[:2])
        return preprocess(image, self._preprocessing)
