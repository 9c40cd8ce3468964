"""The engine that runs a model with PyTorch."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from setdet.errors import SetdetError, UsageError, one_line
from setdet.models.deploy import fold
from setdet.models.postprocess import top_detections
from setdet.models.rtdetr import RTDETR
from setdet.runtime.base import Candidates, check_batch

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchRuntime:
    """Runs a folded copy of a model, channels last, without gradients; see `setdet.runtime.base.Runtime`.

    Reduced precision is autocast's, of convolutions and matrix products: box coordinates stay float32, where bfloat16's
    eight bits would move a box by pixels. The weights of these are rounded once, as autocast would for every picture.
    """

    def __init__(
        self,
        *,
        model: RTDETR,
        device: str = "cpu",
        precision: Precision = "fp32",
        decoder_layers: int | None = None,
        queries: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Copies and folds `model`, which stays as it is.

        Args:
            model: the trained model.
            device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".
            precision: arithmetic of convolutions and matrix products.
            decoder_layers: how many run, the first ones; None: as trained.
            queries: how many are selected, the best ones; None: as trained.
            threads: of PyTorch in this process, from now on; None: as they are.

        Raises:
            UsageError: the device is not there, the precision is not one of the three, the model has fewer decoder
                layers or queries, or the threads are fewer than one.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected 1 or more.")
        if threads is not None:
            torch.set_num_threads(threads)
        if precision not in _DTYPES:
            raise UsageError(f"There is no precision '{precision}'. Known: {', '.join(_DTYPES)}.")
        self.device = select_device(device)
        self.precision = precision
        folded = fold(model, decoder_layers=decoder_layers, queries=queries).to(self.device)
        if precision != "fp32":
            for module in folded.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)):
                    module.to(_DTYPES[precision])
        self.top_k = folded.config.decoder.queries
        self._model = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def model(self) -> RTDETR:
        """The folded copy that runs; analyses read it with forward hooks."""
        return self._model

    def __call__(self, images: NDArray[np.uint8]) -> Candidates:
        """Detects; formats as in `Runtime`.

        Raises:
            UsageError: `images` is not a uint8 batch of RGB pictures with sides that are multiples of 32.
            SetdetError: the GPU's memory is full.
        """
        check_batch(images)
        autocast = torch.autocast(self.device.type, dtype=_DTYPES[self.precision], enabled=self.precision != "fp32")
        with torch.inference_mode(), autocast:
            # A contiguous NHWC array seen as NCHW is a channels-last tensor already: nothing is moved.
            pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2)
            try:
                output = self._model(pixels.to(torch.float32) / 255)
            except torch.OutOfMemoryError as error:
                raise SetdetError(
                    f"The GPU's memory is full ({one_line(error)}) with {len(images)} pictures at a time. Take fewer "
                    "(batch_size), or another device."
                ) from None
            boxes, scores, labels = top_detections(output, top_k=self.top_k)
            return boxes.clamp(0, 1).cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy()


def select_device(device: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one.

    Raises:
        UsageError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"There is no device '{device}'. Expected auto, cpu, cuda or cuda:NUMBER.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"The device '{device}' is not there: PyTorch sees {torch.cuda.device_count()} GPUs. Use 'auto' or 'cpu'."
        )
    if chosen.type not in ("cpu", "cuda"):
        raise UsageError(f"The device '{device}' is not supported. Expected auto, cpu, cuda or cuda:NUMBER.")
    return chosen
