"""The detections of one stage of the decoder on many pictures, kept small, and their AP."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.images import Placement
from setdet.metrics.coco import coco_metrics
from setdet.models.outputs import RTDETROutput
from setdet.models.postprocess import top_detections

_MOST_PER_CLASS = 100  # on a picture: AP reads no more


class StageDetections:
    """What would be found if the model were read out at this stage: 22 bytes a detection."""

    def __init__(self) -> None:
        self._boxes: list[NDArray[np.float32]] = []
        self._scores: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int16]] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, logits: Tensor, boxes_cxcywh: Tensor, placement: Placement) -> None:
        """One picture: (queries, classes) and (queries, 4), on the CPU."""
        output = RTDETROutput(
            logits=logits[None, None],
            boxes_cxcywh=boxes_cxcywh[None, None],
            encoder_logits=None,
            encoder_boxes_cxcywh=None,
        )
        boxes, scores, labels = (part[0].numpy() for part in top_detections(output, top_k=len(logits)))
        kept = _first_of_each(labels, _MOST_PER_CLASS)
        self._boxes.append(placement.to_original(boxes[kept]))
        self._scores.append(scores[kept])
        self._labels.append(labels[kept].astype(np.int16))
        self._sizes.append(placement.original_size)

    def average_precision(
        self, records: Sequence[Record], class_names: Sequence[str]
    ) -> tuple[float | None, float | None]:
        """COCO's AP and AP50 on the records of the pictures, in their order; None without a box.

        Both are means over the classes, which are measured one by one: COCO's tools need a kilobyte a detection.
        """
        values = [
            (measured.ap, measured.ap50)
            for label, name in enumerate(class_names)
            if any((record.labels[~record.crowd] == label).any() for record in records)
            for measured in [coco_metrics(*self._of_class(records, label, name), (name,))]
        ]
        measured_ap = [(ap, ap50) for ap, ap50 in values if ap is not None and ap50 is not None]
        if not measured_ap:
            return None, None
        ap, ap50 = np.array(measured_ap).mean(axis=0).tolist()
        return ap, ap50

    def _of_class(self, records: Sequence[Record], label: int, name: str) -> tuple[list[Record], list[Detections]]:
        """One class alone, on the pictures that have it or where it was found."""
        truths, found = [], []
        for index, record in enumerate(records):
            mine, there = self._labels[index] == label, record.labels == label
            if not (mine.any() or there.any()):
                continue
            areas = None if record.areas_px is None else record.areas_px[there]
            truths.append(
                replace(
                    record,
                    boxes_xyxy_px=record.boxes_xyxy_px[there],
                    labels=np.zeros(int(there.sum()), dtype=np.int64),
                    crowd=record.crowd[there],
                    areas_px=areas,
                )
            )
            found.append(
                Detections(
                    boxes_xyxy_px=self._boxes[index][mine],
                    scores=self._scores[index][mine],
                    labels=np.zeros(int(mine.sum()), dtype=np.int64),
                    class_names=(name,),
                    image_size=self._sizes[index],
                )
            )
        return truths, found


def _first_of_each(labels: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Which places hold one of the first `most` of their label."""
    order = np.argsort(labels, kind="stable")
    grouped = labels[order]
    starts = np.searchsorted(grouped, grouped)  # where each one's label begins
    kept = np.empty(len(labels), dtype=np.bool_)
    kept[order] = np.arange(len(labels)) - starts < most
    return kept
