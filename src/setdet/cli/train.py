"""`setdet train`: a data set goes in, a run folder with weights and a report comes out."""

import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from setdet.cli.console import show
from setdet.errors import UsageError

_MODEL = "What is trained"
_LENGTH = "How long, on what"
_RUN = "The run"


def train(
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.", metavar="DATA")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Which model; `setdet models` lists them.  [default: that of --init, else the recipe's]",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: run folder, checkpoint, hf:owner/name or name.", rich_help_panel=_MODEL
        ),
    ] = None,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(help="Weights for the backbone alone, such as ImageNet's: a file.", rich_help_panel=_MODEL),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Leave this part as it is, such as backbone or norms; repeatable.", rich_help_panel=_MODEL),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Where everything else comes from: default, paper-v1, paper-v2 or deim.", rich_help_panel=_MODEL
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training pictures.", rich_help_panel=_LENGTH)
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Input in pixels, multiples of 32: 640, or height x width: 320x480.", rich_help_panel=_LENGTH
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures in a batch.", rich_help_panel=_LENGTH)] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_LENGTH)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.", rich_help_panel=_LENGTH)] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read pictures.", rich_help_panel=_LENGTH)] = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for the run.  [default: runs/MODEL]", rich_help_panel=_RUN)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.", rich_help_panel=_RUN)] = None,
    select_on: Annotated[
        float | None,
        typer.Option(help="Choose the best epoch on this share of the training pictures.", rich_help_panel=_RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=_RUN)
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other field of the run's config.yaml, such as loss.l1_weight=4; repeatable.",
            metavar="SECTION.FIELD=VALUE",
            rich_help_panel=_RUN,
        ),
    ] = None,
) -> None:
    """Train a detector on your own pictures.

    Ctrl-C saves and leaves; --resume with the run's --out goes on.
    """
    # Before PyTorch is there: its threads else keep their cores busy for milliseconds after each piece of work, which
    # others (sampling in the decoder, the readers of pictures) could use.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from setdet import api

    result = api.train(
        data,
        model=model,
        init=init,
        backbone_weights=backbone_weights,
        freeze=freeze or None,
        recipe=recipe,
        epochs=epochs,
        image_size=None if image_size is None else parse_image_size(image_size),
        batch_size=batch_size,
        device=device,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        workers=workers,
        out=out,
        seed=seed,
        select_on=select_on,
        resume=resume,
        overrides=set_ or (),
    )
    if result.interrupted:
        raise typer.Exit(code=130)
    if os.environ.get("RANK", "0") != "0":  # torchrun starts this command several times: one of them speaks
        return
    if result.metrics:
        show(f"{result.evaluated_on}: AP {_shown(result.metrics['ap'])}, AP50 {_shown(result.metrics['ap50'])}")
    show(f"weights  {result.out / 'best.safetensors'}")
    show(f"report   {result.out / 'report.html'}")
    if result.evaluated_on == "selection":  # the figures above chose the epoch
        show(f"next     setdet val {quote(str(result.out))} {quote(data)}")
    else:
        show(f"next     setdet predict {quote(str(result.out))} PICTURES")


def parse_image_size(text: str) -> tuple[int, int]:
    """(height, width) from "224" or "320x480".

    Raises:
        UsageError: it is neither, or a side is no multiple of 32.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"--image-size {text}: expected one side such as 640, or height x width such as 320x480.")
    height, width = int(parts[0]), int(parts[-1])
    if min(height, width) < 32 or height % 32 or width % 32:
        nearest = "x".join(str(max(32, round(int(part) / 32) * 32)) for part in parts)
        raise UsageError(f"--image-size {text}: sides must be multiples of 32. The nearest is {nearest}.")
    return height, width


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
