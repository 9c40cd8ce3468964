"""What a run is made of: its folder, its pictures, its model and optimiser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from setdet.data.schema import Dataset, Record
from setdet.data.sources import hold_out, make_splits
from setdet.data.transforms import AugmentConfig
from setdet.errors import OutputError, TrainingError
from setdet.losses.criterion import Criterion
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import ModelConfig, model_config
from setdet.training.config import TrainConfig
from setdet.training.ema import Ema, decay_for, warmup_for
from setdet.training.optim import ParameterGroup, build_optimizer, frozen_modules, parameter_groups, set_training_mode
from setdet.training.schedule import warmup_steps_for
from setdet.weights.catalog import resolve
from setdet.weights.files import initialize_from, load_backbone

STATE = Path("state") / "state.pt"


@dataclass(frozen=True)
class Pictures:
    """Which pictures are for what.

    Attributes:
        root: the data set's folder or file.
        training: learnt from.
        evaluation: measured on after epochs; empty for none.
        evaluation_name: "selection" (a part of the training split, on which the best epoch is chosen) or "val".
        notes: what was decided here, for the user to read.
    """

    root: Path
    training: tuple[Record, ...]
    evaluation: tuple[Record, ...]
    evaluation_name: str
    notes: tuple[str, ...]


def choose_pictures(dataset: Dataset, config: TrainConfig) -> Pictures:
    """Splits the data set as the configuration asks.

    A missing val split is made from the training split, whether or not this run measures on it, and always the same
    one (not by the run's seed): what `setdet val` measures on later must not have been trained on.

    Raises:
        TrainingError: there are no training pictures, or none of them has a box to learn.
        DataError: they are too few to keep some aside.
    """
    notes: tuple[str, ...] = ()
    if "train" in dataset.splits and "val" not in dataset.splits:
        known = set(dataset.notes)
        dataset = make_splits(dataset)
        notes = tuple(note for note in dataset.notes if note not in known)
    training = tuple(dataset.splits.get("train", ()))
    if not training:
        splits = ", ".join(f"{name}: {len(records)}" for name, records in dataset.splits.items()) or "none"
        raise TrainingError(f"{dataset.root}: no pictures to train on. Expected a split 'train'; found {splits}.")
    if config.select_on is not None:
        kept, held = hold_out(training, share=config.select_on, seed=config.seed)
        notes += (f"{len(held)} of {len(training)} training pictures are kept aside to choose the best epoch on",)
        training, evaluation, name = tuple(kept), tuple(held), "selection"
    else:
        evaluation, name = tuple(dataset.splits.get("val", ())) if config.evaluate_every else (), "val"
    if not any((~record.crowd).any() for record in training):
        raise TrainingError(
            f"{dataset.root}: none of the {len(training)} training pictures has a box: nothing to learn."
        )
    return Pictures(root=dataset.root, training=training, evaluation=evaluation, evaluation_name=name, notes=notes)


def check_folder(out: Path, *, resume: bool) -> None:
    """Refuses to mix two runs.

    Raises:
        OutputError: the folder is in use and this is no resumption, or the other way round.
    """
    if resume and not (out / STATE).is_file():
        raise OutputError(f"{out}: there is no run to resume (no {STATE}). Leave out resume to start one.")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; the output must be a folder.")
    if not resume and out.is_dir() and any(out.iterdir()):
        otherwise = "go on with the run in it with --resume" if (out / STATE).is_file() else "empty it"
        raise OutputError(f"{out}: the folder is in use. Choose another with --out, or {otherwise}.")


def augment_in(epoch: int, config: TrainConfig) -> AugmentConfig:
    """The augmentation of an epoch (from 0): in the first and last, plain ones, only flips and turns, at one size."""
    changes: dict[str, Any] = {}
    mixing = config.epochs // 2 if config.mix_epochs is None else config.mix_epochs
    if not config.settle_epochs <= epoch < config.settle_epochs + mixing:
        changes |= {"mosaic": 0.0, "mixup": 0.0, "copy_blend": 0.0}
    if not config.settle_epochs <= epoch < config.epochs - config.plain_epochs:
        changes |= {"mosaic": 0.0, "mixup": 0.0, "copy_blend": 0.0}
        changes |= {"photometric": 0.0, "zoom_out": 0.0, "iou_crop": 0.0, "multi_scale": ()}
    return config.augment.model_copy(update=changes)


def configured_model(config: TrainConfig, num_classes: int) -> ModelConfig:
    """The model's configuration with the run's changes and number of queries, and the data's number of classes.

    Raises:
        ConfigError: there is no such model, or a change does not fit it.
    """
    changes = [f"decoder.queries={config.queries}", *(["decoder.rivals=true"] if config.rivals else [])]
    return model_config(config.model, num_classes=num_classes).override([*changes, *config.architecture])


@dataclass(frozen=True)
class Parts:
    """What trains.

    Attributes:
        model: the detector itself.
        wrapped: the same, as the forward of many processes; `model` where there is one process.
        ema: its running average.
        optimizer: as Fabric wraps it.
        criterion: the loss.
        groups: what trains how.
        frozen: modules that don't.
        total_steps, warmup_steps: of the schedule.
        notes: what was loaded, for the user to read.
    """

    model: RTDETR
    wrapped: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    groups: list[ParameterGroup]
    frozen: list[nn.Module]
    total_steps: int
    warmup_steps: int
    notes: tuple[str, ...]

    def train_mode(self) -> None:
        """Training mode for all that is not frozen."""
        set_training_mode(self.model, self.frozen)


def build_parts(
    config: TrainConfig, *, class_names: tuple[str, ...], fabric: Fabric, steps_per_epoch: int, resume: bool
) -> Parts:
    """Builds the parts, initialised by the seed alone: the process's own random state is neither used nor changed.

    Weights to start from are not read for a run that is resumed: its state replaces them, and they may have moved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = build_model(configured_model(config, len(class_names)))
    notes: tuple[str, ...] = ()
    if config.init is not None and not resume:
        notes = tuple(initialize_from(model, resolve(config.init), class_names))
    if config.backbone_weights is not None and not resume:
        notes = tuple(load_backbone(model, resolve(config.backbone_weights)))
    model = model.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    frozen = frozen_modules(model, config.freeze)
    set_training_mode(model, frozen)
    groups = parameter_groups(model, config)
    optimizer = fabric.setup_optimizers(build_optimizer(groups, precision=config.precision))

    total_steps = config.epochs * steps_per_epoch
    decay = decay_for(total_steps) if config.ema_decay is None else config.ema_decay
    warmup = warmup_for(decay) if config.ema_warmup_steps is None else config.ema_warmup_steps
    return Parts(
        model=model,
        # Not fabric.setup_module: its forward rounds every input to half precision, boxes included.
        wrapped=fabric.strategy.setup_module(model),
        ema=Ema(model=model, decay=decay, warmup_steps=warmup),
        optimizer=optimizer,  # type: ignore[arg-type]
        criterion=Criterion(config=config.loss, num_classes=len(class_names), queries=model.config.decoder.queries),
        groups=groups,
        frozen=frozen,
        total_steps=total_steps,
        warmup_steps=warmup_steps_for(total_steps) if config.warmup_steps is None else config.warmup_steps,
        notes=notes,
    )


def resolved(config: TrainConfig, *, device: str, precision: str) -> TrainConfig:
    """The configuration with what `auto` stood for."""
    return config.model_copy(update={"device": device, "precision": precision})
