"""Training, from a data set and a configuration to a run folder: read it from top to bottom."""

from pathlib import Path

import torch

from setdet.analyze.look import look_into
from setdet.data.schema import Dataset
from setdet.errors import TrainingError, one_line
from setdet.report.run import write_run_report
from setdet.training.config import TrainConfig
from setdet.training.devices import choose_device, choose_precision, keep_memory, launch, shut_down
from setdet.training.interrupt import StopRequest, stop_on_signal
from setdet.training.optim import set_rate
from setdet.training.session import Session, TrainResult
from setdet.training.setup import check_folder, choose_pictures, resolved
from setdet.training.step import SoundStatistics, backward, noise_generator, optimizer_step

__all__ = ["TrainResult", "train"]


def train(dataset: Dataset, config: TrainConfig, *, out: Path, resume: bool = False) -> TrainResult:
    """Trains a detector.

    The folder gets `config.yaml`, `metrics.jsonl`, TensorBoard events, `state/` and, of the averaged weights,
    `last.safetensors` after each epoch and `best.safetensors`: with `config.select_on`, those of the epoch with the
    highest AP on that part of the training split; without, a copy of the last ones, since choosing an epoch on the
    split that is reported on would flatter it. A finished run gets its `report.html`, measured with those. Ctrl-C
    finishes the step, saves and returns.

    Started by `torchrun`, the processes share each step; only the first evaluates and writes.

    Args:
        dataset: what to learn from; a missing val split is made, and announced.
        config: of the run.
        out: the run folder, new or empty.
        resume: go on with the run that is in `out`, with the configuration and data it was started with. On a CPU
            the result is that of a run never stopped, to the bit (same machine and number of threads).

    Raises:
        ConfigError: a value does not fit this machine, the model or the resumed run.
        OutputError: `out` is in use, or there is nothing to resume in it.
        TrainingError: nothing to train on, other data than the resumed run had, or 20 steps in a row whose loss or
            gradient is not finite (a single one is left out, and the log names its pictures), or the GPU's memory is
            full.
        WeightsError: `config.init` cannot be started from.
        DataError: there are fewer pictures than a batch, or a picture cannot be read.
    """
    device = choose_device(config.device)
    config = resolved(config, device=device, precision=choose_precision(config.precision, device))
    check_folder(out, resume=resume)
    pictures = choose_pictures(dataset, config)
    if device == "cpu":
        keep_memory()
    fabric = launch(config)
    try:
        with stop_on_signal() as stop:
            run = Session.open(dataset.class_names, pictures, config=config, fabric=fabric, out=out, resume=resume)
            with run.log:
                result = _train(run, stop)
        if fabric.is_global_zero and not result.interrupted:
            measured_on = pictures.evaluation_name
            write_run_report(out, records=pictures.evaluation, measured_on=measured_on, look=look_into, device=device)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The GPU's memory is full ({one_line(error)}). Take fewer pictures at a time and as many a step "
            f"(batch_size={max(1, config.batch_size // 2)}, accumulate={2 * config.accumulate}), fewer queries, or a "
            "smaller image_size."
        ) from None
    shut_down(fabric)
    return result


def _train(run: Session, stop: StopRequest) -> TrainResult:
    config, fabric, parts, progress = run.config, run.fabric, run.parts, run.progress
    statistics = SoundStatistics(parts.model)
    while not run.over and not stop.agreed(fabric):
        parts.train_mode()
        for batch in run.remaining_batches():
            position = progress.batch % config.accumulate
            in_step = min(config.accumulate, run.batches_per_epoch - (progress.batch - position))
            step_follows = position + 1 == in_step
            terms = backward(
                batch,
                fabric=fabric,
                model=parts.wrapped,
                criterion=parts.criterion,
                config=config,
                num_classes=len(run.class_names),
                generator=noise_generator(
                    seed=config.seed, epoch=progress.epoch, batch=progress.batch, rank=fabric.global_rank
                ),
                share=1 / in_step,
                is_last=step_follows,
            )
            run.watch.add(terms, pictures=[str(run.pictures.training[index].image) for index in batch.indices])
            run.log.advance(pictures=len(batch.indices) * fabric.world_size, epoch=progress.epoch, epochs=config.epochs)
            progress.batch += 1
            if not step_follows:
                continue

            set_rate(parts.optimizer, run.rate_factor())
            norm = optimizer_step(
                fabric=fabric,
                model=parts.model,
                optimizer=parts.optimizer,
                clip_norm=config.clip_norm,
                statistics=statistics,
            )
            # With fp16's loss scaling, an infinite gradient is how the scale is found.
            run.watch.add_step(norm, everyday=config.precision == "fp16")
            progress.step += 1
            parts.ema.update(step=progress.step)

            at_log = progress.step % config.log_every_steps == 0
            if at_log:
                run.log_steps()
            # Many processes must agree to stop, which makes them wait: only where they wait for the log anyway.
            if (fabric.world_size == 1 or at_log) and stop.agreed(fabric):
                return run.leave()
            if config.checkpoint_every_steps and progress.step % config.checkpoint_every_steps == 0:
                run.save_state()
                run.log.start_clock()

        if stop.agreed(fabric):
            return run.leave()
        run.finish_epoch()
    return run.result(interrupted=False) if run.over else run.leave()
