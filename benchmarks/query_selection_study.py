"""Every run behind docs/studies/query-selection.md. Started again, it goes on where it stopped.

    python benchmarks/query_selection_study.py --data $SETDET_NEU_DET --out runs/queries --list
    python benchmarks/query_selection_study.py --data $SETDET_NEU_DET --out runs/queries

`rtdetr-n` from scratch, on four fifths of NEU-DET's training split and measured on the rest; the runs of a seed start
from the same weights and see the same pictures in the same order, so that they can be compared in pairs.
"""

from collections.abc import Iterator

from study_runs import Run, arguments, go_through

SEEDS = (0, 1, 2)
SAME = ("queries=100", "denoising_queries=50", "learning_rate=6e-4", "evaluate_every=4", "checkpoint_every_steps=144")
# Each is one change to what stands first.
VARIANTS = {
    "iou": ("loss.classification=varifocal",),
    "plain": ("loss.classification=varifocal", "loss.selection_target=one"),
    "matchability": ("loss.classification=matchability",),
    "groups": ("loss.classification=varifocal", "architecture=[decoder.training_groups=3]"),
    "copies": ("loss.classification=varifocal", "loss.selection_copies=4"),
}


def runs() -> Iterator[Run]:
    """Seed by seed, so that what is there can be compared early."""
    for seed in SEEDS:
        settings = {"model": "rtdetr-n", "image_size": 160, "epochs": 12, "seed": seed, "select_on": 0.2}
        for variant, overrides in VARIANTS.items():
            yield Run(f"{variant}-{seed}", variant, settings, (*SAME, *overrides))


def main() -> None:
    go_through(list(runs()), arguments(__doc__))


if __name__ == "__main__":
    main()
