"""The loss written a second time, from the papers, in plain loops over pictures, boxes and queries: the oracle.

Matching tries every assignment. Functions work on floats and on tensors without dimensions alike, so that the same
lines give values and gradients.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from setdet.losses.config import LossConfig
from setdet.models.denoising import DenoisingQueries
from setdet.models.outputs import RTDETROutput
from setdet.targets import Targets

Number = Any  # float, or Tensor without dimensions
Pair = tuple[int, int]  # query, index of the packed box


def slow_loss(
    output: RTDETROutput, targets: Targets, denoising: DenoisingQueries | None, *, config: LossConfig, normaliser: float
) -> dict[str, Tensor]:
    """All terms by name."""
    layers = {f"decoder.{i}": (output.logits[i], output.boxes_cxcywh[i]) for i in range(len(output.logits))}
    layers["encoder"] = (output.encoder_logits, output.encoder_boxes_cxcywh)
    terms: dict[str, Tensor] = {}
    for name, (logits, boxes) in layers.items():
        pairs = [
            slow_match(logits[image].tolist(), boxes[image].tolist(), truth * copies, config=config)
            for image, truth in enumerate(boxes_by_picture(targets))
            for copies in [config.selection_copies if name == "encoder" else 1]
        ]
        scale = normaliser * (config.selection_copies if name == "encoder" else 1)
        terms |= _layer(name, logits, boxes, targets, pairs, config=config, normaliser=scale)
    if denoising is not None:
        assert output.denoising_logits is not None and output.denoising_boxes_cxcywh is not None
        copies: list[list[Pair]] = [[] for _ in targets.counts]
        for image, query, box in zip(*denoising.positive_index, denoising.target_index, strict=True):
            copies[int(image)].append((int(query), int(box)))
        for i, (logits, boxes) in enumerate(zip(output.denoising_logits, output.denoising_boxes_cxcywh, strict=True)):
            scale = normaliser * denoising.groups
            terms |= _layer(f"denoising.{i}", logits, boxes, targets, copies, config=config, normaliser=scale)
    return terms


def boxes_by_picture(targets: Targets) -> list[list[tuple[int, int, list[float]]]]:
    """For each picture: (packed index, label, cxcywh) of its boxes."""
    labels, boxes = targets.labels.tolist(), targets.boxes_cxcywh.tolist()
    every = iter(range(len(labels)))
    return [[(box, labels[box], boxes[box]) for box in itertools.islice(every, count)] for count in targets.counts]


def slow_match(
    logits: list[list[float]],
    boxes: list[list[float]],
    truth: list[tuple[int, int, list[float]]],
    *,
    config: LossConfig,
) -> list[Pair]:
    """The cheapest of all assignments of one picture's boxes to its queries."""
    cost = [[_cost(logits[q], boxes[q], label, box, config) for _, label, box in truth] for q in range(len(logits))]
    if len(truth) <= len(logits):
        candidates = [
            [(q, t) for t, q in enumerate(queries)]
            for queries in itertools.permutations(range(len(logits)), len(truth))
        ]
    else:
        candidates = [list(enumerate(kept)) for kept in itertools.permutations(range(len(truth)), len(logits))]
    best = min(candidates, key=lambda pairs: sum(cost[q][t] for q, t in pairs))
    return [(q, truth[t][0]) for q, t in best]


def _cost(logits: list[float], box: list[float], label: int, truth: list[float], config: LossConfig) -> float:
    p = 1 / (1 + math.exp(-logits[label]))
    alpha, gamma = config.match_alpha, config.match_gamma
    focal = -alpha * (1 - p) ** gamma * math.log(p + 1e-8) + (1 - alpha) * p**gamma * math.log(1 - p + 1e-8)
    distance = sum(abs(a - b) for a, b in zip(box, truth, strict=True))
    return config.match_class * focal + config.match_l1 * distance - config.match_giou * iou_and_giou(box, truth)[1]


def iou_and_giou(a_cxcywh: Any, b_cxcywh: Any) -> tuple[Number, Number]:
    """Of two boxes."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a_cxcywh, b_cxcywh

    def side(a: Number, a_size: Number, b: Number, b_size: Number) -> tuple[Number, Number]:
        overlap = min(a + a_size / 2, b + b_size / 2) - max(a - a_size / 2, b - b_size / 2)
        hull = max(a + a_size / 2, b + b_size / 2) - min(a - a_size / 2, b - b_size / 2)
        return max(overlap, 0 * overlap), hull

    (overlap_w, hull_w), (overlap_h, hull_h) = side(ax, aw, bx, bw), side(ay, ah, by, bh)
    intersection, hull = overlap_w * overlap_h, hull_w * hull_h
    union = aw * ah + bw * bh - intersection
    return intersection / union, intersection / union - (hull - union) / hull


def _layer(
    name: str,
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    pairs: list[list[Pair]],
    *,
    config: LossConfig,
    normaliser: float,
) -> dict[str, Tensor]:
    classes = l1 = giou = logits.sum() * 0
    for image, matched in enumerate(pairs):
        quality: dict[tuple[int, int], float] = {}
        for query, box in matched:
            predicted, truth = boxes[image, query], targets.boxes_cxcywh[box]
            iou, generalized = iou_and_giou(predicted.unbind(), truth.unbind())
            quality[query, int(targets.labels[box])] = float(iou.detach())
            l1 = l1 + sum(abs(p - t) for p, t in zip(predicted, truth, strict=True))
            giou = giou + 1 - generalized
        for query in range(logits.shape[1]):
            for label in range(logits.shape[2]):
                p = 1 / (1 + torch.exp(-logits[image, query, label]))
                if (query, label) in quality:
                    q = weight = quality[query, label]
                    if config.classification == "matchability":
                        q, weight = q**config.matchability_gamma, 1
                    classes = classes - weight * (q * torch.log(p) + (1 - q) * torch.log(1 - p))
                else:
                    weight = config.varifocal_alpha * float(p.detach()) ** config.varifocal_gamma
                    if config.classification == "matchability":
                        weight = float(p.detach()) ** config.matchability_gamma
                    classes = classes - weight * torch.log(1 - p)
    return {
        f"class/{name}": config.class_weight * classes / normaliser,
        f"l1/{name}": config.l1_weight * l1 / normaliser,
        f"giou/{name}": config.giou_weight * giou / normaliser,
    }
