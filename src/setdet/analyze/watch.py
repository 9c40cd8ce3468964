"""What a model does inside while it predicts, read with forward hooks: the model has no flags for it."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.errors import UsageError
from setdet.evaluate import match_classes, results
from setdet.images import Placement, place
from setdet.models.outputs import RTDETROutput
from setdet.models.queries import QuerySelection, SelectedQueries
from setdet.models.rtdetr import RTDETR
from setdet.predict import Predictor
from setdet.runtime.torch import TorchRuntime

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of P3, P4 and P5."""


@dataclass(frozen=True)
class Pass:
    """One forward of a batch.

    Attributes:
        output: what the model returned.
        reference_cxcywh: the boxes that the queries start from, shares of the input.
        tokens: which token of P3, P4, P5 (one level after the other, each by rows) every query is, best score first;
            None where queries are learned.
        shapes: of the levels.
    """

    output: RTDETROutput
    reference_cxcywh: Float[Tensor, "batch queries 4"]
    tokens: Int[Tensor, "batch queries"] | None
    shapes: Shapes

    def picture(self, index: int) -> "Pass":
        """One picture of the batch, as a batch of one in float32 on the CPU."""

        def take(tensor: Tensor | None, dimension: int) -> Any:
            return None if tensor is None else tensor.narrow(dimension, index, 1).float().cpu().clone()

        output = RTDETROutput(
            logits=take(self.output.logits, 1),
            boxes_cxcywh=take(self.output.boxes_cxcywh, 1),
            encoder_logits=take(self.output.encoder_logits, 0),
            encoder_boxes_cxcywh=take(self.output.encoder_boxes_cxcywh, 0),
        )
        tokens = None if self.tokens is None else self.tokens[index : index + 1].cpu()
        return Pass(output=output, reference_cxcywh=take(self.reference_cxcywh, 0), tokens=tokens, shapes=self.shapes)


@contextmanager
def watch(model: RTDETR) -> Iterator[list[Pass]]:
    """Collects every forward of `model` within the context; the caller takes them out of the list."""
    passes: list[Pass] = []
    scores: list[Tensor] = []
    selections: list[tuple[SelectedQueries, Shapes]] = []

    def see_scores(_: Any, __: Any, logits: Tensor) -> None:
        scores.append(logits)

    def see_selection(_: Any, inputs: tuple[Any, ...], selected: SelectedQueries) -> None:
        selections.append((selected, tuple((int(height), int(width)) for height, width in inputs[1])))

    def see_output(_: Any, __: Any, output: RTDETROutput) -> None:
        selected, shapes = selections.pop()
        # The selection's own line on the selection's own scores: the same tokens in the same order.
        count = selected.content.shape[1]
        tokens = scores.pop().amax(dim=-1).topk(count, dim=1).indices if scores else None
        passes.append(Pass(output=output, reference_cxcywh=selected.reference_cxcywh, tokens=tokens, shapes=shapes))

    selection = model.query_selection
    handles = [selection.register_forward_hook(see_selection), model.register_forward_hook(see_output)]
    if isinstance(selection, QuerySelection):
        handles.append(selection.class_head.register_forward_hook(see_scores))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def watched_model(predictor: Predictor) -> RTDETR:
    """The model that a predictor runs.

    Raises:
        UsageError: it runs no PyTorch model, which alone can be looked into.
    """
    if not isinstance(predictor.runtime, TorchRuntime):
        raise UsageError("An analysis looks into the PyTorch model: give the checkpoint that this one was made from.")
    return predictor.runtime.model


@dataclass(frozen=True)
class Look:
    """One annotated picture on its way through the model.

    Attributes:
        record: the truth; labels are the predictor's.
        found: the detections, as `Predictor.stream` gives them at a threshold of 0.
        inside: the forward, of this picture alone.
        placement: where the picture lies in the network's input.
    """

    record: Record
    found: Detections
    inside: Pass
    placement: Placement


def looks(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    class_names: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Iterator[Look]:
    """Runs every record's picture through the model, in constant memory.

    Args:
        predictor: that runs a PyTorch model.
        records: the truth.
        class_names: of the records' labels, matched to the predictor's by name; None: they are the predictor's.
        batch_size: pictures that go through the network at once.
        progress: show a bar, on stderr.

    Raises:
        DataError: there is no record, the data has classes that the predictor doesn't know, or a picture has another
            size than its annotations declare.
        UsageError: a label is beyond the predictor's classes; or see `watched_model`.
        ImageError: a picture cannot be read.
    """
    if class_names is not None:
        records = match_classes(records, class_names, predictor.class_names)
    waiting: deque[Pass] = deque()
    with watch(watched_model(predictor)) as passes:
        for record, found in results(
            predictor, records, batch_size=batch_size, progress=progress, doing="looking inside"
        ):
            while passes:
                batch = passes.pop(0)
                waiting.extend(batch.picture(index) for index in range(len(batch.reference_cxcywh)))
            yield Look(
                record=record,
                found=found,
                inside=waiting.popleft(),
                placement=place(*found.image_size, predictor.preprocessing),
            )


def token_places(tokens: NDArray[np.int64], shapes: Shapes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(n,) the level of each token, 0 to 2 for P3 to P5, and (n, 2) its cell's centre (x, y), shares of the input."""
    sizes = np.array([height * width for height, width in shapes])
    first = np.concatenate([[0], np.cumsum(sizes)])
    level = np.searchsorted(first, tokens, side="right") - 1
    height, width = np.array(shapes)[level].T
    row, column = np.divmod(tokens - first[level], width)
    return level, np.stack([(column + 0.5) / width, (row + 0.5) / height], axis=-1)


def sigmoid(logits: Tensor) -> NDArray[np.float32]:
    """Scores of logits, as numpy."""
    return torch.sigmoid(logits).numpy()
