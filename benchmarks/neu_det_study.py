"""Every run behind docs/studies/neu-det.md. Started again, it goes on where it stopped.

    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --list
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study                   # everything, in order
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --only paper-v1   # names that start so

A run that is done is left alone, one that was stopped is resumed, and at the end the figures of all that are done are
written to results.json beside them. Several of these may share the folder, each with another `--only`.

Runs of the stage `convergence` train on four fifths of the training split and are measured on the rest of it, so that
settings can be chosen by them. Runs of the stage `record` train on the whole training split, and are measured on the
validation split.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from study_runs import Run, arguments, go_through

from setdet.report.compare import read_run

SEEDS = (0, 1, 2)
# What the machine needs to be told, the same for every run.
HERE = ("workers=0", "checkpoint_every_steps=144")
# The published warm-up and average span 2,000 and 10,000 steps, of 527,000: scaled, they span as large a part of ours.
SCALED = ("warmup_steps=null", "ema_decay=null", "ema_warmup_steps=null")


def trials() -> Iterator[Run]:
    """The learning rate of the published recipe without pretrained weights, at the size of ablations."""
    for rate in ("2e-4", "4e-4", "1e-4"):
        settings = {"model": "rtdetr-n", "recipe": "paper-v1", "image_size": 160, "epochs": 12, "select_on": 0.2}
        yield Run(f"trial-{rate}", "trial", settings, (*HERE, *SCALED, f"learning_rate={rate}", "evaluate_every=3"))


def runs() -> Iterator[Run]:
    """Seed by seed, so that what is there can be compared early."""
    for seed in SEEDS:
        inner = {"model": "rtdetr-n", "image_size": 224, "seed": seed, "select_on": 0.2}
        ours = {**inner, "recipe": "default", "epochs": 24}  # a third of theirs
        theirs = {**inner, "recipe": "paper-v1", "epochs": 72}
        often, seldom = (*HERE, "evaluate_every=3"), (*HERE, "evaluate_every=6")
        yield Run(f"default-{seed}", "convergence", ours, often)
        yield Run(f"paper-v1-scaled-{seed}", "convergence", theirs, (*seldom, *SCALED))
        yield Run(f"paper-v1-{seed}", "convergence", theirs, seldom)
        yield Run(f"default-surfaces-{seed}", "convergence", {**ours, "init": "rtdetr-n/surfaces"}, often)


def records(out: Path) -> Iterator[Run]:
    """Pretraining on generated surfaces, then the whole training split."""
    small = {"model": "rtdetr-n", "image_size": 224}
    fifty = "denoising_queries=50"
    # Two steps, since the first was done before queries were told of their rivals: together `rtdetr-n/surfaces`.
    first = ("rivals=false", fifty, "evaluate_every=6", "checkpoint_every_steps=200")
    yield Run("surfaces-n-first", "record", {**small, "epochs": 6}, first, pictures=lambda: surfaces(out, 12_000, 77))
    began = {**small, "epochs": 4, "init": str(out / "surfaces-n-first")}
    then = (fifty, "evaluate_every=4", "checkpoint_every_steps=200")
    yield Run("surfaces-n", "record", began, then, pictures=lambda: surfaces(out, 4_400, 78))
    for seed in SEEDS:
        ends = (fifty, "augment.photometric=0.3", "evaluate_every=16", "checkpoint_every_steps=180")
        yield Run(
            f"record-n-{seed}", "record", {**small, "epochs": 32, "init": "rtdetr-n/surfaces", "seed": seed}, ends
        )

    mixed = (
        "rivals=false", "optimizer=adamw", "denoising_queries=100", "augment.photometric=0.3",
        "augment.iou_crop=0.5", "augment.mosaic=0.3", "augment.copy_blend=0.3",
    )  # fmt: skip
    larger = {"model": "rtdetr-r18", "image_size": 160, "epochs": 3}
    own = ("rivals=false", "optimizer=adamw", "learning_rate=4e-4", fifty, "evaluate_every=3")
    yield Run("surfaces-r18", "record", larger, own, pictures=lambda: surfaces(out, 12_000, 77))
    larger = {"model": "rtdetr-r18", "image_size": 224, "epochs": 36, "init": str(out / "surfaces-r18")}
    ends = ("learning_rate=3e-4", "mix_epochs=30", "plain_epochs=2", "evaluate_every=6")
    yield Run("record-r18-0", "record", larger, (*mixed, *ends))


def surfaces(out: Path, count: int, seed: int) -> Path:
    """Generated pictures, made once."""
    from setdet.data.surfaces import make

    folder = out / f"pictures-{seed}"
    if not folder.is_dir():
        make(folder, count=count, seed=seed)
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
    args = arguments(__doc__)
    done = go_through([*trials(), *runs(), *records(args.out)], args)
    if done:
        write_results(args.out, done)


if __name__ == "__main__":
    main()
