"""Every run behind docs/studies/neu-det.md. Started again, it goes on where it stopped.

    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --list
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study                   # everything, in order
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --only paper-v1   # names that start so

A run that is done is left alone, one that was stopped is resumed, and at the end the figures of all that are done are
written to results.json beside them. Several of these may share the folder, each with another `--only`.

Runs of the stage `convergence` train on four fifths of the training split and are measured on the rest of it, so that
settings can be chosen by them.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from study_runs import Run, arguments, go_through

from setdet.report.compare import read_run

SEEDS = (0, 1, 2)
# What the machine needs to be told, the same for every run.
HERE = ("evaluate_every=3", "checkpoint_every_steps=144")
# The published warm-up and average span 2,000 and 10,000 steps, of 527,000: scaled, they span as large a part of ours.
SCALED = ("warmup_steps=null", "ema_decay=null", "ema_warmup_steps=null")


def runs() -> Iterator[Run]:
    """Seed by seed, so that what is there can be compared early."""
    same = {"model": "rtdetr-n", "image_size": 224, "epochs": 36}
    for seed in SEEDS:
        inner = {**same, "seed": seed, "select_on": 0.2}
        pretrained = {**inner, "recipe": "default", "init": "rtdetr-n/surfaces"}
        yield Run(f"default-surfaces-{seed}", "convergence", pretrained, HERE)
        yield Run(f"default-{seed}", "convergence", {**inner, "recipe": "default"}, HERE)
        yield Run(f"paper-v1-{seed}", "convergence", {**inner, "recipe": "paper-v1"}, HERE)
        yield Run(f"paper-v1-scaled-{seed}", "convergence", {**inner, "recipe": "paper-v1"}, (*HERE, *SCALED))


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
    args = arguments(__doc__)
    done = go_through(list(runs()), args)
    if done:
        write_results(args.out, done)


if __name__ == "__main__":
    main()
