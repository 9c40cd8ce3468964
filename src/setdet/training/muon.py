"""Muon (Jordan et al. 2024): weights that are matrices move by orthogonal matrices; AdamW moves the others."""

import re
from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.95
# An odd polynomial that, applied again and again, moves every singular value between 0 and 1 close to 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
# Rounds by the polynomial's factors alone, and again: after five at a stretch too little is left of bfloat16.
_ROUNDS = (2, 3)
# A step's root mean square, in learning rates: four times what AdamW's measures (Liu et al. 2025, "Muon is Scalable for
# LLM Training", equation 4), the best of one, two and four times, so that one rate does for both.
_STEP_SIZE = 0.8


def orthogonalize(matrices: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """The nearest matrices whose rows (or columns, where there are fewer) are orthonormal, roughly: singular values
    end between 0.7 and 1.2, which trains as well as 1.

    A round is X ← (a + b XXᵀ + c (XXᵀ)²) X. The factors commute and have the shorter side alone: rounds are made of
    them, and X is multiplied once, by their product. For filters of 3 × 3, often nine times as long as high, that is
    half the work.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the products below are of the shorter side
    squares = x @ x.mT
    norm = squares.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float32).clamp(min=1e-14).sqrt()
    norm = norm[:, None, None].to(x.dtype)
    first, *others = _ROUNDS
    x = _rounds(squares / norm**2, first) / norm @ x
    for rounds in others:
        x = _rounds(x @ x.mT, rounds) @ x
    return x.mT if tall else x


def _rounds(squares: Float[Tensor, "count side side"], count: int) -> Float[Tensor, "count side side"]:
    """What that many rounds multiply X by, from XXᵀ."""
    product = factor = _factor(squares)
    for _ in range(count - 1):
        squares = factor @ squares @ factor
        factor = _factor(squares)
        product = factor @ product
    return product


def _factor(squares: Float[Tensor, "count side side"]) -> Float[Tensor, "count side side"]:
    a, b, c = _QUINTIC
    factor = torch.baddbmm(squares, squares, squares, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


class MuonAdamW(torch.optim.AdamW):
    """AdamW, but groups with `matrices` > 0 take Muon's steps.

    Each weight of such a group is that many matrices of equal size, one below the other (query, key and value of an
    attention are three); a convolution's matrix has a row for each of its filters. `torch.optim.Muon` takes neither,
    and goes through its matrices one by one; here those of a shape go together.

    Args:
        groups: as for `torch.optim.AdamW`, each with `matrices`.
        dtype: of the matrix products; bfloat16 is enough.
        fused: as for `torch.optim.AdamW`. If so, and the attribute `found_inf` is not 0, a step changes nothing.
    """

    def __init__(self, groups: list[dict[str, Any]], *, dtype: torch.dtype, fused: bool) -> None:
        super().__init__(groups, betas=(0.9, 0.999), fused=fused, foreach=not fused)
        self._dtype = dtype

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            group.setdefault("matrices", 0)  # saved before there was Muon

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves the weights. There is no closure to evaluate again."""
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["matrices"]]
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["matrices"]:
                self._muon_step(group)

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        """What the fused kernel is given: of weights that are channels last views that aren't.

        On a CPU it makes copies of what is not contiguous, and pairs the numbers of a weight and of a gradient as they
        lie in memory, even where they don't lie alike.
        """
        has_complex = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        weights, gradients, *_ = lists
        turned = [weight.ndim == 4 and not weight.is_contiguous() for weight in weights]
        for tensors in lists:
            for index, turn in enumerate(turned[: len(tensors)]):
                if turn and tensors[index].ndim == 4:
                    tensors[index] = tensors[index].permute(0, 2, 3, 1)
        gradients[:] = [gradient.contiguous() for gradient in gradients]
        return has_complex

    def _muon_step(self, group: dict[str, Any]) -> None:
        weights = [weight for weight in group["params"] if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:  # AdamW, which reads saved states, looks for the steps
                step = torch.zeros((), dtype=torch.float32, device=weight.device)
                self.state[weight].update(step=step, momentum=torch.zeros_like(weight))
        momenta = [self.state[weight]["momentum"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        taken: Tensor | float = 1.0
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:  # as the fused kernel does, without waiting for the device
            finite = torch.eq(found_inf, 0)
            taken = finite.to(torch.float32)
            gradients = [torch.where(finite, g, m) for g, m in zip(gradients, momenta, strict=True)]
        counts = [self.state[weight]["step"] for weight in weights]
        # One for each: a single tensor would be read as a number, for which the device is waited for.
        torch._foreach_add_(counts, [taken] * len(counts) if isinstance(taken, Tensor) else taken)
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)  # Nesterov's

        rate = group["lr"] * taken
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
        alike = defaultdict(list)
        for weight, direction in zip(map(_as_stored, weights), map(_as_stored, ahead), strict=True):
            matrices = direction.to(self._dtype).reshape(group["matrices"], -1, weight[0].numel())
            alike[weight.shape].append((weight, matrices))
        for pairs in alike.values():
            members, directions = zip(*pairs, strict=True)
            steps = orthogonalize(torch.cat(directions))
            size = _STEP_SIZE * max(steps.shape[1:]) ** 0.5
            for weight, step in zip(members, steps.split(group["matrices"]), strict=True):
                weight.sub_(step.reshape(weight.shape) * (rate * size))


def _as_stored(weight: Tensor) -> Tensor:
    """Columns in the order of memory, which spares copies: in which order they stand changes nothing for Muon."""
    return weight.permute(0, 2, 3, 1) if weight.ndim == 4 else weight


# Where no matrix turns features into features: pictures come in, labels and queries are looked up, classes, boxes and
# places go out.
_NO_MATRIX = re.compile(
    r"stem\.(0|conv1)\.conv|embedding|query_selection\.(content|reference_logits)"
    r"|class_head|box_head.*layers\.2|sampling_offsets"
)


def matrices_in(name: str, parameter: nn.Parameter) -> int:
    """How many matrices the parameter of that name is for Muon: 0 where it is left to AdamW, 3 for an attention's
    query, key and value, else 1.
    """
    depthwise = parameter.ndim == 4 and parameter.shape[1] == 1
    if parameter.ndim < 2 or depthwise or _NO_MATRIX.search(name):
        return 0
    return 3 if name.endswith("in_proj.weight") else 1
