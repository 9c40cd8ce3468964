"""The optimiser for matrices: beside `torch.optim`, and which weights it takes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from setdet.models.rtdetr import build_model
from setdet.training.muon import MuonAdamW, matrices_in, orthogonalize

SETTINGS = {"lr": 0.01, "weight_decay": 0.1}


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], gradients: list[list[Tensor]]) -> None:
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()


def made(*shapes: tuple[int, ...]) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """Weights, and their gradients in four steps."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    return weights, [[torch.randn(shape) for shape in shapes] for _ in range(4)]


def ours(weights: list[nn.Parameter], *, matrices: int, dtype: torch.dtype = torch.float64) -> MuonAdamW:
    return MuonAdamW([{"params": weights, "matrices": matrices, **SETTINGS}], dtype=dtype, fused=True)


class Calls(TorchDispatchMode):
    """The names of all that PyTorch does."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device() -> None:
    weights, gradients = made((8, 4), (6, 4, 3, 3))
    optimizer = ours(weights, matrices=1, dtype=torch.float32)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    with Calls() as calls:
        train(optimizer, weights, gradients)
    assert any("mm" in name for name in calls.names)
    assert not [name for name in calls.names if "local_scalar" in name or "nonzero" in name or "equal" in name]


@pytest.mark.parametrize("shape", [(2, 8, 40), (1, 40, 8), (3, 16, 16)])
def test_orthogonal_matrices_are_close_to_the_nearest(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    given = torch.randn(shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(given, full_matrices=False)
    found = orthogonalize(given)
    keep = left.mT @ found @ right.mT  # the found one in the singular vectors of the given one
    singular = keep.diagonal(dim1=1, dim2=2)
    large = values > 0.05 * values.amax(dim=1, keepdim=True)  # the smallest need more rounds
    assert ((singular[large] > 0.65) & (singular[large] < 1.25)).all()
    assert (keep - torch.diag_embed(singular)).abs().max() < 1e-6  # singular vectors stay
    assert orthogonalize(torch.zeros(shape)).abs().max() == 0


def test_factors_alone_are_the_rounds_as_written() -> None:
    torch.manual_seed(3)
    given = torch.randn(2, 12, 40, dtype=torch.float64)
    x = given / given.norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * (x @ x.mT @ x) + 2.0315 * (x @ x.mT @ x @ x.mT @ x)
    torch.testing.assert_close(orthogonalize(given), x)


@pytest.mark.parametrize("share", [1.0, 0.1, 1e-2, 1e-3, 0.0])
def test_bfloat16_is_enough(share: float) -> None:
    """Of whatever rank the gradient is: beside one large singular value, others are that share of it."""
    torch.manual_seed(4)
    given = torch.randn(1, 64, 1) @ torch.randn(1, 1, 256) + share * torch.randn(1, 64, 256)
    found = torch.linalg.svdvals(orthogonalize(given.bfloat16()).float())
    exact = torch.linalg.svdvals(orthogonalize(given.double()))
    assert found.max() < 1.25 and (found.mean() - exact.mean()).abs() < 0.15


def test_matrices_move_as_by_torch() -> None:
    shapes = ((24, 40), (40, 24), (24, 40))
    weights, gradients = made(*shapes)
    train(ours(weights, matrices=1), weights, gradients)
    others, _ = made(*shapes)
    # Four times its steps (and a quarter of its decay, which is per rate).
    theirs = {"lr": 4 * SETTINGS["lr"], "weight_decay": SETTINGS["weight_decay"] / 4}
    train(torch.optim.Muon(others, adjust_lr_fn="match_rms_adamw", **theirs), others, gradients)  # type: ignore[arg-type]
    starts, _ = made(*shapes)
    for weight, other, start in zip(weights, others, starts, strict=True):
        moved = (other - start).norm()
        assert moved > 0.02 and (weight - other).norm() < 0.02 * moved  # theirs is in bfloat16


def test_filters_are_rows_and_an_attention_is_three_matrices() -> None:
    (filters,), gradients = made((8, 4, 3, 3))
    filters.data = filters.data.contiguous(memory_format=torch.channels_last)
    (flat,), _ = made((8, 36))
    train(ours([filters], matrices=1), [filters], gradients)
    train(ours([flat], matrices=1), [flat], [[g[0].flatten(1)] for g in gradients])
    torch.testing.assert_close(filters.flatten(1), flat)
    assert filters.is_contiguous(memory_format=torch.channels_last)

    (stacked,), gradients = made((30, 10))
    (same,), _ = made((30, 10))
    parts = [nn.Parameter(part.clone()) for part in same.data.split(10)]
    train(ours([stacked], matrices=3), [stacked], gradients)
    train(ours(parts, matrices=1), parts, [list(g[0].split(10)) for g in gradients])
    torch.testing.assert_close(stacked, torch.cat(parts))


def test_the_rest_moves_by_adamw_to_the_bit() -> None:
    weights, gradients = made((6,), (5, 7), (12, 8))
    others, _ = made((6,), (5, 7), (12, 8))
    groups: list[dict[str, Any]] = [
        {"params": weights[:2], "matrices": 0, **SETTINGS},
        {"params": weights[2:], "matrices": 1, **SETTINGS},
    ]
    train(MuonAdamW(groups, dtype=torch.float32, fused=True), weights, gradients)
    train(torch.optim.AdamW(others[:2], fused=True, **SETTINGS), others[:2], [g[:2] for g in gradients])
    assert torch.equal(weights[0], others[0]) and torch.equal(weights[1], others[1])


@pytest.mark.parametrize("gradient_format", [torch.channels_last, torch.contiguous_format])
def test_adamw_of_filters_does_not_depend_on_how_they_lie(gradient_format: torch.memory_format) -> None:
    """The fused kernel pairs the numbers of a weight and a gradient as they lie, even where they lie otherwise."""
    (filters,), gradients = made((8, 4, 3, 3))
    (same,), _ = made((8, 4, 3, 3))
    filters.data = filters.data.contiguous(memory_format=torch.channels_last)
    laid = [[g[0].contiguous(memory_format=gradient_format)] for g in gradients]
    train(ours([filters], matrices=0), [filters], laid)
    train(torch.optim.AdamW([same], fused=True, **SETTINGS), [same], gradients)
    torch.testing.assert_close(filters.contiguous(), same)
    assert filters.is_contiguous(memory_format=torch.channels_last)


def test_weights_without_a_gradient_stay() -> None:
    weights, gradients = made((6, 6), (6, 6))
    start = weights[1].detach().clone()
    train(ours(weights, matrices=1), weights[:1], [g[:1] for g in gradients])
    assert torch.equal(weights[1], start)


@pytest.mark.parametrize("name", ["rtdetr-n", "rtdetr-r18", "rtdetr-hgnetv2-l"])
def test_what_is_no_matrix_is_left_to_adamw(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=3)
    taken = {key: matrices_in(key, parameter) for key, parameter in model.named_parameters()}
    assert {key for key, count in taken.items() if count == 3} == {key for key in taken if "in_proj.weight" in key}
    left = {key for key, parameter in model.named_parameters() if parameter.ndim > 1 and not taken[key]}
    first = next(key for key, parameter in model.named_parameters() if parameter.ndim == 4)
    depthwise = {
        f"{key}.weight" for key, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    heads = {
        key
        for key, parameter in model.named_parameters()
        if "head" in key and parameter.ndim == 2 and parameter.shape[0] in (3, 4)
    }
    offsets = {key for key in taken if key.endswith("sampling_offsets.weight")}
    assert left == {first, "decoder.denoising_embedding.weight"} | depthwise | heads | offsets
