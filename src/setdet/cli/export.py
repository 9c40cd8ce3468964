"""`setdet export`: weights go in, files for other people's code and for other runtimes come out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setdet.cli.console import say, show
from setdet.errors import UsageError

if TYPE_CHECKING:
    from setdet.export.run import Exported

_CHECKPOINTS = ("authors", "transformers")
_RUNTIMES = ("onnx", "openvino", "pt2")


def export(
    weights: Annotated[str, typer.Argument(help="A checkpoint, a run folder, a folder of transformers, or a name.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx: a file for ONNX Runtime or TensorRT; openvino: a folder; pt2: machine code by PyTorch "
            "for CPUs like this one; authors: a .pth file for the RT-DETR "
            "authors' code; transformers: a folder for from_pretrained.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New file (onnx, pt2, authors) or new folder (openvino, transformers).")],
    precision: Annotated[str | None, typer.Option(help="fp32, fp16, bf16 or int8.  [default: fp32]")] = None,
    target: Annotated[str | None, typer.Option(help="generic, or tensorrt for its parser.  [default: generic]")] = None,
    sampling: Annotated[
        str | None, typer.Option(help="grid, gather or discrete.  [default: as model and target want it]")
    ] = None,
    inside: Annotated[
        list[str] | None,
        typer.Option(
            help="What the graph does besides: resize (uint8 pictures go in), top-k (boxes in pixels come "
            "out), any-size (multiples of 32); repeatable."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(help="int8: a data set like what it will see; its train split is used.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Compare AP with the model's on the val split of this.")] = None,
    pictures: Annotated[
        list[str] | None, typer.Option(help="Compare on these.  [default: those of --data, else generated ones]")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(help="JSON file with a score for each class, for the file to carry: of `analyze errors`."),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Compare with the model before anything is written.")] = True,
    decoder_layers: Annotated[int | None, typer.Option(help="Only the first so many run.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Only the best so many are selected.  [default: all]")] = None,
) -> None:
    """Write weights as other code and other runtimes read them; there, the network gives the same boxes.

    `setdet predict` and `val` run what comes out. A file for a runtime is written only after it has been run there and
    has found what the model finds; the exit code is 1 if it has not.
    """
    from setdet.config import suggest

    if format_ not in (*_RUNTIMES, *_CHECKPOINTS):
        raise UsageError(f"--format {format_}: there is no such format.{suggest(format_, (*_RUNTIMES, *_CHECKPOINTS))}")
    given: dict[str, Any] = {
        "precision": precision,
        "target": target,
        "sampling": sampling,
        "inside": inside,
        "calibrate": calibrate,
        "data": data,
        "pictures": pictures,
        "thresholds": thresholds,
    }
    if format_ in _CHECKPOINTS:
        for name, value in given.items():
            if value:
                raise UsageError(f"--{name} is for files that a runtime opens: {', '.join(_RUNTIMES)}.")
        _write_checkpoint(weights, format_, out=out, decoder_layers=decoder_layers, queries=queries)
        return
    if not verify and (data or pictures):
        raise UsageError("--no-verify compares nothing: leave out --data and --pictures, or --no-verify.")
    from setdet.export.config import ExportConfig
    from setdet.thresholds import read_thresholds

    chosen = {name: given[name] for name in ("precision", "target", "sampling") if given[name] is not None}
    if thresholds is not None:
        chosen["thresholds"] = read_thresholds(thresholds)
    settings = {"format": format_, "decoder_layers": decoder_layers, "queries": queries, **chosen, **_inside(inside)}
    config = ExportConfig.from_dict(settings, source="setdet export")
    config.check(calibrated=calibrate is not None)

    from setdet.export.gate import Evidence
    from setdet.export.run import export as run_export
    from setdet.weights.catalog import resolve
    from setdet.weights.files import load_model

    info, model = load_model(resolve(weights))
    evidence = Evidence(pictures=tuple(pictures or ()), data=data) if verify else None
    _show(run_export(info, model, config, out=out, evidence=evidence, calibration=calibrate, say=say))


def _inside(parts: list[str] | None) -> dict[str, bool]:
    from setdet.config import suggest

    fields = {"resize": "pictures", "top-k": "detections", "any-size": "dynamic_size"}
    for part in parts or ():
        if part not in fields:
            raise UsageError(f"--inside {part}: the graph does no such thing.{suggest(part, fields)}")
    return {fields[part]: True for part in parts or ()}


def _show(done: "Exported") -> None:
    info = done.info
    show(
        f"{info.checkpoint.model.name}, {len(info.checkpoint.class_names)} classes, {info.precision}, "
        f"{info.sampling} sampling → {done.path}"
    )
    if info.kept:
        show(f"  not in {info.precision}: {', '.join(info.kept)}")
    if done.verdict is not None:
        for run, _ in done.verdict.runs:
            show(f"  {run}")
        if done.verdict.ap is not None:
            show(f"  AP {done.verdict.ap[1]:.4f}, the model's {done.verdict.ap[0]:.4f}")
        show(f"  report: {done.report}")
    for note in done.notes:
        say(note)


def _write_checkpoint(
    weights: str, format_: str, *, out: Path, decoder_layers: int | None, queries: int | None
) -> None:
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
