"""`setdet report`: training runs side by side."""

import json
from pathlib import Path
from typing import Annotated

import typer

from setdet.cli.console import show, show_table
from setdet.errors import OutputError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or not; up to six.")],
    out: Annotated[Path, typer.Option(help="The page to write; an older one is replaced.")] = Path("comparison.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare training runs: curves over epochs and over minutes, last figures, what they differ in.

    Runs that differ in their seed alone are also summed up, with mean and standard deviation. A run is flat since the
    epoch after which mAP50-95 rose by 0.005 or less: longer training would bring little.
    """
    from setdet.folders import distinct_names
    from setdet.report.compare import FIGURES, differences, over_seeds, read_run, write_comparison

    if out.is_dir():
        raise OutputError(f"{out}: is a folder; --out must be a file, such as comparison.html.")
    names = distinct_names([str(folder) for folder in runs])
    read = [read_run(folder, name=name) for folder, name in zip(runs, names, strict=True)]
    page = write_comparison(out, read)
    if as_json:
        values = {"runs": [run.to_dict() for run in read], "over_seeds": over_seeds(read)}
        typer.echo(json.dumps({**values, "settings": differences(read)}, indent=1, ensure_ascii=False))
        return
    show_table(
        ("run", "epoch", "minutes", "measured on", *FIGURES.values(), "trend"),
        [
            (
                row["run"],
                "–" if row["epoch"] is None else row["epoch"],
                "–" if row["minutes"] is None else f"{row['minutes']:.1f}",
                row["measured_on"] or "–",
                *("–" if row[key] is None else f"{row[key]:.3f}" for key in FIGURES),
                row["trend"],
            )
            for row in (run.to_dict() for run in read)
        ],
    )
    show("")
    show(f"page  {page}")
