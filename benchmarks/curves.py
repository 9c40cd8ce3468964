"""Curves of finished runs over epochs and over minutes, as one picture and a table.

python benchmarks/curves.py runs/neu-det-r18 runs/neu-det-n --out benchmarks/neu-det.svg
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

FIGURES = (("ap50", "mAP50"), ("ap", "mAP50-95"))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: told apart by everybody


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The epochs of a run that were evaluated on the val split, the last entry for each."""
    epochs = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] == "epoch" and "val" in entry:
            epochs[entry["epoch"]] = entry
    if not epochs:
        raise SystemExit(f"{run}: no epoch was evaluated on the val split.")
    return [epochs[epoch] for epoch in sorted(epochs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help=f"{len(COLOURS)} at most")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.svg or .png)")
    args = parser.parse_args()
    if len(args.runs) > len(COLOURS):
        parser.error(f"{len(args.runs)} runs, and colours for {len(COLOURS)}: leave some out")

    plt.rcParams["svg.hashsalt"] = "setdet"  # the same runs give the same file
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for run, colour in zip(args.runs, COLOURS, strict=False):
        entries = evaluations(run)
        for axis, key in zip(axes, ("epoch", "minutes"), strict=True):
            for (figure_name, label), style in zip(FIGURES, ("-", "--"), strict=True):
                axis.plot(
                    [entry[key] for entry in entries],
                    [entry["val"][figure_name] for entry in entries],
                    style,
                    color=colour,
                    label=f"{run.name} {label}",
                )
        print(f"\n{run.name}\n\n| epoch | minutes | mAP50 | mAP50-95 |\n|---|---|---|---|")
        for entry in entries:
            print(
                f"| {entry['epoch']} | {entry['minutes']:.1f} | {entry['val']['ap50']:.3f} | {entry['val']['ap']:.3f} |"
            )
    for axis, label in zip(axes, ("epochs", "minutes of training and evaluation"), strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("AP on the validation split")
    axes[0].legend(frameon=False)
    figure.savefig(args.out, metadata={"Date": None} if args.out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
