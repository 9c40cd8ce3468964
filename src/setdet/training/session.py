"""Everything around the training loop: opening the run folder, logging, evaluating, saving, resuming."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from lightning_fabric import Fabric

from setdet.analyze.matching import FollowedPictures, Matched, instability
from setdet.data.loader import Batch, TrainingLoader, training_loader
from setdet.data.writing import write_atomically
from setdet.errors import OutputError, TrainingError
from setdet.evaluate import evaluate
from setdet.images import Preprocessing
from setdet.predict import Predictor
from setdet.runtime.torch import TorchRuntime
from setdet.training.config import TrainConfig
from setdet.training.logs import LossWatch, RunLog, mean_terms, total
from setdet.training.optim import summary
from setdet.training.schedule import rate_factor
from setdet.training.setup import STATE, Parts, Pictures, augment_in, build_parts
from setdet.training.state import Progress, fingerprint, load_state, save_state
from setdet.weights.files import CheckpointInfo, save_checkpoint


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        out: the run folder.
        epochs: whole epochs done.
        steps: optimiser steps taken.
        seconds: time spent, over all parts of a resumed run.
        metrics: of the last evaluation, or that of `best_epoch` where one is chosen, as `Evaluation.to_dict()`; empty
            if there was none.
        evaluated_on: "val" or "selection" (a part of the training split).
        best_epoch: the epoch (from 1) that was chosen on the selection part; None where nothing is chosen.
        interrupted: whether somebody stopped it; `train(…, resume=True)` goes on.
    """

    out: Path
    epochs: int
    steps: int
    seconds: float
    metrics: dict[str, Any]
    evaluated_on: str
    best_epoch: int | None
    interrupted: bool


@dataclass
class Session:
    """A run's parts, and the chores around the loop: logging, evaluating, saving."""

    class_names: tuple[str, ...]
    pictures: Pictures
    config: TrainConfig
    fabric: Fabric
    out: Path
    parts: Parts
    progress: Progress
    log: RunLog
    batches_per_epoch: int
    followed: FollowedPictures
    watch: LossWatch = field(default_factory=LossWatch)
    recent: list[dict[str, float]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def open(
        cls,
        class_names: tuple[str, ...],
        pictures: Pictures,
        *,
        config: TrainConfig,
        fabric: Fabric,
        out: Path,
        resume: bool,
    ) -> "Session":
        """Builds everything, and only then touches the folder."""
        batches = len(_loader(pictures, config, fabric=fabric, epoch=0, first_batch=0))
        parts = build_parts(
            config,
            class_names=class_names,
            fabric=fabric,
            steps_per_epoch=math.ceil(batches / config.accumulate),
            resume=resume,
        )
        progress = Progress()
        if resume:
            progress = load_state(
                out / STATE,
                model=parts.model,
                ema=parts.ema,
                optimizer=parts.optimizer,
                fabric=fabric,
                config=config,
                data=fingerprint(pictures.training, class_names),
            )
        evaluation_data = fingerprint(pictures.evaluation, class_names)
        other_measure = progress.evaluation_data not in ("", evaluation_data)
        progress.evaluation_data = evaluation_data
        if other_measure and config.select_on is not None:
            raise TrainingError(
                f"{out / STATE}: the pictures kept aside to choose the best epoch on, or their boxes, have changed. "
                "Resume with the same data, or start a new run with init set to this folder."
            )
        fabric.barrier()  # every process has checked and read the folder before the first one writes to it
        if fabric.is_global_zero and not resume:
            _begin_in(out)
            write_atomically(out / "config.yaml", config.to_yaml())
        log = RunLog(
            folder=out,
            total_batches=batches * config.epochs,
            done_batches=batches * progress.epoch + progress.batch,
            step=progress.step,
            epoch=progress.epoch,
            active=fabric.is_global_zero,
        )
        followed = FollowedPictures(
            pictures.training,
            preprocessing=Preprocessing(image_size=config.image_size),
            config=config.loss,
        )
        run = cls(class_names, pictures, config, fabric, out, parts, progress, log, batches, followed)
        run._introduce(resume)
        if other_measure:
            log.say(
                f"The pictures measured on ({pictures.evaluation_name}), or their boxes, have changed since the run "
                f"stopped: figures up to epoch {progress.epoch} don't compare with later ones."
            )
        if not resume:
            run.save_state()  # so that a run that dies in its first epoch can be resumed too
        return run

    def _introduce(self, resume: bool) -> None:
        config, pictures = self.config, self.pictures
        for note in (*pictures.notes, *self.parts.notes):
            self.log.say(note)
        self.log.say(summary(self.parts.groups, self.parts.model))
        evaluated = f"{len(pictures.evaluation)} to evaluate on ({pictures.evaluation_name})"
        self.log.say(
            f"{config.model} on {config.device} in {config.precision}, {self.fabric.world_size} process(es): "
            f"{len(pictures.training)} pictures to train on, {evaluated}, "
            f"{self.parts.total_steps} steps, {self.parts.warmup_steps} of them warm-up."
        )
        if self.parts.warmup_steps >= self.parts.total_steps:
            self.log.say(
                f"The warm-up of {self.parts.warmup_steps} steps is longer than the run, so the rate never reaches "
                f"{config.learning_rate:g}. Train for longer, or lower it: --set warmup_steps="
                f"{max(1, self.parts.total_steps // 20)}"
            )
        if self.over:
            self.log.say(f"There is nothing left to train: the run ended after epoch {self.progress.epoch}.")
        elif resume:
            self.log.say(f"Resuming in epoch {self.progress.epoch + 1} after step {self.progress.step}.")

    def remaining_batches(self) -> Iterable[Batch]:
        """The batches of the running epoch that are not done yet."""
        self.log.start_clock()
        if self.progress.batch == self.batches_per_epoch:
            return ()
        return _loader(
            self.pictures, self.config, fabric=self.fabric, epoch=self.progress.epoch, first_batch=self.progress.batch
        )

    def rate_factor(self) -> float:
        """What the next step's rates are multiplied by."""
        return rate_factor(
            self.progress.step,
            total_steps=self.parts.total_steps,
            warmup_steps=self.parts.warmup_steps,
            schedule=self.config.schedule,
            final_rate=self.config.final_rate,
            warmup=self.config.warmup,
            plain_steps=self.parts.total_steps * self.config.plain_epochs // self.config.epochs,
        )

    def log_steps(self) -> None:
        """Writes a line on the steps since the last one. Losses are those of the first process."""
        self._read_losses()
        terms = mean_terms(self.recent)
        self.recent.clear()
        speed = self.log.pictures_per_second()
        self.log.write(
            {
                "kind": "step",
                "epoch": self.progress.epoch + 1,
                "step": self.progress.step,
                "minutes": self._minutes(),
                "learning_rate": self._rate(),
                "images_per_second": speed,
                "loss": total(terms),
                "terms": terms,
            }
        )

    def finish_epoch(self) -> None:
        """Evaluates, writes the epoch's line and weights, and saves the state at the start of the next epoch."""
        self._read_losses()
        self.recent.clear()
        progress, epoch = self.progress, self.progress.epoch + 1
        terms = {name: value / progress.loss_batches for name, value in progress.loss_sums.items()}
        loss = total(terms)
        due = self.config.evaluate_every and epoch % self.config.evaluate_every == 0
        metrics: dict[str, Any] = {}
        if self.pictures.evaluation and (due or epoch == self.config.epochs):
            metrics = self._evaluate()
        self.log.write(
            {
                "kind": "epoch",
                "epoch": epoch,
                "step": progress.step,
                "minutes": self._minutes(),
                "learning_rate": self._rate(),
                "loss": loss,
                "terms": terms,
                **self._instability(),
                **({self.pictures.evaluation_name: metrics} if metrics else {}),
            }
        )
        measured = f", {self.pictures.evaluation_name} {_in_words(metrics)}" if metrics else ""
        self.log.say(
            f"epoch {epoch}/{self.config.epochs}: loss {'–' if loss is None else format(loss, '.3f')}{measured}, "
            f"{self._minutes():.1f} minutes"
        )
        self._save_weights(epoch, metrics)
        progress.epoch, progress.batch = epoch, 0
        progress.loss_sums, progress.loss_batches = {}, 0
        self.save_state()

    @property
    def over(self) -> bool:
        """Whether all epochs are done, or the last ones brought nothing and the configuration has no patience left."""
        epochs, best = self.progress.epoch, self.progress.best_epoch
        patience = self.config.patience
        return epochs >= self.config.epochs or (patience is not None and best is not None and epochs - best >= patience)

    def save_state(self) -> None:
        """Saves all that resuming needs; the losses are checked before, so that a saved state is a sound one."""
        self._read_losses()
        self._count_time()
        if self.fabric.is_global_zero:
            save_state(
                self.out / STATE,
                model=self.parts.model,
                ema=self.parts.ema,
                optimizer=self.parts.optimizer,
                fabric=self.fabric,
                progress=self.progress,
                config=self.config,
                data=fingerprint(self.pictures.training, self.class_names),
            )
        self.fabric.barrier()

    def leave(self) -> TrainResult:
        """Saves on the way out, and says how to come back."""
        self.save_state()
        self.log.say(
            f"Stopped after step {self.progress.step} of {self.parts.total_steps}; the state is in {self.out / STATE}. "
            f"To go on: setdet train {quote(str(self.pictures.root))} --out {quote(str(self.out))} --resume"
        )
        return self.result(interrupted=True)

    def result(self, *, interrupted: bool) -> TrainResult:
        """The run so far."""
        return TrainResult(
            out=self.out,
            epochs=self.progress.epoch,
            steps=self.progress.step,
            seconds=self.progress.seconds,
            metrics=self.progress.metrics,
            evaluated_on=self.pictures.evaluation_name,
            best_epoch=self.progress.best_epoch,
            interrupted=interrupted,
        )

    def _evaluate(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        if self.fabric.is_global_zero:
            runtime = TorchRuntime(
                model=self.parts.ema.module,  # type: ignore[arg-type]
                device=str(self.fabric.device),
                precision=self.config.precision,  # type: ignore[arg-type]
            )
            predictor = Predictor(runtime=runtime, class_names=self.class_names, preprocessing=self._preprocessing())
            metrics = evaluate(predictor, self.pictures.evaluation).to_dict()
        return self.fabric.broadcast(metrics)

    def _instability(self) -> dict[str, float]:
        """How much the assignments of the averaged weights have changed since the last epoch."""
        if not self.fabric.is_global_zero:
            return {}
        before, now = self.progress.matched, self.followed.match(self.parts.ema.module)  # type: ignore[arg-type]
        self.progress.matched = now.to_plain()
        return instability(Matched.from_plain(before), now) if before else {}

    def _save_weights(self, epoch: int, metrics: dict[str, Any]) -> None:
        progress = self.progress
        is_best = epoch == self.config.epochs
        if self.config.select_on is not None:
            ap = -1.0 if metrics.get("ap") is None else float(metrics["ap"])  # None: no box to measure on
            is_best = bool(metrics) and (progress.best_ap is None or ap > progress.best_ap)
            if is_best:
                progress.best_ap, progress.best_epoch = ap, epoch
        if metrics and (is_best or self.config.select_on is None):
            progress.metrics = metrics
        if not self.fabric.is_global_zero:
            return
        info = CheckpointInfo(
            model=self.parts.model.config,
            class_names=self.class_names,
            preprocessing=self._preprocessing(),
            history={
                "epochs": epoch,
                "steps": progress.step,
                "pictures": len(self.pictures.training),
                "minutes": round(self._minutes(), 2),
                "config": self.config.to_dict(),
                **({self.pictures.evaluation_name: metrics} if metrics else {}),
            },
        )
        names = ["last.safetensors", "best.safetensors"] if is_best else ["last.safetensors"]
        for name in names:
            save_checkpoint(self.out / name, state=self.parts.ema.module.state_dict(), info=info)

    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(image_size=self.config.image_size)

    def _read_losses(self) -> None:
        finite, skipped = self.watch.read(step=self.progress.step)
        others = " Another process may have had the cause." if self.fabric.world_size > 1 else ""
        for step in skipped:
            self.log.say(f"A step was left out in epoch {self.progress.epoch + 1}: {step}{others}")
            self.log.write(
                {
                    "kind": "skipped",
                    "epoch": self.progress.epoch + 1,
                    "step": self.progress.step,
                    "what": step.what,
                    "pictures": step.pictures,
                }
            )
        for batch in finite:
            self.recent.append(batch)
            self.progress.loss_batches += 1
            for name, value in batch.items():
                self.progress.loss_sums[name] = self.progress.loss_sums.get(name, 0.0) + value

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.parts.optimizer.param_groups)

    def _minutes(self) -> float:
        self._count_time()
        return self.progress.seconds / 60

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self.started
        self.started = now


def _begin_in(out: Path) -> None:
    """Takes the folder for this run.

    Raises:
        OutputError: another run has taken it since it was found to be free.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").touch(exist_ok=False)
    except FileExistsError:
        raise OutputError(
            f"{out}: another run has begun in this folder meanwhile. Start again, or choose another with --out."
        ) from None


def _in_words(metrics: dict[str, Any]) -> str:
    named = (("AP", metrics["ap"]), ("AP50", metrics["ap50"]))
    return " ".join(
        f"{name} {'undefined (no boxes)' if value is None else format(value, '.3f')}" for name, value in named
    )


def _loader(pictures: Pictures, config: TrainConfig, *, fabric: Fabric, epoch: int, first_batch: int) -> TrainingLoader:
    return training_loader(
        pictures.training,
        augment=augment_in(epoch, config),
        preprocessing=Preprocessing(image_size=config.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        epoch=epoch,
        first_batch=first_batch,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        pinned=fabric.device.type == "cuda",
    )
