"""setdet: RT-DETR, a real-time object detector you can own.

The public names are loaded when they are first used, so `import setdet` costs nothing and needs no PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from setdet.api import Detector, load, train
    from setdet.detections import Detections
    from setdet.draw import draw_detections
    from setdet.errors import (
        ConfigError,
        DataError,
        ExportError,
        ImageError,
        MissingExtraError,
        OutputError,
        SetdetError,
        TrainingError,
        UnknownFormatError,
        UsageError,
        WeightsError,
    )
    from setdet.models.rtdetr import build_model

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "DataError",
    "Detections",
    "Detector",
    "ExportError",
    "ImageError",
    "MissingExtraError",
    "OutputError",
    "SetdetError",
    "TrainingError",
    "UnknownFormatError",
    "UsageError",
    "WeightsError",
    "__version__",
    "build_model",
    "draw_detections",
    "load",
    "train",
]

_HOMES = {
    "Detections": "setdet.detections",
    "Detector": "setdet.api",
    "build_model": "setdet.models.rtdetr",
    "draw_detections": "setdet.draw",
    "load": "setdet.api",
    "train": "setdet.api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'setdet' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES.get(name, "setdet.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
