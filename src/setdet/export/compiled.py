"""Machine code by PyTorch's own compiler (AOTInductor), which PyTorch runs without any of our Python."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from setdet.errors import UsageError
from setdet.export.graph import DetectionGraph
from setdet.runtime.exported import ExportInfo
from setdet.weights.info import METADATA_KEY


class _Autocast(nn.Module):
    """In bfloat16 as PyTorch's autocast has it: convolutions and matrix products, not boxes."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.detector = graph  # `graph` is a name that torch.fx takes for itself

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(out.float() if out.is_floating_point() else out for out in self.detector(images))


def compile_ahead(graph: DetectionGraph, path: Path, *, info: ExportInfo) -> None:
    """Compiles for this machine's CPU, one picture at a time, weights frozen in the layout that each kernel likes.

    Raises:
        UsageError: there is no C++ compiler.
    """
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise UsageError("--format pt2 compiles: install a C++ compiler (Debian: apt install g++) and try again.")
    height, width = info.checkpoint.preprocessing.image_size
    example = torch.zeros(1, 3, height, width)
    network: nn.Module = graph.eval() if info.precision == "fp32" else _Autocast(graph).eval()
    with _quiet(), torch.no_grad():
        program = torch.export.export(network, (example,))
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={"freezing": True, "aot_inductor.metadata": {METADATA_KEY: info.model_dump_json()}},
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("torch")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)
