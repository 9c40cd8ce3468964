"""The page of several training runs side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from setdet.errors import DataError, UsageError
from setdet.report.charts import MOST_LINES, Series, line_chart
from setdet.report.page import write_page
from setdet.report.run import read_epochs

FIGURES = {"ap50": "mAP50", "ap": "mAP50-95", "precision": "precision", "recall": "recall"}
_NO_GAIN = 0.005  # of mAP50-95, over all that followed


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        name: of the folder.
        settings: the configuration, flat: "augment.iou_crop" → 0.3.
        epochs: the lines of whole epochs in metrics.jsonl.
        measured_on: "val" or "selection"; None where nothing was measured.
    """

    name: str
    settings: dict[str, Any]
    epochs: tuple[dict[str, Any], ...]
    measured_on: str | None

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The lines of the epochs that were evaluated."""
        return [line for line in self.epochs if self.measured_on in line]

    def to_dict(self) -> dict[str, Any]:
        """The last evaluation, as the table shows it; None where there is none."""
        last = self.measured[-1] if self.measured else {}
        values = last.get(self.measured_on or "", {})
        return {
            "run": self.name,
            "epoch": last.get("epoch"),
            "minutes": last.get("minutes"),
            "measured_on": self.measured_on,
            **{key: values.get(key) for key in FIGURES},
            "best": self.best,
            "flat_since": self.flat_since,
            "trend": self.trend,
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """The epoch of the highest mAP50-95, and this: of a run that chooses its epoch, best.safetensors."""
        return max(self._curve, key=lambda point: point[1], default=None)

    @property
    def flat_since(self) -> int | None:
        """The epoch after which mAP50-95 rose by 0.005 or less; None while it still rises."""
        best = self.best[1] if self.best else 0.0
        return next((epoch for epoch, value in self._curve[:-1] if value >= best - _NO_GAIN), None)

    @property
    def trend(self) -> str:
        """`flat_since` and `best` for people; one evaluation is no trend."""
        if self.best is None or len(self._curve) < 2:
            return "–"
        best = f"best {self.best[1]:.3f} in epoch {self.best[0]}"
        return f"still rising, {best}" if self.flat_since is None else f"flat since epoch {self.flat_since}, {best}"

    @property
    def _curve(self) -> list[tuple[int, float]]:
        """(epoch, mAP50-95)."""
        values = ((line["epoch"], line[str(self.measured_on)].get("ap")) for line in self.measured)
        return [(epoch, value) for epoch, value in values if value is not None]


def read_run(folder: Path, *, name: str | None = None) -> Run:
    """Reads config.yaml and metrics.jsonl; `name` is what to call it, by default as its folder.

    Raises:
        DataError: it is no run folder, a file is broken, or no epoch is complete yet.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected the folder of a training run.") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}: holds no settings. Expected the folder of a training run.")
    epochs = tuple(read_epochs(folder / "metrics.jsonl"))
    if not epochs:
        raise DataError(f"{folder}: no epoch is complete yet. Wait for the first one, or go on with --resume.")
    names = ("val", "selection")
    measured_on = next((name for name in names if any(name in line for line in epochs)), None)
    return Run(name=name or folder.resolve().name, settings=_flat(config), epochs=epochs, measured_on=measured_on)


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which the runs differ, each with its value in every run; None where a run has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def over_seeds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the last figures of runs that differ in their seed alone and came equally far."""
    groups: dict[str, dict[Any, Run]] = {}
    for run in runs:
        same = {name: value for name, value in run.settings.items() if name != "seed"} | {"": run.to_dict()["epoch"]}
        groups.setdefault(repr(sorted(same.items())), {})[run.settings.get("seed")] = run
    rows = []
    for group in (list(seeds.values()) for seeds in groups.values() if len(seeds) > 1):
        row: dict[str, Any] = {"runs": [run.name for run in group]}
        for key in FIGURES:
            values = [value for run in group if (value := run.to_dict()[key]) is not None]
            row[key] = (statistics.mean(values), statistics.stdev(values)) if len(values) > 1 else None
        rows.append(row)
    return rows


def write_comparison(path: Path, runs: Sequence[Run]) -> Path:
    """Writes the page: a table of the last figures, what the runs differ in, and curves over epochs and minutes.

    Returns:
        `path`.

    Raises:
        UsageError: there are no runs, or more than a chart has colours.
        WriteError: the file cannot be written.
    """
    if not 1 <= len(runs) <= MOST_LINES:
        raise UsageError(f"{len(runs)} runs: a comparison shows 1 to {MOST_LINES}. Leave some out.")
    measured_on = sorted({run.measured_on for run in runs if run.measured_on})
    return write_page(
        path,
        "compare.html",
        title=" · ".join(run.name for run in runs),
        lead=f"{len(runs)} training runs, measured on {' and '.join(measured_on) or 'nothing'}: the last evaluation.",
        rows=[run.to_dict() for run in runs],
        groups=over_seeds(runs),
        columns=FIGURES,
        settings=differences(runs),
        names=[run.name for run in runs],
        charts=_charts(runs),
    )


def _charts(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    charts = []
    for key in ("ap50", "ap"):
        for along in ("epoch", "minutes"):
            lines = [
                Series(
                    run.name,
                    [
                        (line[along], value)
                        for line in run.measured
                        if (value := line[str(run.measured_on)].get(key)) is not None
                    ],
                )
                for run in runs
            ]
            charts.append((f"{FIGURES[key]} over {along}", line_chart(lines, x_label=along, y_label=FIGURES[key])))
    losses = [
        Series(run.name, [(line["epoch"], line["loss"]) for line in run.epochs if line["loss"] is not None])
        for run in runs
    ]
    charts.append(("Loss over epochs", line_chart(losses, x_label="epoch", y_label="loss", from_zero=False)))
    return charts


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
