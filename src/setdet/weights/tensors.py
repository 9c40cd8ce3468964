"""What is checked of tensors from a file before a model gets them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from setdet.errors import WeightsError
from setdet.weights.remap import State

_COUNT = ".num_batches_tracked"


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What keeps `found` from being loaded where `expected` is, one line each; empty if it fits.

    The count of batches that a norm has seen may be missing: frozen norms don't keep it.
    """
    lines = [f"{name} is missing" for name in expected if name not in found and not name.endswith(_COUNT)]
    lines += [f"{name} is not part of the model" for name in found if name not in expected]
    lines += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    lines += [
        f"{name} holds {str(found[name].dtype).removeprefix('torch.')}, expected {_kind(expected[name])}"
        for name in expected
        if name in found and _kind(found[name]) != _kind(expected[name])
    ]
    return lines


def _kind(tensor: Tensor) -> str:
    return "floating point" if tensor.is_floating_point() else "integers"


def check_fits(lines: list[str], *, lead: str, advice: str = "") -> None:
    """Refuses weights because of `lines` of `differences`.

    Args:
        lines: what differs.
        lead: the sentence's beginning, such as "weights.pth: does not fit rtdetr-r18".
        advice: what to do about it.

    Raises:
        WeightsError: there is a difference; the message names the first three.
    """
    if lines:
        raise WeightsError(f"{lead}, {len(lines)} differences: {'; '.join(lines[:3])}.{advice}")


def take(state: Mapping[str, Tensor], *, source: str) -> State:
    """Copies in memory of their own, so that the file may change or go; floating point becomes float32.

    Raises:
        WeightsError: a tensor holds NaN or infinity.
    """
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise WeightsError(f"{source}: {len(broken)} tensors hold NaN or infinity, first: {', '.join(broken[:3])}.")
    return {name: _copy(tensor) for name, tensor in state.items()}


def _copy(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
