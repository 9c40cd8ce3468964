"""The engine that runs what PyTorch has compiled ahead of time."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from setdet.errors import UsageError, WeightsError, one_line
from setdet.runtime.exported import Engine, ExportInfo, parse_info
from setdet.weights.info import METADATA_KEY


def open_compiled(path: Path, *, device: str, threads: int | None) -> tuple[Engine, ExportInfo]:
    """The engine, and what the file says of itself; arguments as in `setdet.runtime.exported.open_exported`.

    The file is machine code for one picture at a time on the kind of CPU that compiled it; a batch runs one by one.

    Raises:
        WeightsError: the file is broken, of another machine, or not one of setdet's.
        UsageError: the device is not the CPU.
    """
    if device not in ("auto", "cpu"):
        raise UsageError(f"The device '{device}' is not there for a compiled file. Choose one of: auto, cpu.")
    if threads is not None:
        torch.set_num_threads(threads)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise WeightsError(f"{path}: is no file that PyTorch has compiled, or is cut short. Export it again.")
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: PyTorch {torch.__version__} cannot open it ({one_line(error)}). "
            "Export it again, on a machine like this one."
        ) from None
    info = parse_info(package.get_metadata().get(METADATA_KEY), path)

    def run(values: NDArray[Any]) -> list[NDArray[Any]]:
        with torch.inference_mode():
            found = [package(torch.from_numpy(values[index : index + 1])) for index in range(len(values))]
        return [np.concatenate([part.numpy() for part in parts]) for parts in zip(*found, strict=True)]

    return run, info
