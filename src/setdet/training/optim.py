"""The optimiser: which parameters train, at which rate, with which decay, and a table that says so."""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from setdet.errors import ConfigError, TrainingError
from setdet.training.config import TrainConfig
from setdet.training.muon import MuonAdamW, matrices_in


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        title: what to call them in the summary.
        parameters: those that are not frozen.
        learning_rate: peak rate.
        weight_decay: share of a weight that a step takes away, times its rate.
        matrices: how many matrices each of them is for Muon; 0: AdamW trains them.
    """

    title: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float
    matrices: int = 0

    @property
    def size(self) -> int:
        """Numbers in them."""
        return sum(parameter.numel() for parameter in self.parameters)


def is_backbone(name: str) -> bool:
    """Whether a parameter of that name belongs to the backbone."""
    return name.startswith("backbone.")


def is_norm_or_bias(parameter: nn.Parameter) -> bool:
    """Scales, shifts and biases are vectors; everything else has two dimensions or more."""
    return parameter.ndim < 2


# What trains alike within the backbone and within the rest: does it decay, and how many matrices is one weight?
_KINDS = (
    ("weights", True, 0),
    ("matrices", True, 1),
    ("query, key and value", True, 3),
    ("norms and biases", False, 0),
)


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Splits what trains into backbone and rest, and each by kind; empty groups are left out.

    Raises:
        TrainingError: everything is frozen.
    """
    backbone_rate = config.learning_rate if config.backbone_rate is None else config.backbone_rate
    groups = []
    for part, in_backbone, rate in (("backbone", True, backbone_rate), ("rest", False, config.learning_rate)):
        for kind, decays, matrices in _KINDS:
            parameters = tuple(
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and is_backbone(name) == in_backbone
                and is_norm_or_bias(parameter) != decays
                and (matrices_in(name, parameter) if config.optimizer == "muon" else 0) == matrices
            )
            if parameters:
                decay = config.weight_decay if decays else 0.0
                groups.append(ParameterGroup(f"{part}: {kind}", parameters, rate, decay, matrices))
    if not groups:
        raise TrainingError(f"Nothing to train: freeze={list(config.freeze)} freezes every parameter.")
    return groups


def build_optimizer(groups: list[ParameterGroup], *, precision: str) -> MuonAdamW:
    """Muon for groups of matrices, AdamW with the published momenta for others.

    Each group keeps its peak rate as `peak_rate` for the schedule.

    Args:
        groups: of `parameter_groups`.
        precision: of the run: "fp32", "bf16" or "fp16".
    """
    return MuonAdamW(
        [
            {
                "params": list(group.parameters),
                "lr": group.learning_rate,
                "peak_rate": group.learning_rate,
                "weight_decay": group.weight_decay,
                "matrices": group.matrices,
            }
            for group in groups
        ],
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        # Fused AdamW unscales gradients by itself, after clipping: with fp16's loss scaling that is too late.
        fused=precision != "fp16",
    )


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_rate"] * factor


def frozen_modules(model: nn.Module, parts: tuple[str, ...]) -> list[nn.Module]:
    """The modules that the readable names of `TrainConfig.freeze` stand for.

    Raises:
        ConfigError: the model has no such part.
    """
    modules: list[nn.Module] = []
    known = dict(model.named_modules())
    for part in parts:
        if part == "norms":
            modules += [
                module
                for name, module in known.items()
                if is_backbone(name) and isinstance(module, nn.modules.batchnorm._BatchNorm)
            ]
        elif part and part in known:
            modules.append(known[part])
        else:
            top = ", ".join(["norms", *(name for name, _ in model.named_children())])
            raise ConfigError(
                f"freeze: the model has no part '{part}'. Known: {top}, or a submodule such as 'backbone.stem'."
            )
    return modules


def set_training_mode(model: nn.Module, frozen: list[nn.Module]) -> None:
    """Training mode, but frozen parts keep their weights and the statistics of their norms."""
    model.train()
    for module in frozen:
        module.eval().requires_grad_(False)


def summary(groups: list[ParameterGroup], model: nn.Module) -> Table:
    """Who trains how, as a table for the terminal."""
    table = Table("parameters", "number", "by", "peak rate", "weight decay", title="What trains", title_justify="left")
    for group in groups:
        optimizer = "Muon" if group.matrices else "AdamW"
        table.add_row(group.title, f"{group.size:,}", optimizer, f"{group.learning_rate:g}", f"{group.weight_decay:g}")
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if frozen:
        table.add_row("frozen", f"{frozen:,}", "-", "-", "-")
    return table
