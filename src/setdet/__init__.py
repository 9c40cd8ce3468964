"""setdet: RT-DETR, a real-time object detector you can own.

The public names are loaded when they are first used, so `import setdet` costs nothing and needs no PyTorch.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from setdet.api import Detector, load, train
    from setdet.detections import Detections
    from setdet.draw import draw_detections
    from setdet.errors import (
        ConfigError,
        DataError,
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
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'setdet' has no attribute '{name}'")
    if name == "train":
        return importlib.import_module("setdet.train")
    return getattr(importlib.import_module(_HOMES.get(name, "setdet.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _TrainRoom(ModuleType):
    """The room `setdet.train`, which can be called: `setdet.train(data, …)` is `setdet.api.train`.

    The function and the room have one name, and importing anything from the room puts it where the function was.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("setdet.api").train(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(importlib.import_module("setdet.api").train)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and type(value) is ModuleType:  # the import system binds the room
            value.__class__ = _TrainRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
