"""`setdet train`: a data set goes in, a run folder with weights and a report comes out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setdet.cli.console import say, show
from setdet.cli.folders import next_unused
from setdet.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from setdet.training.config import TrainConfig

_MODEL = "What is trained"
_LENGTH = "How long, on what"
_RUN = "The run"


def train(
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.", metavar="DATA")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Which model; `setdet models` lists them.  [default: the recipe's, rtdetr-r18]", rich_help_panel=_MODEL
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: file, run folder or name.", rich_help_panel=_MODEL)
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Leave this part as it is, such as backbone or norms; repeatable.", rich_help_panel=_MODEL),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Defaults of everything: default or paper-v1.", rich_help_panel=_MODEL)
    ] = "default",
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
    flags: dict[str, Any] = {
        "epochs": epochs,
        "image_size": None if image_size is None else parse_image_size(image_size),
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "workers": workers,
        "seed": seed,
        "select_on": select_on,
        "freeze": tuple(freeze) if freeze else None,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if resume:
        if out is None:
            raise UsageError("--resume needs --out with the folder of the run to go on with.")
        named = {"model": model, "init": init} | given
        config = _stored(out, {name: value for name, value in named.items() if value is not None})
    else:
        config = _fresh(recipe, model=model, init=init, given=given)
    config = config.override(set_ or [])
    folder = out or next_unused(Path("runs") / config.model)
    _run(data, config, folder=folder, resume=resume)


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


def _fresh(recipe_name: str, *, model: str | None, init: str | None, given: dict[str, Any]) -> "TrainConfig":
    from setdet.models.variants import model_config
    from setdet.training.config import TrainConfig
    from setdet.training.recipes import recipe
    from setdet.weights.catalog import resolve
    from setdet.weights.files import read_info

    if init is not None:  # looked up before anything slow; the weights say which model they are
        info = read_info(resolve(init))
        model = model or info.model.name
    if model is not None:
        model_config(model)
    base = recipe(recipe_name, model=model, init=init)
    return TrainConfig.from_dict(base.to_dict() | given, source="command line")


def _stored(out: Path, given: dict[str, Any]) -> "TrainConfig":
    from setdet.training.config import TrainConfig

    path = out / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{out}: there is no run to resume (no config.yaml). Leave out --resume to start one.")
    return TrainConfig.from_dict(TrainConfig.from_yaml(path).to_dict() | given, source="command line")


def _run(data: str, config: "TrainConfig", *, folder: Path, resume: bool) -> None:
    from setdet.data.sources import read_dataset
    from setdet.report.run import write_run_report
    from setdet.training.run import train as run_training
    from setdet.training.setup import check_folder, choose_pictures

    check_folder(folder, resume=resume)  # before the data is read, which takes its time
    dataset = read_dataset(data)
    pictures = choose_pictures(dataset, config)
    if len(pictures.training) < config.batch_size:
        raise UsageError(
            f"{data}: there are {len(pictures.training)} pictures to train on, fewer than one batch of "
            f"{config.batch_size}. Add pictures, or choose --batch-size {len(pictures.training)} or less."
        )
    is_first = os.environ.get("RANK", "0") == "0"  # set by torchrun, which starts this command several times
    if is_first:
        for note in dataset.notes:
            say(note)
    result = run_training(dataset, config, out=folder, resume=resume)
    if result.interrupted:
        raise typer.Exit(code=130)
    if not is_first:
        return
    page = write_run_report(
        folder, records=pictures.evaluation, measured_on=pictures.evaluation_name, device=config.device
    )
    if result.metrics:
        show(f"{result.evaluated_on}: AP {_shown(result.metrics['ap'])}, AP50 {_shown(result.metrics['ap50'])}")
    show(f"weights  {folder / 'best.safetensors'}")
    show(f"report   {page}")
    show(f"next     setdet predict {folder} PICTURES")


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
