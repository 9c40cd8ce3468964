"""`setdet benchmark`: how fast detectors are here, and how good."""

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setdet.cli.console import say, show, show_table
from setdet.errors import UsageError

if TYPE_CHECKING:
    from setdet.benchmark.measure import Candidate, Comparison
    from setdet.benchmark.ways import Way
    from setdet.data.schema import Dataset
    from setdet.predict import Predictor

_PICTURES = 8  # generated, where none are given


def benchmark(
    weights: Annotated[
        list[str],
        typer.Argument(help="Weights, exported files or folders, or models' names (random weights); the first is 1×."),
    ],
    runtimes: Annotated[
        str | None,
        typer.Option(
            help="How to run weights: torch, pt2, onnx, openvino, each with :PRECISION behind it, and commas between "
            "them. They are exported for it; int8 is calibrated on --data.  [default: torch, or the exported file's]"
        ),
    ] = None,
    decoder_layers: Annotated[
        str | None, typer.Option(help="Run only the first so many; several with commas.  [default: all]")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="Select only the best so many; several with commas.  [default: all]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Measure AP, too, on the val split of this.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of pictures, or one.  [default: generated, 640 × 480, JPEG]")
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help="transformers: its implementation with the first weights, beside them.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Side of the input of models with random weights, pixels.")] = 640,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is timed.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: as the engines like]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for benchmark.json and, with --data, benchmark.svg.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Time detectors side by side: the network alone, from a file to boxes, and as a stream of files.

    All take turns, round by round. Close other programs, and time what you compare in one call.
    """
    from setdet.api import read_with_split
    from setdet.benchmark.measure import compare
    from setdet.benchmark.picture import accuracy_over_time
    from setdet.data.writing import write_atomically
    from setdet.folders import unused
    from setdet.predict import expand_sources

    if peers not in (None, "transformers"):
        raise UsageError(f"--peers {peers}: there is no such peer. Known: transformers.")
    if out is not None:
        unused(out)  # before the minutes that measuring takes
    accuracy = None if data is None else partial(_ap, dataset=read_with_split(data, "val"))
    with tempfile.TemporaryDirectory() as scratch:
        files = expand_sources([str(pictures)]) if pictures else _generated(Path(scratch))
        sources = [_source(name, image_size=image_size, scratch=Path(scratch)) for name in weights]
        chosen = _ways(runtimes, decoder_layers, queries)
        beside = _peers(sources, chosen, threads=threads, device=device) if peers else {}
        candidates = list(
            _candidates(weights, sources, chosen, data=data, scratch=Path(scratch), device=device, threads=threads)
        )
        comparison = compare(
            candidates,
            files,
            rounds=rounds,
            peers=beside,
            accuracy=accuracy,
            settings={"threads": threads, "device": device, "data": None if data is None else f"{data}, val"},
            say=say,
        )
    text = json.dumps(comparison.to_dict(), indent=1, ensure_ascii=False) + "\n"
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "benchmark.json", text)
        if (chart := accuracy_over_time(comparison)) is not None:
            write_atomically(out / "benchmark.svg", chart.file())
    if as_json:
        typer.echo(text.rstrip("\n"))
        return
    _show(comparison)


def _source(name: str, *, image_size: int, scratch: Path) -> Path:
    """Where the weights are; a model's name is given random ones."""
    from setdet.models.variants import MODELS
    from setdet.weights.catalog import resolve

    if name not in MODELS or Path(name).exists():
        return resolve(name)
    import torch

    from setdet.images import Preprocessing
    from setdet.models.rtdetr import build_model
    from setdet.weights.classes import default_class_names
    from setdet.weights.files import CheckpointInfo, save_checkpoint

    path = scratch / f"{name}.safetensors"
    torch.manual_seed(0)
    model = build_model(name)
    info = CheckpointInfo(
        model=model.config,
        class_names=default_class_names(model.config.num_classes),
        preprocessing=Preprocessing.from_dict({"image_size": (image_size, image_size)}, source="--image-size"),
        history={},
    )
    save_checkpoint(path, state=model.state_dict(), info=info)
    return path


def _ways(runtimes: str | None, decoder_layers: str | None, queries: str | None) -> "list[Way]":
    from setdet.benchmark.ways import ways

    return ways(
        (runtimes or "torch").split(","),
        decoder_layers=_counts(decoder_layers, "--decoder-layers"),
        queries=_counts(queries, "--queries"),
    )


def _counts(text: str | None, option: str) -> list[int | None]:
    if text is None:
        return [None]
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers with commas between them, such as 1,2,3.") from None


def _candidates(
    weights: list[str], sources: list[Path], chosen: "list[Way]", *, data: Path | None, scratch: Path, **options: Any
) -> "Iterator[Candidate]":
    from setdet.benchmark.measure import Candidate
    from setdet.benchmark.ways import Way, write
    from setdet.folders import distinct_names
    from setdet.runtime.exported import exported_format, open_exported
    from setdet.weights.files import load_model

    for name, source in zip(distinct_names(weights), sources, strict=True):
        if exported_format(source) is not None:
            if chosen != [Way("torch", "fp32")]:
                raise UsageError(
                    f"{name}: is exported already, and runs as it is. Leave it, or the other options, out."
                )
            made = open_exported(source).info
            called = f"{name}, {made.format} {made.precision}"
            yield Candidate(name=called, line=called, open=partial(_open, source, options))
            continue
        for way in chosen:
            path, own = (
                source,
                {"precision": way.precision, "decoder_layers": way.decoder_layers, "queries": way.queries},
            )
            if way.engine != "torch":
                folder = Path(tempfile.mkdtemp(dir=scratch))
                path, own = write(way, *load_model(source), folder, calibration=data, say=say), {}
            yield Candidate(
                name=f"{name}, {way}", line=f"{name}, {way.line}", open=partial(_open, path, {**options, **own})
            )


def _ap(predictor: "Predictor", dataset: "Dataset") -> float | None:
    from setdet.evaluate import evaluate

    return evaluate(predictor, dataset.splits["val"], class_names=dataset.class_names).ap


def _open(path: Path, options: dict[str, Any], hint: str) -> "Predictor":
    from setdet.api import load
    from setdet.runtime.exported import exported_format

    if exported_format(path) == "openvino":
        options = {**options, "hint": hint}
    return load(path, **options).predictor


def _peers(
    sources: list[Path], chosen: "list[Way]", *, threads: int | None, device: str
) -> "dict[str, Callable[[], object]]":
    from setdet.benchmark.peers import transformers_peers
    from setdet.models.rtdetr import build_model
    from setdet.runtime.exported import exported_format, open_exported
    from setdet.runtime.torch import select_device
    from setdet.weights.files import load_model

    made = [open_exported(source).info for source in sources if exported_format(source) is not None]
    precisions = {one.precision for one in made} | (
        {way.precision for way in chosen} if len(made) < len(sources) else set()
    )
    if exported_format(sources[0]) is not None:
        info = made[0].checkpoint
        model = build_model(info.model).eval()  # with other weights: they don't change the time
    else:
        info, model = load_model(sources[0])
    if info.model.decoder.rivals:
        say("transformers has no rivals, so its model is timed without them.")
        info = info.model_copy(update={"model": info.model.override(["decoder.rivals=false"])})
        model = build_model(info.model).eval()
    peers: dict[str, Callable[[], object]] = {}
    # There is no int8 of theirs; what ours computes beside it is bfloat16.
    for precision in sorted({"fp32" if one == "fp32" else "bf16" for one in precisions}):
        peers |= transformers_peers(info, model, precision=precision, threads=threads, device=select_device(device))
    return peers


def _generated(folder: Path) -> list[Path]:
    """Pictures of 640 × 480, as JPEG."""
    import cv2

    from setdet.data.surfaces import generate

    paths = []
    for index in range(_PICTURES):
        path = folder / f"{index}.jpg"
        cv2.imwrite(str(path), cv2.cvtColor(generate(index, seed=0, size=640).image[:480], cv2.COLOR_RGB2BGR))
        paths.append(path)
    return paths


def _show(comparison: "Comparison") -> None:
    from setdet.benchmark.timing import machine

    here, settings = machine(), comparison.settings
    threads = "threads as the engines like" if settings["threads"] is None else f"threads: {settings['threads']}"
    show(f"{here['processor']}, cores: {here['cores']}, {threads}; {settings['rounds']} rounds, batch 1\n")
    timings = [(one.alone, one.ap) for one in comparison.measured.values()]
    timings += [(one, None) for one in comparison.peers.values()]
    show_table(
        ("the network alone", "median ms", "95 %", "beside the first", "AP"),
        [
            (
                one.name,
                f"{one.median_ms:.1f}",
                f"{one.p95_ms:.1f}",
                f"{one.ratio:.2f}×",
                "" if ap is None else f"{ap:.4f}",
            )
            for one, ap in timings
        ],
    )
    show("")
    show_table(
        ("from file to boxes", "median ms", "decode", "prepare", "network", "pictures/s, streamed", "MiB more"),
        [
            (
                name,
                f"{one.whole.median_ms:.1f}",
                f"{one.stages.decode:.1f}",
                f"{one.stages.prepare:.1f}",
                f"{one.stages.network:.1f}",
                f"{one.pictures_per_second:.1f}",
                "–" if one.memory_mib is None else f"{one.memory_mib:.0f}",
            )
            for name, one in comparison.measured.items()
        ],
    )
