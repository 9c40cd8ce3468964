"""`setdet analyze layers`: what each decoder layer adds."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from setdet.cli.console import say, show, show_table
from setdet.folders import claim, unused

if TYPE_CHECKING:
    from setdet.analyze.layers import LayerAnalysis


def layers(
    weights: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a folder of transformers, hf:owner/name, or a name: `setdet models`."
        ),
    ],
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.")],
    split: Annotated[str, typer.Option(help="Which pictures: train, val or test.")] = "val",
    out: Annotated[Path | None, typer.Option(help="New folder for the results.  [default: analysis/layers]")] = None,
    rounds: Annotated[int, typer.Option(min=0, help="How often each depth is timed; 0: not at all.")] = 20,
    queries: Annotated[int | None, typer.Option(help="Select only the best so many.  [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """See AP and time at each decoder layer, how far boxes still move, and how much assignments change.

    Writes layers.html, layers.json and the charts as SVG.
    """
    from setdet.api import load, read_with_split
    from setdet.weights.catalog import resolve
    from setdet.weights.files import read_info

    if out is not None:
        unused(out)
    decoder = read_info(resolve(weights)).model.decoder
    detector = load(weights, device=device, decoder_layers=decoder.layers, queries=queries)
    dataset = read_with_split(data, split)

    from setdet.analyze.layer_findings import write_layers
    from setdet.analyze.layers import analyze_layers
    from setdet.folders import distinct_names

    analysis = analyze_layers(
        detector.predictor,
        dataset.splits[split],
        class_names=dataset.class_names,
        default_layers=decoder.eval_layers or decoder.layers,
        rounds=rounds,
        progress=sys.stderr.isatty(),
    )
    name = distinct_names([weights])[0]
    folder = claim(out, default=Path("analysis", "layers"))
    page = write_layers(folder, analysis, name=name, measured_on=f"{split} of {Path(data).name}")
    if as_json:
        typer.echo((folder / "layers.json").read_text(encoding="utf-8").rstrip("\n"))
        say(f"page  {page}")
        return
    _show(analysis, split=split)
    show(f"page  {page}")


def _show(analysis: "LayerAnalysis", *, split: str) -> None:
    from setdet.report.measured import shown

    show(f"{analysis.pictures} pictures, {analysis.boxes} boxes ({split})")
    show("")
    rows = []
    for stage in analysis.stages:
        moved, matched = stage.moved, stage.moved_matched
        rows.append(
            (
                stage.name + (" (default)" if stage.layers == analysis.default_layers else ""),
                shown(stage.ap),
                shown(stage.ap50),
                "–" if stage.latency_ms is None else f"{stage.latency_ms:.1f}",
                "–" if moved is None else shown(moved.below["0.9"]),
                "–" if matched is None else shown(matched.below["0.9"]),
                "–" if matched is None else shown(matched.shift),
                shown(stage.match_changed),
            )
        )
    show_table(("read out at", "AP", "AP50", "ms", "moved", "matched moved", "their shift", "matches changed"), rows)
    show("")
    show("Moved: an IoU below 0.9 with the box one layer before. Shifts are in units of the box's sides.")
    if analysis.timing is not None:
        timing = analysis.timing
        height, width = timing["image_size"]
        show(
            f"Medians of {timing['rounds']} rounds, one picture of {height} × {width} at a time, on {timing['device']} "
            f"with {timing['threads']} threads."
        )
