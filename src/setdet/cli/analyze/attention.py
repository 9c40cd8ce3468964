"""`setdet analyze attention`: where a detection comes from."""

from pathlib import Path
from typing import Annotated

import typer

from setdet.cli.console import say, show, show_table
from setdet.folders import claim, unused


def attention(
    weights: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a folder of transformers, hf:owner/name, or a name: `setdet models`."
        ),
    ],
    image: Annotated[Path, typer.Argument(help="One picture.")],
    detection: Annotated[int, typer.Option(min=1, help="Which one to draw; 1 has the highest score.")] = 1,
    out: Annotated[Path | None, typer.Option(help="New folder for the results.  [default: analysis/attention]")] = None,
    decoder_layers: Annotated[int | None, typer.Option(help="Run only the first so many.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Select only the best so many.  [default: all]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """See a detection's box through the layers, its sampling points, and AIFI's attention from its place.

    Writes pictures of the chosen detection as SVG, attention.json, and attention.html, in which any of the best
    twenty is clicked.
    """
    from setdet.api import load

    if out is not None:
        unused(out)
    detector = load(weights, device=device, decoder_layers=decoder_layers, queries=queries)

    from setdet.analyze.attention import read_attention
    from setdet.analyze.attention_findings import write_attention

    read = read_attention(detector.predictor, image, number=detection)
    folder = claim(out, default=Path("analysis", "attention"))
    page = write_attention(folder, read, image=image, number=detection)
    if as_json:
        typer.echo((folder / "attention.json").read_text(encoding="utf-8").rstrip("\n"))
        say(f"page  {page}")
        return
    chosen = read.detection(detection)
    show(f"{image}: detection {detection}, {read.class_names[chosen.label]} {chosen.score:.3f}")
    show("")
    show_table(
        ("", "left", "top", "right", "bottom", "score"),
        [
            ("start", *(f"{side:.1f}" for side in chosen.layers[0].reference_xyxy_px), "–"),
            *(
                (f"layer {number}", *(f"{side:.1f}" for side in layer.refined_xyxy_px), f"{layer.score:.3f}")
                for number, layer in enumerate(chosen.layers, start=1)
            ),
        ],
    )
    show("")
    show(f"page  {page}")
