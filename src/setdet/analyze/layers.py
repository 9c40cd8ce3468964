"""What each decoder layer adds: accuracy, time, how far boxes still move, how much assignments change."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from setdet.analyze.matching import UNMATCHED, changed_share, matched_queries, targets_of
from setdet.analyze.stages import StageDetections
from setdet.analyze.watch import Pass, looks, watched_model
from setdet.boxes import box_iou, cxcywh_to_xyxy
from setdet.data.schema import Record
from setdet.errors import UsageError
from setdet.images import Placement, preprocess, read_image
from setdet.losses.config import LossConfig
from setdet.losses.matcher import HungarianMatcher
from setdet.models.deploy import read_out
from setdet.predict import Predictor

MOVED_BELOW = (0.99, 0.9, 0.5)
"""A box has moved if its IoU with itself one layer before is below one of these."""


@dataclass(frozen=True)
class Movement:
    """How far boxes moved in one layer.

    Attributes:
        boxes: how many were followed.
        below: share of them whose IoU with their box one layer before is below 0.99, 0.9 and 0.5.
        shift: mean way of the centre in units of the box's sides: √((Δx / w)² + (Δy / h)²), w and h being the larger
            of before and after.
    """

    boxes: int
    below: dict[str, float]
    shift: float


@dataclass(frozen=True)
class Stage:
    """The encoder's selection, or a decoder layer.

    Attributes:
        name: "selection", "layer 1", …
        layers: decoder layers up to here; 0 for the selection.
        ap, ap50: by this stage's own heads; None without a box.
        latency_ms: median time of a picture from uint8 pixels to boxes if the model is read out here; None if not
            measured.
        moved: all queries, since the stage before; None for the selection.
        moved_matched: the queries that this stage matches to a true box; None for the selection, or without any.
        match_changed: share of the true boxes that are matched to another query than in the stage before; None where
            there is none before.
    """

    name: str
    layers: int
    ap: float | None
    ap50: float | None
    latency_ms: float | None
    moved: Movement | None
    moved_matched: Movement | None
    match_changed: float | None


@dataclass(frozen=True)
class LayerAnalysis:
    """What came out.

    Attributes:
        stages: the selection (not where queries are learned), then every decoder layer.
        default_layers: how many layers run if nobody asks for another number.
        pictures, boxes: how many were measured on, crowd boxes not counted.
        timing: where and how the latencies were measured; None if they were not.
    """

    stages: tuple[Stage, ...]
    default_layers: int
    pictures: int
    boxes: int
    timing: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"stages": [asdict(stage) for stage in self.stages]}


class LayerStudy:
    """Takes picture after picture, and keeps at most 100 detections a class, stage and picture."""

    def __init__(self, *, class_names: Sequence[str]) -> None:
        self._matcher = HungarianMatcher(config=LossConfig())  # with the paper's costs
        self._class_names = tuple(class_names)
        self._records: list[Record] = []
        self._detections: list[StageDetections] = []
        self._matched: list[NDArray[np.int64]] = []  # of each picture: (stages, boxes)
        self._every: list[_Tally] = []
        self._those_matched: list[_Tally] = []
        self._selects = False

    def add(self, record: Record, inside: Pass, placement: Placement) -> None:
        """One picture with its truth; `inside` is a batch of one."""
        output = inside.output
        logits, boxes = output.logits[:, 0], output.boxes_cxcywh[:, 0]
        stages = [(one, other) for one, other in zip(logits, boxes, strict=True)]
        if output.encoder_logits is not None and output.encoder_boxes_cxcywh is not None:
            stages = [(output.encoder_logits[0], output.encoder_boxes_cxcywh[0]), *stages]
        self._selects = len(stages) > len(logits)
        if not self._detections:
            self._detections = [StageDetections() for _ in stages]
            self._every = [_Tally() for _ in logits]
            self._those_matched = [_Tally() for _ in logits]
        for kept, (stage_logits, stage_boxes) in zip(self._detections, stages, strict=True):
            kept.add(stage_logits, stage_boxes, placement)

        all_logits, all_boxes = (torch.stack(part)[:, None] for part in zip(*stages, strict=True))
        matched = matched_queries(self._matcher, all_logits, all_boxes, targets_of([(record, placement)]))
        self._matched.append(matched)
        before = torch.cat([inside.reference_cxcywh, boxes[:-1]])
        for layer, (earlier, now) in enumerate(zip(before, boxes, strict=True)):
            iou, shift = box_movement(earlier, now)
            self._every[layer].add(iou, shift)
            mine = matched[layer + int(self._selects)]
            mine = mine[mine != UNMATCHED]
            self._those_matched[layer].add(iou[mine], shift[mine])
        self._records.append(record)

    def result(
        self, *, default_layers: int, latencies_ms: Sequence[float] = (), timing: dict[str, Any] | None = None
    ) -> LayerAnalysis:
        """The figures over all pictures so far.

        Args:
            default_layers: how many layers run if nobody asks for another number.
            latencies_ms: of each decoder layer, if they were measured.
            timing: how they were.

        Raises:
            UsageError: there was no picture.
        """
        if not self._records:
            raise UsageError("No picture was added, so there is nothing to sum up.")
        matched = np.concatenate(self._matched, axis=1)
        stages = []
        for index, kept in enumerate(self._detections):
            layer = index - int(self._selects)
            ap, ap50 = kept.average_precision(self._records, self._class_names)
            stages.append(
                Stage(
                    name=f"layer {layer + 1}" if layer >= 0 else "selection",
                    layers=layer + 1,
                    ap=ap,
                    ap50=ap50,
                    latency_ms=latencies_ms[layer] if latencies_ms and layer >= 0 else None,
                    moved=self._every[layer].movement() if layer >= 0 else None,
                    moved_matched=self._those_matched[layer].movement() if layer >= 0 else None,
                    match_changed=changed_share(matched[index - 1], matched[index]) if index else None,
                )
            )
        return LayerAnalysis(
            stages=tuple(stages),
            default_layers=default_layers,
            pictures=len(self._records),
            boxes=matched.shape[1],
            timing=timing,
        )


def analyze_layers(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    class_names: Sequence[str] | None = None,
    default_layers: int | None = None,
    rounds: int = 20,
    batch_size: int = 8,
    progress: bool = False,
) -> LayerAnalysis:
    """Measures every layer that the predictor's model runs.

    Args:
        predictor: should run all of its decoder layers.
        records: the truth.
        class_names: see `looks`.
        default_layers: how many layers usually run; None: all.
        rounds: how often each depth is timed; 0: not at all.
        batch_size: pictures that go through the network at once.
        progress: show a bar, on stderr.

    Raises:
        DataError, UsageError, ImageError: as `looks`.
    """
    model = watched_model(predictor)
    study = LayerStudy(class_names=predictor.class_names)
    for look in looks(predictor, records, class_names=class_names, batch_size=batch_size, progress=progress):
        study.add(look.record, look.inside, look.placement)
    latencies: list[float] = []
    timing = None
    if rounds:
        pixels, _ = preprocess(read_image(records[0].image), predictor.preprocessing)
        latencies = depth_latencies(predictor, pixels, rounds=rounds)
        timing = {
            "rounds": rounds,
            "batch": 1,
            "image_size": list(predictor.preprocessing.image_size),
            "device": str(next(model.parameters()).device),
            "threads": torch.get_num_threads(),
        }
    usual = model.decoder.eval_layers if default_layers is None else default_layers
    return study.result(default_layers=usual, latencies_ms=latencies, timing=timing)


def depth_latencies(predictor: Predictor, pixels: NDArray[np.uint8], *, rounds: int) -> list[float]:
    """Median milliseconds of one picture, from pixels to boxes, if the model is read out after 1, 2, … layers.

    Every round runs each depth once, forwards and backwards in turn, so that whatever else the machine does falls on
    all of them alike.

    Args:
        predictor: whose model is as it was before, afterwards.
        pixels: (height, width, 3) uint8, of the network's input size.
        rounds: how often each depth is timed, after one run that is not.
    """
    model, images = watched_model(predictor), pixels[None]
    before = model.decoder.eval_layers
    depths = list(range(1, before + 1))
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    try:
        for number in range(rounds + 1):
            for depth in depths if number % 2 else depths[::-1]:
                read_out(model, decoder_layers=depth)
                start = time.perf_counter()
                predictor.runtime(images)  # its boxes are numpy arrays, so that a GPU is done, too
                if number:
                    seconds[depth].append(time.perf_counter() - start)
    finally:
        read_out(model, decoder_layers=before)
    return [1000 * float(np.median(seconds[depth])) for depth in depths]


def box_movement(before_cxcywh: Tensor, after_cxcywh: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(n,) IoU of each box with what it was, and (n,) its shift, as in `Movement`. Boxes are (n, 4)."""
    iou = box_iou(cxcywh_to_xyxy(before_cxcywh), cxcywh_to_xyxy(after_cxcywh))
    size = torch.maximum(before_cxcywh[:, 2:], after_cxcywh[:, 2:]).clamp(min=1e-9)
    shift = ((after_cxcywh[:, :2] - before_cxcywh[:, :2]) / size).norm(dim=1)
    return iou.numpy(), shift.numpy()


class _Tally:
    """Sums over boxes, from which the means come."""

    def __init__(self) -> None:
        self.boxes = 0
        self.below = np.zeros(len(MOVED_BELOW), dtype=np.int64)
        self.shift = 0.0

    def add(self, iou: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
        self.boxes += len(iou)
        self.below += (iou[:, None] < np.array(MOVED_BELOW)).sum(axis=0)
        self.shift += float(shift.astype(np.float64).sum())

    def movement(self) -> Movement | None:
        if not self.boxes:
            return None
        shares = (self.below / self.boxes).tolist()
        below = {str(limit): share for limit, share in zip(MOVED_BELOW, shares, strict=True)}
        return Movement(boxes=self.boxes, below=below, shift=self.shift / self.boxes)
