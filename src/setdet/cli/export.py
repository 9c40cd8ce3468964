"""`setdet export`: weights go in, files for other people's code come out."""

from pathlib import Path
from typing import Annotated

import typer

from setdet.cli.console import say, show
from setdet.errors import UsageError

_FORMATS = ("authors", "transformers")


def export(
    weights: Annotated[str, typer.Argument(help="A checkpoint, a run folder, a folder of transformers, or a name.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="authors: a .pth file for the RT-DETR authors' code; transformers: a folder for from_pretrained.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New file (authors) or new folder (transformers).")],
    decoder_layers: Annotated[int | None, typer.Option(help="Only the first so many run.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Only the best so many are selected.  [default: all]")] = None,
) -> None:
    """Write weights as other people's code reads them; there, the network gives the same boxes.

    `setdet predict` and all other commands read what comes out, too.
    """
    from setdet.config import suggest

    if format_ not in _FORMATS:
        raise UsageError(f"--format {format_}: there is no such format.{suggest(format_, _FORMATS)}")

    from setdet.models.deploy import read_out
    from setdet.weights.catalog import resolve
    from setdet.weights.files import load_model
    from setdet.weights.writing import write_authors, write_transformers

    write = write_authors if format_ == "authors" else write_transformers
    info, model = load_model(resolve(weights))
    if decoder_layers is not None or queries is not None:
        info = info.model_copy(update={"model": read_out(model, decoder_layers=decoder_layers, queries=queries)})
    notes = write(out, info=info, state=model.state_dict())
    show(f"{info.model.name}, {len(info.class_names)} classes → {out}")
    for note in notes:
        say(note)
