"""`setdet analyze errors`: what a detector gets wrong, and what that costs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setdet.cli.console import say, show, show_table
from setdet.errors import UsageError
from setdet.folders import claim, unused

if TYPE_CHECKING:
    from setdet.analyze.errors import ErrorAnalysis
    from setdet.analyze.thresholds import ChosenThresholds
    from setdet.data.schema import Dataset
    from setdet.predict import Predictor


def errors(
    weights: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a folder of transformers, hf:owner/name, or a name: `setdet models`."
        ),
    ],
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.")],
    split: Annotated[str, typer.Option(help="Which pictures: train, val or test.")] = "val",
    out: Annotated[Path | None, typer.Option(help="New folder for the results.  [default: analysis/errors]")] = None,
    thresholds_on: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Also choose a score for each class, on this share of the training pictures."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Pictures to draw, those with the most mistakes.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Another one takes other training pictures.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """See what is missed, invented, mistaken or badly placed, and how much AP each kind costs.

    Writes errors.html, errors.json, the charts as SVG and the worst pictures, truth beside what was found. With
    --thresholds-on also thresholds.json, for `setdet predict --thresholds`.
    """
    from setdet.api import load, read_with_split

    if thresholds_on is not None and not 0 < thresholds_on < 1:
        raise UsageError(f"--thresholds-on {thresholds_on}: expected a share of the training pictures, as in 0.2.")
    if thresholds_on is not None and split == "train":
        raise UsageError(
            "--thresholds-on chooses on training pictures, so --split train cannot be reported on with it."
        )
    if out is not None:
        unused(out)
    detector = load(weights, device=device)
    predictor = detector.predictor
    dataset = read_with_split(data, split)

    from setdet.analyze.errors import analyze_errors
    from setdet.analyze.findings import shown_from, write_errors

    progress = sys.stderr.isatty()
    chosen = None
    if thresholds_on is not None:
        if _may_have_learnt(detector.info.history, share=thresholds_on, seed=seed):
            say(
                "If these weights were trained on this data set, scores are chosen on pictures that they have learnt, "
                "where they are surer than on new ones. A run with --select-on keeps pictures aside to choose on: give "
                "its seed and no larger share here."
            )
        chosen = _choose(predictor, dataset, share=thresholds_on, seed=seed, progress=progress)
        if few := [name for name, value in chosen.f1.items() if value is None]:
            say(
                f"Too few boxes on the {chosen.pictures} pictures to choose a score for {', '.join(few)}: the common "
                "one stands there. Take a larger share."
            )
    records = dataset.splits[split]
    analysis = analyze_errors(predictor, records, class_names=dataset.class_names, chosen=chosen, progress=progress)
    folder = claim(out, default=Path("analysis", "errors"))
    page = write_errors(
        folder,
        analysis,
        title=f"What {Path(weights).name if Path(weights).exists() else weights} gets wrong",
        lead=f"{len(records)} pictures, {analysis.measured.values['boxes']} boxes ({split} of {Path(data).name}). "
        f"Boxes are shown {shown_from(analysis)}.",
        worst=worst,
    )
    if as_json:
        typer.echo((folder / "errors.json").read_text(encoding="utf-8").rstrip("\n"))
        say(f"page  {page}")
    else:
        _show(analysis, split=split)
        show(f"page  {page}")
        if analysis.chosen:
            show(f"scores  {folder / 'thresholds.json'}, for setdet predict --thresholds")


def _may_have_learnt(history: dict[str, Any], *, share: float, seed: int) -> bool:
    """Whether training pictures that the same seed holds out were not all kept aside by the training run."""
    run = history.get("config") or {}
    kept_aside = run.get("select_on") or 0.0
    return share > kept_aside or seed != run.get("seed")


def _choose(
    predictor: "Predictor", dataset: "Dataset", *, share: float, seed: int, progress: bool
) -> "ChosenThresholds":
    """Thresholds chosen on a share of the training pictures.

    Raises:
        UsageError: there is no training split.
        DataError: it has too few pictures, or classes that the weights don't know.
    """
    from setdet.analyze.thresholds import choose_thresholds
    from setdet.data.sources import hold_out
    from setdet.evaluate import match_classes

    if "train" not in dataset.splits:
        raise UsageError(f"{dataset.root}: has no training split to choose thresholds on. Leave out --thresholds-on.")
    _, held = hold_out(dataset.splits["train"], share=share, seed=seed)
    return choose_thresholds(
        predictor,
        match_classes(held, dataset.class_names, predictor.class_names),
        chosen_on=f"share {share:g} of the training pictures, seed {seed}",
        progress=progress,
    )


def _show(analysis: "ErrorAnalysis", *, split: str) -> None:
    from setdet.analyze.findings import shown_from
    from setdet.analyze.kinds import KINDS, MISSED
    from setdet.report.measured import shown

    values, costs = analysis.measured.values, analysis.costs
    measured = f"AP {shown(values['ap'])}, AP50 {shown(values['ap50'])}"
    show(f"{values['images']} pictures, {values['boxes']} boxes ({split}): {measured}")
    show("")
    rows = [(KINDS[kind], cost) for kind, cost in costs.kinds.items()] + [(MISSED, costs.missed)]
    counts = analysis.counts()
    show_table(
        ("error", "costs AP50", "boxes"),
        [
            *((kind.name, shown(cost), counts[kind.key]["shown"]) for kind, cost in rows),
            ("all wrong detections", shown(costs.false_positives), ""),
            ("all boxes not found", shown(costs.false_negatives), ""),
        ],
    )
    show("")
    show(f"Boxes are counted {shown_from(analysis)}.")
    few = analysis.calibration_shown
    show(f"Expected calibration error of their scores: {shown(few.error)}.")
    if analysis.chosen:
        show("")
        show_table(
            ("class", "lowest score", "precision", "recall", "F1"),
            [
                (row["name"], *(shown(row[key]) for key in ("from_score", "precision", "recall", "f1")))
                for row in values["per_class"]
            ],
        )
    show("")
