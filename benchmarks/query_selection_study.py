"""Every run behind docs/studies/query-selection.md. Started again, it goes on where it stopped.

    python benchmarks/query_selection_study.py --data $SETDET_NEU_DET --out runs/queries --list
    python benchmarks/query_selection_study.py --data $SETDET_NEU_DET --out runs/queries

`rtdetr-n` from scratch, on four fifths of NEU-DET's training split. The runs of a seed start from the same weights and
see the same pictures in the same order, so that they can be compared in pairs. When all that was asked for is done,
each run's weights are looked into on the validation split, and the tables and pictures of the page are written anew.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as students_t
from study_runs import Run, arguments, go_through, spread, write_between

import setdet
from setdet.analyze.queries import OUTSIDE, QueryAnalysis, analyze_queries
from setdet.analyze.query_findings import sections
from setdet.api import read_with_split
from setdet.report.run import read_epochs

PAGE = Path(__file__).parent.parent / "docs/studies/query-selection.md"
RESULTS = Path(__file__).with_name("query-selection.json")
BEGIN, END = "<!-- written by benchmarks/query_selection_study.py -->", "<!-- end -->"
SEEDS = (0, 1, 2)
SAME = (
    "rivals=false", "queries=100", "denoising_queries=50", "optimizer=adamw", "learning_rate=6e-4", "workers=0",
    "evaluate_every=4",
)  # fmt: skip
# Each is one change to what stands first.
VARIANTS = {
    "iou": ("loss.classification=varifocal",),
    "plain": ("loss.classification=varifocal", "loss.selection_target=one"),
    "matchability": ("loss.classification=matchability",),
    "groups": ("loss.classification=varifocal", "architecture=[decoder.training_groups=3]"),
    "copies": ("loss.classification=varifocal", "loss.selection_copies=4"),
    "rivals": ("loss.classification=varifocal", "rivals=true"),
    "muon": ("loss.classification=varifocal", "optimizer=muon"),
}
# What is drawn, of the first seed: the paper's two, and those that move furthest.
SHOWN = ("plain", "iou", "rivals", "muon")
CHARTS = {
    "score-iou": "Score and IoU of the selected features, one dot a feature: good ones lie to the upper right.",
    "recall": "Objects that the best features cover: with the right class, and with any.",
    "calibration": "What scores promise, and what comes.",
}
# What is compared: its name on the page, and how it is read.
FIGURES = {
    "mAP50-95": "ap",
    "mAP50": "ap50",
    "Prop_cls": "prop_cls",
    "Prop_both": "prop_both",
    "rank correlation": "spearman",
    "calibration error": "calibration_error",
    "recall at 10": "recall_10",
    "recall at 30": "recall_30",
    "recall at 100": "recall_100",
    "on P3": "on_p3",
    "on P5": "on_p5",
    "in no object": "in_no_object",
    "instability": "instability",
}


def runs() -> Iterator[Run]:
    """Seed by seed, so that what is there can be compared early."""
    for seed in SEEDS:
        settings = {"model": "rtdetr-n", "image_size": 160, "epochs": 12, "seed": seed, "select_on": 0.2}
        for variant, overrides in VARIANTS.items():
            yield Run(f"{variant}-{seed}", variant, settings, (*SAME, *overrides))


def main() -> None:
    args = arguments(__doc__)
    done = go_through(list(runs()), args)
    if args.list or not done:
        return
    analyses: dict[str, QueryAnalysis] = {}
    measured = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    measured |= {run.name: look_into(run, args.out, args.data, analyses) for run in done}
    RESULTS.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    first = {name: analyses[f"{name}-0"] for name in SHOWN if f"{name}-0" in analyses}
    if len(first) < len(SHOWN):
        print(f"The page is left as it is: its pictures need the first seed of {', '.join(SHOWN)}.")
        return
    pictures = []
    for chart in (chart for section in sections(first) for chart in section.charts if chart.name in CHARTS):
        picture = PAGE.with_name(f"query-selection-{chart.name}.svg")
        picture.write_text(chart.file(), encoding="utf-8")
        pictures.append(f"![{CHARTS[chart.name]}]({picture.name})\n")
    write_between(PAGE, BEGIN, END, "\n".join([tables(measured), *pictures]).strip())


def look_into(run: Run, out: Path, data: Path, analyses: dict[str, QueryAnalysis]) -> dict[str, Any]:
    """All figures of one run, on the validation split."""
    detector = setdet.load(out / run.name / "last.safetensors", device="cpu")
    dataset = read_with_split(data, "val")
    analysis = analyze_queries(detector.predictor, dataset.splits["val"], class_names=dataset.class_names)
    analyses[run.name] = analysis
    values, places = analysis.to_dict(), analysis.places
    evaluation = detector.evaluate(data)
    epochs = read_epochs(out / run.name / "metrics.jsonl")
    followed = [one["matching_instability"] for one in epochs if one.get("matching_instability") is not None]
    return {
        "variant": run.stage,
        "seed": run.settings["seed"],
        "ap": evaluation.ap,
        "ap50": evaluation.ap50,
        **{key: values[key] for key in ("prop_cls", "prop_both", "spearman", "calibration_error")},
        "recall_10": analysis.recall_at(10)["recall"],
        "recall_30": analysis.recall_at(30)["recall"],
        "recall_100": analysis.recall_at(100)["recall"],
        "on_p3": float(places[0].sum() / places.sum()),
        "on_p5": float(places[2].sum() / places.sum()),
        "in_no_object": float(places[:, OUTSIDE].sum() / places.sum()),
        "instability": statistics.mean(followed),
    }


def tables(measured: dict[str, dict[str, Any]]) -> str:
    """Means over the seeds, and differences in pairs to what stands first."""
    by_variant = {name: [one for one in measured.values() if one["variant"] == name] for name in VARIANTS}
    head = f"| | seeds | {' | '.join(FIGURES)} |\n|---|{'---|' * (len(FIGURES) + 1)}"
    means, pairs = [head], [head]
    reference = {one["seed"]: one for one in by_variant[next(iter(VARIANTS))]}
    for name, found in by_variant.items():
        if not found:
            continue
        cells = [spread([one[key] for one in found], digits(key)) for key in FIGURES.values()]
        means.append(f"| `{name}` | {len(found)} | {' | '.join(cells)} |")
        both = [(one, reference[one["seed"]]) for one in found if one["seed"] in reference]
        if both and found[0] is not next(iter(reference.values()), None):
            cells = [interval([one[key] - other[key] for one, other in both], digits(key)) for key in FIGURES.values()]
            pairs.append(f"| `{name}` | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(
        [
            "Means over the seeds, ± their standard deviation:\n",
            *means,
            f"\nDifferences to `{next(iter(VARIANTS))}` of the same seed, with 95 % intervals (Student's t, pairs):\n",
            *pairs,
            "",
        ]
    )


def digits(key: str) -> int:
    """Behind the point; shares of the selected features are small."""
    return 4 if key.startswith("prop") else 3


def interval(values: Sequence[float], digits: int) -> str:
    """Mean, and the half width of its 95 % interval; bold where that leaves out zero."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:+.{digits}f}"
    half = float(students_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / np.sqrt(len(values))
    text = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"**{text}**" if abs(mean) > half else text


if __name__ == "__main__":
    main()
