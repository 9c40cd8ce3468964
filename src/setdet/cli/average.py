"""`setdet average`: one detector from several runs."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from setdet.cli.console import say, show


def average(
    weights: Annotated[
        list[str], typer.Argument(help="Run folders, checkpoints or names: one model, fine-tuned from one start.")
    ],
    out: Annotated[Path, typer.Option(help="The new file, such as average.safetensors.")],
    half: Annotated[bool, typer.Option("--half", help="Store half precision: half the size.")] = False,
) -> None:
    """Average the weights of several runs: often about as good as the best of them, at the cost of one.

    For runs that differ in --seed or in settings and started from the same weights (--init). One run and --half make a
    small file of it.
    """
    from setdet.weights.average import average as run_average
    from setdet.weights.catalog import resolve

    for note in run_average([resolve(source) for source in weights], out=out, half=half):
        say(note)
    show(f"weights  {out}")
    show(f"next     setdet val {quote(str(out))} DATA")
