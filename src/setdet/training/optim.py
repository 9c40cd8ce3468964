"""The optimiser: which parameters train, at which rate, with which decay, and a table that says so."""

from dataclasses import dataclass

import torch
from rich.table import Table
from torch import nn

from setdet.errors import ConfigError, TrainingError
from setdet.training.config import TrainConfig


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        title: what to call them in the summary.
        parameters: those that are not frozen.
        learning_rate: peak rate.
        weight_decay: of AdamW.
    """

    title: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float

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


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[ParameterGroup]:
    """Splits what trains into backbone and rest, each with and without weight decay; empty groups are left out.

    Raises:
        TrainingError: everything is frozen.
    """
    backbone_rate = config.learning_rate if config.backbone_rate is None else config.backbone_rate
    groups = []
    for part, in_backbone, rate in (("backbone", True, backbone_rate), ("rest", False, config.learning_rate)):
        for kind, vector, decay in (("weights", False, config.weight_decay), ("norms and biases", True, 0.0)):
            parameters = tuple(
                parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and is_backbone(name) == in_backbone and is_norm_or_bias(parameter) == vector
            )
            if parameters:
                groups.append(ParameterGroup(f"{part}: {kind}", parameters, rate, decay))
    if not groups:
        raise TrainingError(f"Nothing to train: freeze={list(config.freeze)} freezes every parameter.")
    return groups


def build_optimizer(groups: list[ParameterGroup], *, fused: bool) -> torch.optim.AdamW:
    """AdamW with the published momenta. Each group keeps its peak rate as `peak_rate` for the schedule."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.parameters),
                "lr": group.learning_rate,
                "peak_rate": group.learning_rate,
                "weight_decay": group.weight_decay,
            }
            for group in groups
        ],
        betas=(0.9, 0.999),
        fused=fused,
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
    table = Table("parameters", "number", "peak rate", "weight decay", title="What trains", title_justify="left")
    for group in groups:
        table.add_row(group.title, f"{group.size:,}", f"{group.learning_rate:g}", f"{group.weight_decay:g}")
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    if frozen:
        table.add_row("frozen", f"{frozen:,}", "-", "-")
    return table
