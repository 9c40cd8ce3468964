"""Every run behind docs/studies/neu-det.md. Started again, it goes on where it stopped.

    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --list
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study                   # everything, in order
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --only paper-v1   # names that start so

A run that is done is left alone, one that was stopped is resumed, and at the end the figures of all that are done are
written to results.json beside them. Several of these may share the folder, each with another `--only`.

Runs of the stage `convergence` and `ingredients` train on four fifths of the training split and are measured on the
rest of it, so that settings can be chosen by them. Runs of the stage `record` train on the whole training split; the
validation split is measured at their end.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import setdet
from setdet.report.compare import read_run

SEEDS = (0, 1, 2)
SURFACES = 3600
# What the machine needs to be told, the same for every run.
HERE = ("evaluate_every=2", "checkpoint_every_steps=100")
INNER = 0.2
# The published warm-up and average span 2,000 and 10,000 steps, of 527,000: scaled, they span as large a part of ours.
SCALED = ("warmup_steps=null", "ema_decay=null", "ema_warmup_steps=null")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: of its folder.
        stage: "surfaces", "ingredients", "convergence" or "record".
        settings: arguments of `setdet.train`.
        overrides: any other field.
    """

    name: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()


def runs(out: Path) -> Iterator[Run]:
    """All of them, in the order in which they build on each other."""
    small = {"model": "rtdetr-n", "image_size": 224}
    yield Run("surfaces", "surfaces", {**small, "recipe": "default", "epochs": 12})
    for seed in SEEDS:
        inner = {**small, "seed": seed, "select_on": INNER}
        yield Run(f"default-{seed}", "convergence", {**inner, "recipe": "default", "epochs": 24})
        yield Run(f"paper-v1-scaled-{seed}", "convergence", {**inner, "recipe": "paper-v1", "epochs": 72}, SCALED)
        yield Run(f"paper-v1-{seed}", "convergence", {**inner, "recipe": "paper-v1", "epochs": 72})
    pretrained = {"recipe": "default", "image_size": 224, "epochs": 72, "init": str(out / "surfaces")}
    for seed in SEEDS:
        yield Run(f"record-n-{seed}", "record", {**pretrained, "seed": seed})


def is_done(folder: Path) -> bool:
    """Its report is the last thing that a run writes."""
    return (folder / "report.html").is_file()


def go_on_with(run: Run, *, data: Path, out: Path, device: str) -> None:
    """Starts the run, or resumes it."""
    folder = out / run.name
    source = data if run.stage != "surfaces" else surfaces(out)
    if (folder / "state").is_dir():
        setdet.train(source, out=folder, resume=True)
    else:
        setdet.train(source, out=folder, device=device, overrides=[*HERE, *run.overrides], **run.settings)


def surfaces(out: Path) -> Path:
    """The generated pictures, made once."""
    from setdet.data.surfaces import make

    folder = out / "pictures"
    if not folder.is_dir():
        make(folder, count=SURFACES, seed=1)
    return folder


def write_results(out: Path, done: list[Run]) -> None:
    """Configuration and curve of every run that is done."""
    results = {}
    for run in done:
        read = read_run(out / run.name)
        results[run.name] = {
            "stage": run.stage,
            "measured_on": read.measured_on,
            "curve": [
                {"epoch": line["epoch"], "minutes": line["minutes"], **line[str(read.measured_on)]}
                for line in read.measured
            ],
        }
    (out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="NEU-DET")
    parser.add_argument("--out", type=Path, required=True, help="a folder for all runs")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="runs whose names start so")
    parser.add_argument("--list", action="store_true", help="say what there is and what is done")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    chosen = [run for run in runs(args.out) if run.name.startswith(tuple(args.only))]
    for run in chosen:
        if args.list:
            print(f"{'done' if is_done(args.out / run.name) else '    '}  {run.stage:12} {run.name}")
        elif not is_done(args.out / run.name):
            go_on_with(run, data=args.data, out=args.out, device=args.device)
    done = [run for run in runs(args.out) if is_done(args.out / run.name)]
    if done:
        write_results(args.out, done)


if __name__ == "__main__":
    main()
