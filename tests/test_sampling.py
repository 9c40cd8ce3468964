"""The compiled sampling against PyTorch's, values and gradients."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from setdet.models import sampling
from setdet.models.attention import sample_levels
from setdet.models.rtdetr import build_model
from setdet.models.sampling import can_sample_rows, sample_rows

SHAPES = [(7, 5), (4, 3), (1, 2)]
POINTS = (4, 2, 3)
TOKENS = sum(height * width for height, width in SHAPES)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations (many of them outside) and weights of 2 pictures, 11 queries, 3 heads."""
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, TOKENS, 3 * 8, generator=generator, dtype=dtype)
    locations = torch.rand(2, 11, 3, sum(POINTS), 2, generator=generator, dtype=dtype) * 2 - 0.5
    weights = torch.rand(2, 11, 3, sum(POINTS), generator=generator, dtype=dtype)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


def by_levels(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return sample_levels(value.transpose(1, 2), SHAPES, locations, weights, points=POINTS, sampling="bilinear")


def by_rows(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return sample_rows(value, SHAPES, locations, weights, points=POINTS)


def test_values_and_gradients_are_those_of_grid_sample() -> None:
    given = inputs()
    expected, found = by_levels(*given), by_rows(*given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    direction = torch.randn(expected.shape, dtype=expected.dtype)
    gradients = [torch.autograd.grad(out, given, direction) for out in (expected, found)]
    for name, theirs, ours in zip(("value", "locations", "weights"), *gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_gradients_are_those_of_finite_differences() -> None:
    value, locations, weights = inputs()
    assert torch.autograd.gradcheck(by_rows, (value, locations[:, :2].detach().requires_grad_(), weights[:, :2]))


def test_half_precision_is_sampled_in_single() -> None:
    value, locations, weights = inputs(torch.float32)
    half = value.detach().bfloat16().requires_grad_()
    found = by_rows(half, locations, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, by_levels(half, locations, weights), rtol=0, atol=1e-5)
    found.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16


def test_a_location_that_is_no_number_samples_nothing() -> None:
    value, locations, weights = inputs()
    broken = locations.detach().clone()
    broken[0, 0, 0] = torch.tensor([np.nan, np.inf])
    broken[0, 1, 0] = torch.tensor([-1e30, 0.5])
    out = by_rows(value, broken.requires_grad_(), weights)
    assert out[0, :2, :8].abs().max() == 0
    out.sum().backward()
    assert value.grad is not None and value.grad.isfinite().all()


def test_the_number_of_threads_changes_no_bit() -> None:
    given, threads = inputs(torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            out = by_rows(*given)
            results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_model_trains_the_same_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("rtdetr-n", num_classes=2).double().train()
    images = torch.rand(2, 3, 64, 96).double()
    assert can_sample_rows(torch.zeros(1, requires_grad=True))
    gradients = []
    for available in (True, False):
        monkeypatch.setattr(sampling, "_has_numba", lambda available=available: available)
        output = model(images)
        loss = output.logits.square().sum() + output.boxes_cxcywh.square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.backbone.parameters())))
    for with_it, without in zip(*gradients, strict=True):
        torch.testing.assert_close(with_it, without, rtol=1e-6, atol=1e-9)


def test_a_worker_forked_after_sampling_can_sample_too() -> None:
    code = (
        "import os, torch\n"
        "from test_sampling import by_rows, inputs\n"
        "torch.set_num_threads(2); by_rows(*inputs()); child = os.fork()\n"
        "if not child: by_rows(*inputs()); os._exit(0)\n"
        "os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=os.path.dirname(__file__), timeout=60, check=False
    )
    assert done.returncode == 0
