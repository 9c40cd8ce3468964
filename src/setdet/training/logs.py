"""What a run tells: metrics.jsonl, TensorBoard and a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from setdet.errors import TrainingError, WriteError

# So many steps in a row without a finite gradient are no accident of one batch.
MOST_SKIPPED_IN_A_ROW = 20


@dataclass(frozen=True)
class SkippedStep:
    """A step that was not taken.

    Attributes:
        what: is not finite: "loss (giou/decoder.2 = nan)" or "gradient (norm inf)".
        pictures: of the batch behind it.
    """

    what: str
    pictures: tuple[str, ...]

    def __str__(self) -> str:
        return f"the {self.what} is not finite. Pictures of that batch: {', '.join(self.pictures)}."


class LossWatch:
    """Collects the loss terms of batches and the gradient norms of steps on the device, and reads them all at once.

    Reading a number from an accelerator waits for it, so that a check after every batch would slow training down.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[tuple[str, ...], tuple[str, ...]]] = []  # names of terms, names of pictures
        self._ends: dict[int, bool] = {}  # after how many batches a step was taken, and whether to pass over its norm
        self._numbers: list[Tensor] = []
        self._in_a_row = 0

    def add(self, terms: dict[str, Tensor], *, pictures: Sequence[str]) -> None:
        """Remembers the detached terms of one batch, and what to call its pictures."""
        self._batches.append((tuple(terms), tuple(pictures)))
        self._numbers.append(torch.stack([term.float() for term in terms.values()]))

    def add_step(self, norm: Tensor, *, everyday: bool = False) -> None:
        """Marks the end of a step, whose gradient had that norm; one that is not finite may be an everyday matter."""
        self._ends[len(self._batches)] = everyday
        self._numbers.append(norm.detach().float().view(1))

    def read(self, *, step: int) -> tuple[list[dict[str, float]], list[SkippedStep]]:
        """The terms of every finite batch since the last reading, and the skipped steps. Call it after a step.

        Raises:
            TrainingError: the last 20 steps were all skipped.
        """
        if not self._batches:
            return [], []
        numbers = iter(torch.cat(self._numbers).tolist())
        finite: list[dict[str, float]] = []
        skipped: list[SkippedStep] = []
        in_step: list[str] = []  # pictures
        broken: SkippedStep | None = None
        for count, (names, pictures) in enumerate(self._batches, start=1):
            batch = {name: next(numbers) for name in names}
            in_step += pictures
            wrong = [f"{name} = {value}" for name, value in batch.items() if not math.isfinite(value)]
            if wrong:
                broken = SkippedStep(f"loss ({', '.join(wrong)})", pictures)
            else:
                finite.append(batch)
            if count not in self._ends:
                continue
            norm = next(numbers)
            worth_a_word = broken is not None or not self._ends[count]
            if broken is None and not math.isfinite(norm):
                broken = SkippedStep(f"gradient (norm {norm})", tuple(in_step))
            self._in_a_row = 0 if broken is None else self._in_a_row + 1
            if broken is not None and worth_a_word:
                skipped.append(broken)
            if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise TrainingError(
                    f"{self._in_a_row} steps in a row up to step {step} had to be skipped; last, {broken} "
                    "Check their boxes with `setdet data check`; else lower learning_rate, or use precision=fp32. "
                    "The state saved before is intact."
                )
            in_step, broken = [], None
        self._batches.clear()
        self._ends.clear()
        self._numbers.clear()
        return finite, skipped


def total(terms: dict[str, float]) -> float | None:
    """The loss; None where there is no batch that it could be of, since every step was skipped."""
    return sum(terms.values()) if terms else None


def mean_terms(batches: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every term; one that is missing from a batch (denoising, where there are no boxes) counts as 0."""
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {name: sum(batch.get(name, 0.0) for batch in batches) / len(batches) for name in names}


class RunLog:
    """The run's voice; on every process but the first it is silent and writes nothing."""

    def __init__(
        self, *, folder: Path, total_batches: int, done_batches: int, step: int, epoch: int, active: bool
    ) -> None:
        """Opens the log after `step` steps and `epoch` whole epochs; later lines, of lost work, are dropped."""
        self.active = active
        self.console = Console(stderr=True, quiet=not active)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (active and self.console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=total_batches, completed=done_batches, note="")
        self._clock = time.perf_counter()
        self._pictures = 0
        if active:
            from torch.utils.tensorboard import SummaryWriter

            path = folder / "metrics.jsonl"
            _drop_later_lines(path, step=step, epoch=epoch)
            self._file = path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self.active:
            with contextlib.suppress(OSError):  # of a full disk, which has been said: every line is flushed at once
                self._file.close()
                self._board.close()

    def say(self, message: object) -> None:
        """Prints a line (or table) above the bar."""
        self._bar.console.print(message, highlight=False, soft_wrap=True)

    def advance(self, *, pictures: int, epoch: int, epochs: int) -> None:
        """One batch of `pictures` pictures, over all processes, is done."""
        self._pictures += pictures
        self._bar.update(self._task, advance=1, description=f"epoch {epoch + 1}/{epochs}")

    def pictures_per_second(self) -> float:
        """Training speed since the last call, or since the clock was started."""
        now = time.perf_counter()
        speed = self._pictures / max(now - self._clock, 1e-9)
        self.start_clock()
        return speed

    def start_clock(self) -> None:
        """Leaves what took time until now (an evaluation, a checkpoint) out of the speed."""
        self._clock, self._pictures = time.perf_counter(), 0

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl and its numbers to TensorBoard; both are flushed.

        Args:
            line: has "kind" ("step", "epoch" or "skipped"), "step", and numbers, or tables of numbers.

        Raises:
            WriteError: the file cannot be written.
        """
        if "images_per_second" in line and "loss" in line:
            loss = "–" if line["loss"] is None else f"{line['loss']:.3f}"
            self._bar.update(self._task, note=f"{line['images_per_second']:.1f} images/s · loss {loss}")
        if not self.active:
            return
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(
                f"{self._file.name}: cannot be written ({error.strerror}). Make room, and go on with --resume."
            ) from None
        for name, value in _numbers(line):
            if name not in ("step", "epoch"):
                self._board.add_scalar(f"{line['kind']}/{name}", value, line["step"])
        self._board.flush()


def _numbers(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found


def _drop_later_lines(path: Path, *, step: int, epoch: int) -> None:
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break  # the line that a crash cut short is the last one
        if line["step"] <= step and (line["kind"] != "epoch" or line["epoch"] <= epoch):
            kept.append(text + "\n")
    draft = path.with_name(path.name + ".part")
    draft.write_text("".join(kept), encoding="utf-8")
    draft.replace(path)
