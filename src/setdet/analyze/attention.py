"""Where a detection comes from: its reference box through the layers, what it samples, what AIFI related it to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from setdet.analyze.watch import Shapes, token_places, watch, watched_model
from setdet.boxes import cxcywh_to_xyxy
from setdet.errors import UsageError
from setdet.images import Placement, place, read_image
from setdet.models.encoder import AIFI
from setdet.models.rtdetr import RTDETR
from setdet.predict import Predictor, have_area

BEST = 20  # detections that are read, unless one further down is asked for


@dataclass(frozen=True)
class LayerAttention:
    """One detection in one decoder layer, in pixels of the picture.

    Attributes:
        reference_xyxy_px: (4,) the box around which the layer looks: the layer before's, or the selection's.
        refined_xyxy_px: (4,) what the layer makes of it.
        score: that the layer's own head gives the detection's class, 0 to 1.
        points_px: (heads, points, 2) where each head samples, (x, y); points may lie outside. First those on P3, then
            on P4, then on P5.
        weights: (heads, points) how much each counts; those of a head sum to 1.
    """

    reference_xyxy_px: NDArray[np.float32]
    refined_xyxy_px: NDArray[np.float32]
    score: float
    points_px: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class DetectionAttention:
    """Where one detection comes from.

    Attributes:
        label, score: its class and score.
        box_xyxy_px: (4,) clipped to the picture.
        query: its number among the queries.
        token_level: 0 to 2, the level that its query was selected from; None where queries are learned.
        token_px: (x, y) of the selected token; None where queries are learned.
        layers: first to last.
        aifi_cell: (row, column) of the cell of S5 that its centre lies in.
        aifi: (layers, heads, height, width) AIFI's attention from that cell to every other, each head's summing to 1;
            no layers where the encoder has no AIFI.
    """

    label: int
    score: float
    box_xyxy_px: NDArray[np.float32]
    query: int
    token_level: int | None
    token_px: tuple[float, float] | None
    layers: tuple[LayerAttention, ...]
    aifi_cell: tuple[int, int]
    aifi: NDArray[np.float32]


@dataclass(frozen=True)
class PictureAttention:
    """The detections of one picture, by number from 1, best first.

    Attributes:
        image: (height, width, 3) uint8 RGB.
        class_names: of the labels.
        points_per_level: sampling points of a head on P3, P4 and P5.
        cells_px: edges of S5's cells in pixels of the picture: (width + 1,) along x and (height + 1,) along y.
        detections: numbered.
    """

    image: NDArray[np.uint8]
    class_names: tuple[str, ...]
    points_per_level: tuple[int, ...]
    cells_px: tuple[NDArray[np.float32], NDArray[np.float32]]
    detections: dict[int, DetectionAttention]

    def detection(self, number: int) -> DetectionAttention:
        """The one of that number."""
        return self.detections[number]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; pixels with a decimal, shares with four."""
        return {
            "height": self.image.shape[0],
            "width": self.image.shape[1],
            "class_names": list(self.class_names),
            "points_per_level": list(self.points_per_level),
            "cells_x_px": _rounded(self.cells_px[0], 1),
            "cells_y_px": _rounded(self.cells_px[1], 1),
            "detections": [self._detection(number) for number in self.detections],
        }

    def _detection(self, number: int) -> dict[str, Any]:
        one = self.detections[number]
        return {
            "number": number,
            "class": self.class_names[one.label],
            "score": round(one.score, 4),
            "box": _rounded(one.box_xyxy_px, 1),
            "query": one.query,
            "token_level": one.token_level,
            "token": None if one.token_px is None else [round(side, 1) for side in one.token_px],
            "layers": [
                {
                    "reference": _rounded(layer.reference_xyxy_px, 1),
                    "refined": _rounded(layer.refined_xyxy_px, 1),
                    "score": round(layer.score, 4),
                    "points": _rounded(layer.points_px, 1),
                    "weights": _rounded(layer.weights, 4),
                }
                for layer in one.layers
            ],
            "aifi_cell": list(one.aifi_cell),
            "aifi": _rounded(one.aifi, 4),
        }


def read_attention(predictor: Predictor, image: Path, *, number: int = 1, best: int = BEST) -> PictureAttention:
    """Detects on one picture and keeps where the best detections come from.

    Args:
        predictor: that runs a PyTorch model.
        image: the picture.
        number: a detection that is read besides the best, 1 having the highest score.
        best: how many are read at most.

    Raises:
        UsageError: there is no detection of that number; or see `watched_model`.
        ImageError: the picture cannot be read.
    """
    model = watched_model(predictor)
    pixels = read_image(image)
    with watch(model) as passes, _watch_attention(model) as seen:
        found = predictor.predict([pixels], threshold=0.0, batch_size=1)[0]
    if not 1 <= number <= len(found):
        raise UsageError(f"--detection {number}: {image} has the detections 1 to {len(found)}, best score first.")
    inside, placement = passes[0].picture(0), place(*found.image_size, predictor.preprocessing)
    scores = inside.output.logits[-1, 0].sigmoid()
    # The pairs of query and class in the order of the detections, as `top_detections` takes them.
    candidates = scores.flatten().topk(min(predictor.runtime.top_k, scores.numel())).indices  # type: ignore[attr-defined]
    corners = cxcywh_to_xyxy(inside.output.boxes_cxcywh[-1, 0])[candidates // scores.shape[1]].clamp(0, 1)
    order = candidates[torch.from_numpy(have_area(placement.to_original(corners.numpy())))].tolist()
    ranks = sorted({*range(1, min(best, len(found)) + 1), number})
    pairs = {rank: divmod(order[rank - 1], scores.shape[1]) for rank in ranks}
    boxes = torch.cat([inside.reference_cxcywh, inside.output.boxes_cxcywh[:, 0]])  # (layers + 1, Q, 4)
    places = None if inside.tokens is None else token_places(inside.tokens[0].numpy(), inside.shapes)
    return PictureAttention(
        image=pixels,
        class_names=predictor.class_names,
        points_per_level=model.config.decoder.points_per_level,
        cells_px=_cells(inside.shapes[-1], placement),
        detections={
            rank: DetectionAttention(
                label=label,
                score=float(found.scores[rank - 1]),
                box_xyxy_px=found.boxes_xyxy_px[rank - 1],
                query=query,
                token_level=None if places is None else int(places[0][query]),
                token_px=None if places is None else _point(places[1][query], placement),
                layers=tuple(
                    LayerAttention(
                        reference_xyxy_px=_box(boxes[layer, query], placement),
                        refined_xyxy_px=_box(boxes[layer + 1, query], placement),
                        score=float(inside.output.logits[layer, 0, query, label].sigmoid()),
                        points_px=_points(points[0, query], placement),
                        weights=weights[0, query].numpy(),
                    )
                    for layer, (points, weights) in enumerate(seen.points)
                ),
                aifi_cell=_cell(boxes[-1, query], inside.shapes[-1]),
                aifi=seen.from_cell(_cell(boxes[-1, query], inside.shapes[-1]), inside.shapes),
            )
            for rank, (query, label) in pairs.items()
        },
    )


@dataclass
class _Seen:
    """What the attention modules computed.

    Attributes:
        points: of each decoder layer where its heads look and how much each point counts.
        aifi: of each AIFI layer the weights (1, heads, tokens, tokens).
    """

    points: list[tuple[Tensor, Tensor]]
    aifi: list[Tensor]

    def from_cell(self, cell: tuple[int, int], shapes: Shapes) -> NDArray[np.float32]:
        height, width = shapes[-1]
        if not self.aifi:
            return np.zeros((0, 0, height, width), np.float32)
        row = cell[0] * width + cell[1]
        return torch.stack([weights[0, :, row] for weights in self.aifi]).unflatten(2, (height, width)).numpy()


@contextmanager
def _watch_attention(model: RTDETR) -> Iterator[_Seen]:
    """Collects what one forward attends to; the modules compute it again from their own inputs."""
    seen = _Seen(points=[], aifi=[])

    def see_sampling(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        points, weights = module.sampling_points(inputs[0], reference_cxcywh=keywords["reference_cxcywh"])
        seen.points.append((points.float().cpu(), weights.float().cpu()))

    def see_interaction(module: Any, inputs: tuple[Any, ...]) -> None:
        query, key, _ = module.query_key_value(*inputs)
        weights = (query.float() @ key.float().transpose(2, 3) * query.shape[3] ** -0.5).softmax(dim=-1)
        seen.aifi.append(weights.float().cpu())  # autocast multiplies in less

    handles = [
        layer.cross_attention.register_forward_pre_hook(see_sampling, with_kwargs=True)  # type: ignore[union-attr]
        for layer in model.decoder.layers
    ]
    interaction = getattr(model.encoder, "aifi", None)
    if isinstance(interaction, AIFI):
        handles += [
            layer.self_attention.register_forward_pre_hook(see_interaction)  # type: ignore[union-attr]
            for layer in interaction.layers
        ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _box(box_cxcywh: Tensor, placement: Placement) -> NDArray[np.float32]:
    return placement.to_original(cxcywh_to_xyxy(box_cxcywh)[None].numpy(), clip=False)[0]


def _points(points: Tensor, placement: Placement) -> NDArray[np.float32]:
    """(heads, points, 2) shares of the input → pixels of the picture."""
    twice = np.repeat(points.reshape(-1, 1, 2).numpy(), 2, axis=1).reshape(-1, 4)
    return placement.to_original(twice, clip=False)[:, :2].reshape(points.shape)


def _point(point: NDArray[np.float64], placement: Placement) -> tuple[float, float]:
    x, y, _, _ = placement.to_original(np.concatenate([point, point])[None], clip=False)[0].tolist()
    return x, y


def _cell(box_cxcywh: Tensor, shape: tuple[int, int]) -> tuple[int, int]:
    """(row, column) of the cell in which the box's centre lies."""
    x, y = box_cxcywh[:2].clamp(0, 1).tolist()
    height, width = shape
    return min(int(y * height), height - 1), min(int(x * width), width - 1)


def _cells(shape: tuple[int, int], placement: Placement) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    height, width = shape
    across, down = np.arange(width + 1) / width, np.arange(height + 1) / height
    x = placement.to_original(np.stack([across] * 4, axis=1), clip=False)[:, 0]
    y = placement.to_original(np.stack([down] * 4, axis=1), clip=False)[:, 1]
    return x, y


def _rounded(values: NDArray[np.floating[Any]], decimals: int) -> Any:
    return np.round(values.astype(np.float64), decimals).tolist()
