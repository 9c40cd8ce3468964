"""`transformers`' implementation with the same weights, to be timed beside ours."""

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from setdet.errors import MissingExtraError
from setdet.models.rtdetr import RTDETR
from setdet.weights.info import CheckpointInfo
from setdet.weights.writing import write_transformers


def transformers_peers(
    info: CheckpointInfo, model: RTDETR, *, precision: str, threads: int | None, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Their model on one picture of the network's size, by name: eager, and on a CPU through OpenVINO if that is there.

    Through OpenVINO as a user would do it: `ov.convert_model` with a static shape, the latency hint.

    Args:
        info: of the weights, with the input's size.
        model: the weights.
        precision: "fp32" or "bf16", of either.
        threads: of OpenVINO; eager has those of the process.
        device: where ours runs beside it.

    Raises:
        MissingExtraError: transformers is not installed.
        UsageError: it has no such model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingExtraError(module="transformers", extra="dev", purpose="Timing transformers")
    from transformers import AutoModelForObjectDetection
    from transformers.utils import logging

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_transformers(Path(folder, "model"), info=info, state=model.state_dict())
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        peer = AutoModelForObjectDetection.from_pretrained(Path(folder, "model")).eval()
    images = torch.rand(1, 3, *info.preprocessing.image_size)
    peers = {f"transformers, PyTorch, {precision}": _eager(peer, images.to(device), precision=precision)}
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        peers[f"transformers, OpenVINO, {precision}"] = _openvino(peer, images, precision=precision, threads=threads)
    return peers


def _eager(peer: nn.Module, images: Tensor, *, precision: str) -> Callable[[], object]:
    peer = peer.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = images.contiguous(memory_format=torch.channels_last)

    def run() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = peer(pixel_values=images)
            return output.logits.cpu(), output.pred_boxes.cpu()  # as ours, which waits for the device

    return run


class _Tensors(nn.Module):
    """Their model without their output's class, which tracing doesn't know."""

    def __init__(self, peer: nn.Module) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.peer(pixel_values=images)
        return output.logits, output.pred_boxes


def _openvino(peer: nn.Module, images: Tensor, *, precision: str, threads: int | None) -> Callable[[], object]:
    import openvino as ov

    from setdet.runtime.openvino import openvino_core

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = ov.convert_model(_Tensors(peer).eval(), example_input=images, input=list(images.shape))
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads  # type: ignore[assignment]
    compiled = openvino_core().compile_model(graph, "CPU", config)
    values = images.contiguous().numpy()
    return lambda: compiled(values, share_inputs=True)
