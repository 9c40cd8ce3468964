"""Every run behind docs/studies/neu-det.md. Started again, it goes on where it stopped.

    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --list
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study                   # everything, in order
    python benchmarks/neu_det_study.py --data $SETDET_NEU_DET --out runs/study --only paper-v1   # names that start so

A run that is done is left alone, one that was stopped is resumed, and at the end the curves of all that are done are
written to neu-det.json, beside those that are there already, and the page's table and picture of them anew. Several of
these may share the folder, each with another `--only`.

Runs of the stages `convergence` and `budget` train on four fifths of the training split and are measured on the rest of
it, so that settings can be chosen by them. Runs of the stage `record` train on the whole training split, and are
measured on the validation split.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from study_runs import Run, arguments, go_through, spread, write_between

from setdet.data.writing import write_atomically
from setdet.report.compare import read_run

PAGE = Path(__file__).parent.parent / "docs/studies/neu-det.md"
RESULTS = Path(__file__).with_name("neu-det.json")
PICTURE = PAGE.with_name("neu-det-convergence.svg")
BEGIN, END = "<!-- written by benchmarks/neu_det_study.py -->", "<!-- end -->"
SEEDS = (0, 1, 2)
Curve = list[dict[str, float]]
# What is compared, in colours that everybody tells apart (Okabe and Ito).
RECIPES = {
    "default": "#0072B2",
    "default-surfaces": "#009E73",
    "paper-v1": "#D55E00",
    "paper-v1-tuned": "#CC79A7",
}
# One core a run: pictures are decoded in the process that trains.
ALONE = "workers=0"
HERE = (ALONE, "checkpoint_every_steps=144")
# The published average spans 10,000 of 527,000 steps: scaled, it spans as large a part of ours. The warm-up is 5 %.
SCALED = ("warmup_steps=null", "ema_decay=null", "ema_warmup_steps=null")
TUNED = ("learning_rate=2e-4",)  # the best of the trials


def trials() -> Iterator[Run]:
    """Learning rate and batch size of the published recipe without pretrained weights, at the size of ablations."""
    settings = {"model": "rtdetr-n", "recipe": "paper-v1", "image_size": 160, "epochs": 12, "select_on": 0.2}
    for rate, batch in (("2e-4", 16), ("4e-4", 8)):
        changes = (f"learning_rate={rate}", f"batch_size={batch}", "evaluate_every=3")
        yield Run(f"trial-{rate}-{batch}", "trial", settings, (*HERE, *SCALED, *changes))


def runs() -> Iterator[Run]:
    """Seed by seed, so that what is there can be compared early."""
    for seed in SEEDS:
        inner = {"model": "rtdetr-n", "image_size": 224, "seed": seed, "select_on": 0.2}
        ours = {**inner, "recipe": "default", "epochs": 24}  # a third of theirs
        theirs = {**inner, "recipe": "paper-v1", "epochs": 72}
        often, seldom = (*HERE, "evaluate_every=3"), (*HERE, "evaluate_every=6")
        yield Run(f"default-{seed}", "convergence", ours, often)
        yield Run(f"paper-v1-tuned-{seed}", "convergence", theirs, (*seldom, *SCALED, *TUNED))
        yield Run(f"paper-v1-{seed}", "convergence", theirs, seldom)
        yield Run(f"default-surfaces-{seed}", "convergence", {**ours, "init": "rtdetr-n/surfaces"}, often)


def records(out: Path) -> Iterator[Run]:
    """Pretraining on generated surfaces, then the whole training split."""
    small = {"model": "rtdetr-n", "image_size": 224}
    fifty = "denoising_queries=50"
    # Two steps, since the first was done before queries were told of their rivals: together `rtdetr-n/surfaces`.
    first = ("rivals=false", fifty, ALONE, "evaluate_every=6", "checkpoint_every_steps=200")
    yield Run("surfaces-n-first", "record", {**small, "epochs": 6}, first, pictures=lambda: surfaces(out, 12_000, 77))
    began = {**small, "epochs": 4, "init": str(out / "surfaces-n-first")}
    then = (fifty, ALONE, "evaluate_every=4", "checkpoint_every_steps=200")
    yield Run("surfaces-n", "record", began, then, pictures=lambda: surfaces(out, 4_400, 78))
    for seed in SEEDS:
        ends = (fifty, ALONE, "augment.photometric=0.3", "evaluate_every=16", "checkpoint_every_steps=180")
        yield Run(
            f"record-n-{seed}", "record", {**small, "epochs": 32, "init": "rtdetr-n/surfaces", "seed": seed}, ends
        )

    # The larger model, with larger batches, since a step of Muon costs much. What `rtdetr-r18/neu-det` started from is
    # this run as it stood after two of its epochs.
    larger = {"model": "rtdetr-r18", "image_size": 224, "batch_size": 16}
    then = (fifty, ALONE, "evaluate_every=3", "checkpoint_every_steps=200")
    yield Run("surfaces-r18", "record", {**larger, "epochs": 3}, then, pictures=lambda: surfaces(out, 20_000, 79))
    tuned = {**larger, "epochs": 32, "init": str(out / "surfaces-r18")}
    ends = (fifty, ALONE, "learning_rate=3e-4", "augment.photometric=0.3", "evaluate_every=16")
    yield Run("record-r18-0", "record", tuned, (*ends, "checkpoint_every_steps=90"))

    # The attempts before there were Muon and rivals.
    before = ("rivals=false", "optimizer=adamw", ALONE)
    small_pictures = {"model": "rtdetr-r18", "image_size": 160, "epochs": 3}
    own = (*before, "learning_rate=4e-4", fifty, "evaluate_every=3")
    yield Run("before-surfaces-r18", "record", small_pictures, own, pictures=lambda: surfaces(out, 12_000, 77))
    began = {"model": "rtdetr-r18", "image_size": 224, "epochs": 36, "init": str(out / "before-surfaces-r18")}
    mixed = (
        "denoising_queries=100", "augment.photometric=0.3", "augment.iou_crop=0.5", "augment.mosaic=0.3",
        "augment.copy_blend=0.3", "mix_epochs=30", "plain_epochs=2",
    )  # fmt: skip
    yield Run("before-record-r18", "record", began, (*before, *mixed, "learning_rate=3e-4", "evaluate_every=6"))


def budgets(out: Path) -> Iterator[Run]:
    """What pretraining is worth: 48 epochs from scratch; or as many pictures, three quarters of them generated."""
    small = {"model": "rtdetr-n", "image_size": 160}
    # 13,824 pictures to train on, three times: 36 epochs of the 1,152 of NEU-DET.
    yield Run(
        "budget-pretraining", "budget", {**small, "epochs": 3}, (*HERE, "evaluate_every=3"),
        pictures=lambda: surfaces(out, 17_280, 80),
    )  # fmt: skip
    for seed in SEEDS:
        inner = {**small, "seed": seed, "select_on": 0.2}
        yield Run(f"budget-scratch-{seed}", "budget", {**inner, "epochs": 48}, (*HERE, "evaluate_every=6"))
        began = {**inner, "epochs": 12, "init": str(out / "budget-pretraining")}
        yield Run(f"budget-surfaces-{seed}", "budget", began, (*HERE, "evaluate_every=3"))


def surfaces(out: Path, count: int, seed: int) -> Path:
    """Generated pictures, made once."""
    from setdet.data.surfaces import make

    folder = out / f"pictures-{seed}"
    if not folder.is_dir():
        make(folder, count=count, seed=seed)
    return folder


def write_results(out: Path, done: Sequence[Run]) -> None:
    """The curve of every run that is done goes to RESULTS, and from there onto the page."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    results |= {run.name: curve(run, out / run.name) for run in done}
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    compared = {recipe: by_seed(results, recipe) for recipe in RECIPES}
    compared = {recipe: runs for recipe, runs in compared.items() if runs}
    if not compared:
        return
    draw(compared)
    write_between(PAGE, BEGIN, END, table(compared))


def curve(run: Run, folder: Path) -> dict[str, Any]:
    """Everything that was measured while it trained."""
    read = read_run(folder)
    figures = ("ap", "ap50", "precision", "recall")
    return {
        "stage": run.stage,
        "measured_on": read.measured_on,
        "curve": [
            {
                "epoch": line["epoch"],
                "minutes": round(line["minutes"], 2),
                **{key: round(line[str(read.measured_on)][key], 4) for key in figures},
            }
            for line in read.measured
        ],
    }


def by_seed(results: dict[str, Any], recipe: str) -> dict[int, Curve]:
    """The curves of a recipe's runs. Every seed keeps other pictures aside: only runs of one seed compare."""
    return {seed: results[name]["curve"] for seed in SEEDS if (name := f"{recipe}-{seed}") in results}


def draw(compared: dict[str, dict[int, Curve]]) -> None:
    """mAP50-95 of every run over epochs and over minutes."""
    plt.rcParams["svg.hashsalt"] = "setdet"  # the same runs give the same file
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, along, label in zip(axes, ("epoch", "minutes"), ("epochs", "minutes of one core"), strict=True):
        for recipe, curves in compared.items():
            for index, points in enumerate(curves.values()):
                xs, ys = ([point[key] for point in points] for key in (along, "ap"))
                axis.plot(xs, ys, ".-", color=RECIPES[recipe], linewidth=1, label=None if index else recipe)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("mAP50-95")
    axes[1].legend(frameon=False, loc="lower right")
    figure.savefig(PICTURE, metadata={"Date": None})


def table(compared: dict[str, dict[int, Curve]]) -> str:
    """How far each recipe comes, and when it passes all that the published one ever had, seed by seed."""
    published = [runs for name, runs in compared.items() if name.startswith("paper-v1")]
    best = {
        seed: max(point["ap"] for runs in published for point in runs.get(seed, ()))
        for seed in SEEDS
        if any(seed in runs for runs in published)
    }
    rows = [
        "| | seeds | epochs | minutes | mAP50-95 | mAP50 | passes the best of both others, seed by seed, at |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, curves in compared.items():
        last = [points[-1] for points in curves.values()]
        minutes = statistics.mean(point["minutes"] for point in last)
        cells = [spread([point[key] for point in last]) for key in ("ap", "ap50")]
        passed = "–"
        if not recipe.startswith("paper-v1") and (both := [seed for seed in curves if seed in best]):
            epochs = [next((p["epoch"] for p in curves[seed] if p["ap"] > best[seed]), "never") for seed in both]
            passed = f"epoch {', '.join(str(epoch) for epoch in epochs)}"
        rows.append(
            f"| `{recipe}` | {len(curves)} | {last[0]['epoch']} | {minutes:.0f} | {' | '.join(cells)} | {passed} |"
        )
    return "\n".join(rows)


def main() -> None:
    args = arguments(__doc__)
    done = go_through([*trials(), *runs(), *budgets(args.out), *records(args.out)], args)
    if done and not args.list:
        write_results(args.out, done)


if __name__ == "__main__":
    main()
