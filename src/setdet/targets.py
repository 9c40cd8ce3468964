"""A batch's truth as tensors: what the losses and the denoising queries read."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The boxes of a batch of pictures, packed one picture after the other.

    Attributes:
        labels: class index of every box.
        boxes_cxcywh: every box as centre, width and height, as shares of the picture's size (0 to 1).
        counts: how many boxes each picture has, zeros included; `sum(counts)` is `len(labels)`.
        names: what each picture is called in messages; as long as `counts`, or empty.
    """

    labels: Int[Tensor, " boxes"]
    boxes_cxcywh: Float[Tensor, "boxes 4"]
    counts: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def image_index(self) -> Int[Tensor, " boxes"]:
        """The position in the batch of the picture that each box belongs to."""
        # Made on the CPU: `repeat_interleave` of counts on a GPU would wait for all that is under way there.
        index = torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts, dtype=torch.int64))
        return index.to(self.labels.device, non_blocking=True)

    def to(self, device: torch.device | str) -> "Targets":
        """The same targets on another device."""
        return replace(
            self,
            labels=self.labels.to(device, non_blocking=True),
            boxes_cxcywh=self.boxes_cxcywh.to(device, non_blocking=True),
        )

    def pin_memory(self) -> "Targets":
        """The same targets in memory that a GPU fetches from by itself."""
        return replace(self, labels=self.labels.pin_memory(), boxes_cxcywh=self.boxes_cxcywh.pin_memory())
