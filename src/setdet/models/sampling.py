"""Bilinear sampling for deformable attention by compiled loops, where a CPU trains."""

import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

Geometry = tuple[NDArray[np.int64], NDArray[np.int64]]


def sample_rows(
    value: Float[Tensor, "batch tokens width"],
    shapes: list[tuple[int, int]],
    locations: Float[Tensor, "batch queries heads points 2"],
    weights: Float[Tensor, "batch queries heads points"],
    *,
    points: tuple[int, ...],
) -> Float[Tensor, "batch queries width"]:
    """As `attention.sample_levels`, from rows of channels: in training on a CPU more than twice as fast.

    Can be differentiated once. Needs Numba (`can_sample_rows`).
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    # Each level's (height, width), and the end of its points.
    geometry = np.array(shapes, dtype=np.int64), np.cumsum(points, dtype=np.int64)
    return _SampleRows.apply(  # type: ignore[no-untyped-call]
        value.to(dtype), locations.to(dtype), weights.to(dtype), geometry
    )


def can_sample_rows(value: Tensor) -> bool:
    """Whether `sample_rows` works here and is the faster one: when a gradient is taken on a CPU, and Numba is there."""
    return value.requires_grad and value.device.type == "cpu" and _has_numba()


class _SampleRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, geometry: Geometry) -> Tensor:
        from setdet.kernels import sample_rows

        given = tuple(tensor.contiguous() for tensor in (value, locations, weights))
        ctx.save_for_backward(*given)
        ctx.geometry = geometry
        out = value.new_empty(len(value), locations.shape[1], value.shape[2])
        _in_threads(sample_rows, _blocks(locations), *geometry, *given, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from setdet.kernels import sample_rows_backward

        given = ctx.saved_tensors
        by_value, by_locations, by_weights = written = tuple(torch.empty_like(tensor) for tensor in given)
        _in_threads(sample_rows_backward, _blocks(given[1]), *ctx.geometry, *given, gradient.contiguous(), *written)
        return by_value, by_locations, by_weights, None


def _blocks(locations: Tensor) -> int:
    return locations.shape[0] * locations.shape[2]  # pictures · heads


def _in_threads(kernel: Callable[..., None], blocks: int, *arguments: Any) -> None:
    """Runs a kernel on all blocks, in as many threads as torch computes with."""
    arrays = [argument.detach().numpy() if isinstance(argument, Tensor) else argument for argument in arguments]
    threads = min(torch.get_num_threads(), blocks)
    bounds = [blocks * part // threads for part in range(threads + 1)]
    own, *parts = pairwise(bounds)
    others = [_pool(os.getpid()).submit(kernel, *part, *arrays) for part in parts]
    kernel(*own, *arrays)
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:  # threads don't survive a fork: one pool a process
    return ThreadPoolExecutor(thread_name_prefix="setdet-sampling")


@functools.cache
def _has_numba() -> bool:
    return importlib.util.find_spec("numba") is not None
