"""`setdet analyze queries`: whether the features that the encoder selects deserve it."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from setdet.cli.console import say, show, show_table
from setdet.errors import UsageError
from setdet.folders import claim, unused

_MOST_WEIGHTS = 6  # colours that everybody can tell apart


def queries(
    weights: Annotated[
        list[str], typer.Argument(help="Run folders, checkpoints or names; up to six, each in a colour.")
    ],
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.")],
    split: Annotated[str, typer.Option(help="Which pictures: train, val or test.")] = "val",
    out: Annotated[Path | None, typer.Option(help="New folder for the results.  [default: analysis/queries]")] = None,
    selected: Annotated[
        int | None, typer.Option("--queries", help="Select only the best so many.  [default: all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """See whether the score by which features are selected says how good their boxes are.

    Writes queries.html, queries.json and the charts as SVG: the paper's figure 6 and what belongs to it.
    """
    from setdet.api import load, read_with_split

    if len(weights) > _MOST_WEIGHTS:
        raise UsageError(f"{len(weights)} weights: more than {_MOST_WEIGHTS} colours cannot be told apart. Give fewer.")
    if out is not None:
        unused(out)
    detectors = [load(one, device=device, queries=selected) for one in weights]
    dataset = read_with_split(data, split)

    from setdet.analyze.queries import analyze_queries
    from setdet.analyze.query_findings import write_queries
    from setdet.folders import distinct_names

    analyses = {}
    for name, detector in zip(distinct_names(weights), detectors, strict=True):
        analyses[name] = analyze_queries(
            detector.predictor,
            dataset.splits[split],
            class_names=dataset.class_names,
            progress=sys.stderr.isatty(),
        )
    folder = claim(out, default=Path("analysis", "queries"))
    page = write_queries(folder, analyses, measured_on=f"{split} of {Path(data).name}")
    if as_json:
        typer.echo((folder / "queries.json").read_text(encoding="utf-8").rstrip("\n"))
        say(f"page  {page}")
        return
    _show({name: analysis.to_dict() for name, analysis in analyses.items()}, split=split)
    show(f"page  {page}")


def _show(results: dict[str, dict[str, Any]], *, split: str) -> None:
    from setdet.report.measured import shown

    first = next(iter(results.values()))
    show(f"{first['pictures']} pictures, {first['boxes']} boxes ({split})")
    show("")
    show_table(
        ("weights", "K", "score > 0.5", "and IoU > 0.5", "Spearman", "ECE", "recall at K", "any class"),
        [
            (
                name,
                values["selected_per_picture"],
                *(shown(values[key]) for key in ("prop_cls", "prop_both")),
                "–" if values["spearman"] is None else f"{values['spearman']:.3f}",
                shown(values["calibration_error"]),
                *(shown(values["recall"][-1][key]) for key in ("recall", "recall_any_class")),
            )
            for name, values in results.items()
        ],
    )
    show("")
    for name, values in results.items():
        show_table(
            (f"{name}: selected on", "share", "in small", "in medium", "in large", "in none"),
            [
                (row["level"], shown(row["share"]), row["small"], row["medium"], row["large"], row["outside"])
                for row in values["levels"]
            ],
        )
        show("")
