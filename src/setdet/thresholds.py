"""The lowest scores to keep: one for all classes, or one for each. No torch."""

import json
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setdet.config import suggest
from setdet.errors import DataError, UsageError

Threshold = float | Mapping[str, float]
"""A score from 0 to 1 for all classes, or class name → score."""


def lowest_scores(threshold: Threshold, class_names: Sequence[str]) -> NDArray[np.float32]:
    """(classes,) the lowest score to keep of each class.

    Raises:
        UsageError: one is no score, or a mapping doesn't name just the classes that there are.
    """
    if not isinstance(threshold, Mapping):
        if not _is_score(threshold):
            raise UsageError(f"The threshold is {threshold}; expected a score from 0 to 1.")
        return np.full(len(class_names), threshold, dtype=np.float32)
    for name, value in threshold.items():
        if name not in class_names:
            raise UsageError(
                f"There is a threshold for '{name}', which the detector doesn't know.{suggest(name, class_names)} "
                f"It knows: {', '.join(class_names)}."
            )
        if not _is_score(value):
            raise UsageError(f"The threshold of '{name}' is {value}; expected a score from 0 to 1.")
    missing = [name for name in class_names if name not in threshold]
    if missing:
        raise UsageError(f"There is no threshold for {', '.join(missing)}. Give every class one.")
    return np.array([threshold[name] for name in class_names], dtype=np.float32)


def read_thresholds(path: Path) -> dict[str, float]:
    """Class name → score, of a JSON file with these under "thresholds", as `setdet analyze errors` writes it.

    Raises:
        DataError: the file is not there, or no such file. Whether classes and scores fit the detector is for
            `lowest_scores` to say.
    """
    expected = 'Expected a JSON object as in {"thresholds": {"crack": 0.4, "pit": 0.25}}.'
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {expected}") from None
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}). {expected}") from None
    thresholds = document.get("thresholds") if isinstance(document, dict) else None
    if not isinstance(thresholds, dict) or not thresholds:
        raise DataError(f"{path}: holds no thresholds. {expected}")
    for name, value in thresholds.items():
        if not _is_score(value):
            raise DataError(f"{path}: the threshold of '{name}' is {value!r}; expected a score from 0 to 1.")
    return {name: float(value) for name, value in thresholds.items()}


def _is_score(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= float(value) <= 1
