"""Tensors from `torch.save` files. What is in them is never executed."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from setdet.errors import WeightsError

_ZIP = b"PK\x03\x04"
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote: tensors, numbers and texts in lists and dictionaries; tensors stay in the file.

    Raises:
        WeightsError: the file is missing or broken, or holds anything else, which only running code could rebuild.
    """
    try:
        with path.open("rb") as file:
            mapped = file.read(len(_ZIP)) == _ZIP  # files of PyTorch before 1.6 cannot be mapped into memory
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    except Exception as error:  # a broken file fails anywhere in the reader
        if isinstance(error, pickle.UnpicklingError) and (found := _GLOBAL.search(str(error))):
            raise WeightsError(_refusal(path, found.group(1))) from None
        raise WeightsError(
            f"{path}: is neither a safetensors file nor a whole PyTorch checkpoint; it may be cut short. "
            "Copy or download it again. (Pickles are never executed: only tensors are read.)"
        ) from None


def _refusal(path: Path, name: str) -> str:
    if name.startswith("ultralytics"):
        return (
            f"{path}: is a checkpoint of Ultralytics: a pickled Python object ({name}) of AGPL-3.0 code, which only "
            "that code can rebuild. Pickles are never executed. Use the RT-DETR authors' weights (`setdet models`)."
        )
    return (
        f"{path}: holds a pickled Python object ({name}). Rebuilding it means running code from the file, so pickles "
        "are never executed. Where you trust its makers, save its tensors alone: "
        "torch.save({'model': model.state_dict()}, …)."
    )
