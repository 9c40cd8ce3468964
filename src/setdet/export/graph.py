"""The network as it is exported: folded, cut to what runs, the last layer's predictions out."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from setdet.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from setdet.export.sampling import POSITIONS, GraphAttention, GraphSampling
from setdet.images import Preprocessing
from setdet.models.attention import DeformableAttention
from setdet.models.deploy import fold
from setdet.models.distributions import boxes_from_edges
from setdet.models.layers import inverse_sigmoid
from setdet.models.queries import QuerySelection, SelectedQueries, anchor_logits
from setdet.models.rtdetr import RTDETR
from setdet.models.self_attention import SelfAttention

STRIDES = (8, 16, 32)
# In place of the infinite logit of an invalid anchor: its sigmoid is 1 as well, in float16 too, and parsers of graphs
# and collectors of statistics want finite constants.
_CERTAIN = 100.0


def least_side(queries: int) -> int:
    """The smallest square side, in pixels and a multiple of 32, whose tokens are as many as the queries."""
    tokens = sum((32 // stride) ** 2 for stride in STRIDES)  # of 32 x 32 pixels
    return 32 * math.ceil(math.sqrt(queries / tokens))


class DetectionGraph(nn.Module):
    """Pictures in, predictions out; `setdet.runtime.exported.ExportInfo` has the names and formats."""

    def __init__(
        self,
        *,
        model: RTDETR,
        preprocessing: Preprocessing,
        sampling: GraphSampling,
        takes_pictures: bool = False,
        gives_detections: bool = False,
        decoder_layers: int | None = None,
        queries: int | None = None,
    ) -> None:
        """Copies, folds and cuts `model`, which stays as it is.

        Args:
            model: the trained model.
            preprocessing: what the network was trained with.
            sampling: how deformable attention reads the picture.
            takes_pictures: resize and scale in the graph; input is uint8 pictures of any size.
            gives_detections: take the best pairs of query and class in the graph; output is boxes in pixels.
            decoder_layers, queries: as in `setdet.models.deploy.read_out`.

        Raises:
            UsageError: the model has fewer decoder layers or queries.
        """
        super().__init__()
        network = fold(model, decoder_layers=decoder_layers, queries=queries)
        self.config = network.config
        self.network = network
        self.resize = PictureResize(preprocessing=preprocessing) if takes_pictures else None
        self.gives_detections = gives_detections
        if isinstance(network.query_selection, QuerySelection):
            network.query_selection = GraphSelection(selection=network.query_selection)  # type: ignore[assignment]
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, SelfAttention):
                    setattr(module, name, GraphSelfAttention(attention=child))
                elif isinstance(child, DeformableAttention):
                    setattr(module, name, GraphAttention(attention=child, sampling=sampling))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(logits, boxes_cxcywh), or (boxes_xyxy_px, scores, labels)."""
        size = images.shape[1:3] if self.resize else images.shape[2:4]
        if self.resize is not None:
            images = self.resize(images)
        logits, boxes_cxcywh = self.predict(images)
        if not self.gives_detections:
            if self.resize is not None:  # shares of the picture, where a letterbox has borders
                in_pixels = self.resize.to_picture(cxcywh_to_xyxy(boxes_cxcywh), size)
                boxes_cxcywh = xyxy_to_cxcywh(in_pixels / _sides(size))
            return logits, boxes_cxcywh
        boxes, scores, labels = _best(logits, cxcywh_to_xyxy(boxes_cxcywh).clamp(0, 1), self.config.decoder.queries)
        in_pixels = boxes * _sides(size) if self.resize is None else self.resize.to_picture(boxes, size)
        return in_pixels, scores, labels

    def predict(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[Tensor, Tensor]:
        """Logits and boxes of the last layer that runs: `RTDETR.forward` without what only training reads."""
        network, decoder = self.network, self.network.decoder
        features = network.encoder(network.backbone(images))
        levels = [project(feature) for project, feature in zip(network.memory_proj, features, strict=True)]
        shapes = [(images.shape[2] // stride, images.shape[3] // stride) for stride in STRIDES]
        memory = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
        selected = network.query_selection(memory, shapes)
        content, reference = selected.content, selected.reference_cxcywh
        first, edges, scores = reference, None, selected.logits
        for index, (layer, box_head) in enumerate(zip(decoder.layers, decoder.box_heads, strict=True)):
            if decoder.rivals and scores is not None:
                content = content + decoder.rivals[index](reference, scores)
            position = decoder.query_position(reference)
            content = layer(
                content, position=position, reference_cxcywh=reference, memory=memory, shapes=shapes, groups=None
            )
            scores, change = decoder.class_heads[index](content), box_head(content)
            if decoder.first_box_head is None:
                reference = (change + inverse_sigmoid(reference)).sigmoid()
                continue
            change = change.unflatten(2, (4, -1))
            if edges is None:
                first, edges = (decoder.first_box_head(content) + inverse_sigmoid(reference)).sigmoid(), change
            else:
                edges = edges + change
            reference = boxes_from_edges(edges, first)
        assert scores is not None  # there is at least one layer
        return scores, reference


@torch.no_grad()
def largest_values(graph: DetectionGraph, images: Tensor, *, kept: tuple[str, ...]) -> tuple[float, str]:
    """The largest absolute value that leaves a layer in float32, and that layer's name; positions don't count.

    Args:
        graph: of any sampling; its input is the network's.
        images: (n, 3, height, width) RGB, 0 to 1.
        kept: names of the network's modules that don't count either.
    """
    largest = {"": 0.0}

    def watch(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, given: object, out: object) -> None:
            if isinstance(out, Tensor):
                largest[name] = max(largest.get(name, 0.0), float(out.abs().max()))

        return keep

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in graph.network.named_modules()
        if name.partition(".")[0] not in kept and POSITIONS not in f"{name}/"
    ]
    try:
        graph.predict(images)
    finally:
        for handle in handles:
            handle.remove()
    name = max(largest, key=lambda one: largest[one])
    return largest[name], name


class GraphSelection(nn.Module):
    """`QuerySelection` as it is exported: scores of the chosen alone, and no infinite number."""

    def __init__(self, *, selection: QuerySelection) -> None:
        super().__init__()
        self.selection = selection

    def forward(self, memory: Float[Tensor, "batch tokens width"], shapes: list[tuple[int, int]]) -> SelectedQueries:
        """As `QuerySelection.forward`, without what its loss reads."""
        own, tokens = self.selection, memory.shape[1]
        # A small picture has fewer tokens than queries; where its size is open, `ExportInfo.least_side` rules that out.
        count = min(own.queries, tokens) if isinstance(tokens, int) else own.queries
        anchors, valid = anchor_logits(shapes, like=memory)
        features = own.norm(own.project(memory * valid[:, None].to(memory.dtype)))
        scores = own.class_head(features)
        chosen = scores.amax(dim=-1).topk(count, dim=1).indices[..., None]
        content = features.gather(1, chosen.expand(-1, -1, features.shape[2]))
        anchors = torch.where(valid[:, None], anchors, _CERTAIN)
        boxes = (own.box_head(content) + anchors[chosen[..., 0]]).sigmoid()
        logits = scores.gather(1, chosen.expand(-1, -1, scores.shape[2]))  # what is told of rivals
        return SelectedQueries(content=content, reference_cxcywh=boxes, logits=logits, boxes_cxcywh=None)


class GraphSelfAttention(nn.Module):
    """`SelfAttention` as it is exported.

    Weights are split, and the query's scaled, once and for all and not by the graph at every picture.
    """

    def __init__(self, *, attention: SelfAttention) -> None:
        super().__init__()
        width = attention.out_proj.in_features
        weights, biases = attention.in_proj.weight.split(width), attention.in_proj.bias.split(width)
        self.heads, self.out_proj = attention.heads, attention.out_proj
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in weights)
        scales = ((width // self.heads) ** -0.5, 1.0, 1.0)
        for part, weight, bias, scale in zip((self.query, self.key, self.value), weights, biases, scales, strict=True):
            part.weight, part.bias = nn.Parameter(weight * scale), nn.Parameter(bias * scale)
        self.requires_grad_(False)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        position: Float[Tensor, "#batch tokens width"],
        groups: None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """As `SelfAttention.forward`."""
        placed = x + position
        query, key, value = (
            projected.unflatten(2, (self.heads, -1))
            for projected in (self.query(placed), self.key(placed), self.value(x))
        )
        shares = (query.transpose(1, 2) @ key.permute(0, 2, 3, 1)).softmax(dim=-1)  # (B, heads, queries, keys)
        return self.out_proj((shares @ value.transpose(1, 2)).transpose(1, 2).flatten(2))


class PictureResize(nn.Module):
    """`setdet.images.preprocess` as matrix products: uint8 pictures of one size, any size, to the network's input.

    The filter is the same (pixel areas when shrinking, linear when enlarging), and so is rounding to whole grey levels.
    """

    def __init__(self, *, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing

    def forward(self, pictures: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """(n, height, width, 3) uint8 RGB → the network's input."""
        rows, columns = self._places(pictures.shape[1:3])
        pixels = pictures.permute(0, 3, 1, 2).to(torch.float32)
        pixels = pixels @ _resampling(pictures.shape[2], *columns, self.preprocessing.image_size[1]).T
        pixels = _resampling(pictures.shape[1], *rows, self.preprocessing.image_size[0]) @ pixels
        # Enlarging the height, OpenCV's fixed-point arithmetic rounds down twice: an eighth of a grey level on average.
        lowered = (_scalar(pictures.shape[1]) < rows[0]).to(torch.float32) / 8
        return (pixels - lowered).round().clamp(min=0) / 255

    def to_picture(self, boxes_xyxy: Float[Tensor, "batch k 4"], size: torch.Size) -> Float[Tensor, "batch k 4"]:
        """Shares of the network's input → pixels of the picture, clipped to it."""
        rows, columns = self._places(size)
        own = self.preprocessing.image_size
        scale, shift, most = [], [], []
        for (placed, start), side, length in ((columns, own[1], size[1]), (rows, own[0], size[0])):
            scale.append(side * length / placed)
            shift.append(start * length / placed)
            most.append(length)
        scales, shifts, sides = (torch.stack([_scalar(one) for one in two] * 2) for two in (scale, shift, most))
        return torch.minimum((boxes_xyxy * scales - shifts).clamp(min=0), sides)

    def _places(self, size: torch.Size) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(length, start) of the picture in the input, along its height and its width; as `images.place`."""
        sides = [_scalar(side) for side in size]
        own = [_scalar(side) for side in self.preprocessing.image_size]
        placed = own
        if self.preprocessing.resize == "letterbox":
            scale = torch.minimum(own[0] / sides[0], own[1] / sides[1])
            placed = [(side * scale).round().clamp(min=1) for side in sides]
        rows, columns = ((inside, ((whole - inside) / 2).floor()) for inside, whole in zip(placed, own, strict=True))
        return rows, columns


def _resampling(length: int, placed: Tensor, start: Tensor, out: int) -> Float[Tensor, "out length"]:
    """The matrix that brings a line of `length` pixels to `placed` pixels from `start` on, in a black line of `out`."""
    scale = length / placed
    target = torch.arange(out, dtype=torch.float32)[:, None] - start
    source = torch.arange(length, dtype=torch.float32)
    overlap = torch.minimum((target + 1) * scale, source + 1) - torch.maximum(target * scale, source)
    area = overlap.clamp(min=0) / scale
    center = torch.minimum(((target + 0.5) * scale - 0.5).clamp(min=0), _scalar(length) - 1)
    linear = (1 - (center - source).abs()).clamp(min=0)
    inside = (target >= 0) & (target < placed)
    return torch.where(scale > 1, area, linear) * inside.to(torch.float32)


def _scalar(value: Tensor | int | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.scalar_tensor(value, dtype=torch.float32)


def _sides(size: torch.Size) -> Float[Tensor, "4"]:
    return torch.stack([_scalar(size[1]), _scalar(size[0])] * 2)


def _best(logits: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best pairs of query and class, as `setdet.models.postprocess.top_detections`."""
    classes = logits.shape[2]
    pairs = logits.flatten(1)
    scores, index = pairs.topk(min(count, pairs.shape[1]), dim=1)
    query = (index // classes)[..., None].expand(-1, -1, 4)
    return boxes.gather(1, query), scores.sigmoid(), index % classes
