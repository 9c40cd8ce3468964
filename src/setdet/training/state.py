"""The training state on disk: all that a run needs to go on as if it had never stopped."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from setdet.data.schema import Record
from setdet.errors import ConfigError, TrainingError
from setdet.training.config import TrainConfig
from setdet.training.ema import Ema
from setdet.weights.whole import write_whole

FORMAT = 2
# What may change between the parts of one run without changing its numbers.
_FREE_TO_CHANGE = {"workers", "checkpoint_every_steps"}


@dataclass
class Progress:
    """How far a run has come. Plain values only.

    Attributes:
        epoch: running epoch, from 0.
        batch: batches of it that are done; all of them means that its evaluation is due.
        step: optimiser steps taken in the run.
        seconds: time spent so far, over all parts of the run.
        best_ap: highest AP on the selection part; None before the first evaluation or where nothing is selected.
        best_epoch: epoch (from 1) of `best_ap`.
        metrics: of the last evaluation, or that of `best_epoch` where one is chosen; empty before the first.
        loss_sums: of each term over the batches of the running epoch.
        loss_batches: how many batches `loss_sums` holds.
        matched: what `setdet.analyze.matching` saw after the last whole epoch; empty before.
        evaluation_data: fingerprint of the pictures that it is measured on; empty before the run has begun.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_ap: float | None = None
    best_epoch: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    loss_sums: dict[str, float] = field(default_factory=dict)
    loss_batches: int = 0
    matched: dict[str, list[Any]] = field(default_factory=dict)
    evaluation_data: str = ""


def fingerprint(records: tuple[Record, ...], class_names: tuple[str, ...]) -> str:
    """A short name for pictures: class names, pictures' names, and all that is said of their boxes."""
    digest = hashlib.sha256("\0".join(class_names).encode())
    for record in records:
        digest.update(f"\n{record.image.name}\0".encode())
        for values in (record.boxes_xyxy_px, record.labels, record.crowd):
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def save_state(
    path: Path,
    *,
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    fabric: Fabric,
    progress: Progress,
    config: TrainConfig,
    data: str,
) -> None:
    """Writes the state so that a crash at any moment leaves either the old file or the new one.

    The schedule needs no state (it is a function of the step), nor do the data's order and the noise (functions of
    seed, epoch and position).

    Raises:
        WriteError: it cannot be written; what was there before is as it was.
    """
    content = {
        "format": FORMAT,
        "model": model.state_dict(),
        "ema": ema.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": fabric.strategy.precision.state_dict(),
        "progress": asdict(progress),
        "config": config.to_dict(),
        "data": data,
        "processes": fabric.world_size,
    }

    def write(name: str) -> None:
        with open(name, "wb") as file:
            torch.save(content, file)

    write_whole(path, write)


def load_state(
    path: Path,
    *,
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer,
    fabric: Fabric,
    config: TrainConfig,
    data: str,
) -> Progress:
    """Fills model, average, optimiser and scaler from a file of `save_state`.

    Raises:
        TrainingError: the file cannot be read, or belongs to another data set or number of processes.
        ConfigError: it belongs to another configuration.
    """
    content = _read(path)
    _check_same_run(path, content, config=config, data=data, processes=fabric.world_size)
    try:
        model.load_state_dict(content["model"])
        ema.module.load_state_dict(content["ema"])
        optimizer.load_state_dict(content["optimizer"])
        fabric.strategy.precision.load_state_dict(content["scaler"])
        return Progress(**content["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unusable(path, error) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the restricted unpickler raise nearly anything
        raise _unusable(path, error) from None
    if not isinstance(content, dict) or "format" not in content:
        raise _unusable(path, "it lacks the state's parts")
    if content["format"] != FORMAT:
        raise TrainingError(f"{path}: is a state of format {content['format']}; this version reads format {FORMAT}.")
    return content


def _unusable(path: Path, why: object) -> TrainingError:
    return TrainingError(f"{path}: is no training state that this run can go on from ({why}). Train into a new folder.")


def _check_same_run(path: Path, content: dict[str, Any], *, config: TrainConfig, data: str, processes: int) -> None:
    # Read as a configuration: what a later version has added stands at its default, which changes nothing.
    before = TrainConfig.from_dict(content["config"], source=f"{path}: its configuration").to_dict()
    now = config.to_dict()
    changed = sorted(
        name for name in before.keys() | now.keys() if name not in _FREE_TO_CHANGE and before.get(name) != now.get(name)
    )
    if changed:
        listed = ", ".join(f"{name} (was {before.get(name)!r}, now {now.get(name)!r})" for name in changed)
        raise ConfigError(
            f"{path}: resuming needs the run's own configuration (its config.yaml), but these differ: {listed}. "
            "To train otherwise, start a new run with init set to this folder."
        )
    if content["data"] != data:
        raise TrainingError(
            f"{path}: the run was started on other training pictures, boxes or classes. "
            "Resume with the same data, or start a new run with init set to this folder."
        )
    if content["processes"] != processes:
        raise TrainingError(
            f"{path}: the run was started with {content['processes']} process(es) and these are {processes}, which "
            f"would share its steps differently. Resume with torchrun --nproc-per-node {content['processes']}, or "
            "start a new run with init set to this folder."
        )
