"""`setdet predict`: pictures go in; the same pictures with boxes, and files of detections on request, come out."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from setdet.cli.console import say, show, show_error
from setdet.cli.engine import hint_named, precision_named
from setdet.errors import UsageError
from setdet.folders import claim, unused

if TYPE_CHECKING:
    from setdet.detections import Detections
    from setdet.thresholds import Threshold

_FORMATS = ("json", "coco", "yolo", "csv")


def predict(
    weights: Annotated[
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a folder of transformers, hf:owner/name, an exported file or folder, or "
            "a name: `setdet models`."
        ),
    ],
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE", help="Pictures: files, folders, globs.")],
    out: Annotated[Path | None, typer.Option(help="New folder for the results.  [default: predictions]")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Lowest score to keep, 0 to 1.  [default: 0.5, or an exported file's own]")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(help="JSON file with one for each class: `setdet analyze errors --thresholds-on` writes it."),
    ] = None,
    save: Annotated[
        list[str] | None, typer.Option(help="Also write detections as json, coco, yolo or csv; repeatable.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object a picture, one a line; `--save json` writes a file.")
    ] = False,
    draw: Annotated[bool, typer.Option("--draw/--no-draw", help="Write the pictures with their boxes.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decoder_layers: Annotated[int | None, typer.Option(help="Run only the first so many.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Select only the best so many.  [default: all]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.  [default: fp32, or what an exported file was made for]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of one prediction.")] = None,
    hint: Annotated[
        str, typer.Option(help="OpenVINO: latency, one picture at a time, or throughput, as many as there is room for.")
    ] = "latency",
    reduced_decoding: Annotated[
        bool, typer.Option("--reduced-decoding", help="Decode large JPEG files smaller than they are: faster.")
    ] = False,
) -> None:
    """Find objects on pictures, and draw them.

    A broken picture is named and left out; the exit code is 1 then. A run that is interrupted leaves whole files of
    what it has done.
    """
    from setdet.api import load
    from setdet.config import suggest
    from setdet.errors import ImageError
    from setdet.predict import expand_sources
    from setdet.thresholds import lowest_scores

    formats = list(dict.fromkeys(save or ()))
    for name in formats:
        if name not in _FORMATS:
            raise UsageError(f"--save {name}: there is no such format.{suggest(name, _FORMATS)}")
    lowest = _lowest(threshold, thresholds)
    paths = expand_sources(sources)
    if out is not None:
        unused(out)
    detector = load(
        weights,
        device=device,
        precision=precision_named(precision),
        decoder_layers=decoder_layers,
        queries=queries,
        threads=threads,
        hint=hint_named(hint),
        reduced_decoding=reduced_decoding,
    )

    broken: list[str] = []

    def name_broken(source: str, error: ImageError) -> None:
        broken.append(source)
        show_error(str(error))

    if lowest is not None:
        lowest_scores(lowest, detector.class_names)  # what is wrong with them is said before there is a folder
    folder = claim(out, default=Path("predictions"))
    names = output_names(paths)
    kept: list[Detections] = []  # for the files; without them, any number of pictures takes no more memory than one
    looked_at = objects = 0
    try:
        for detections in detector.stream(paths, threshold=lowest, on_error=name_broken):
            looked_at, objects = looked_at + 1, objects + len(detections)
            if formats:
                kept.append(detections)
            if as_json:
                typer.echo(json.dumps(detections.to_dict(), ensure_ascii=False))
            else:
                show(f"{detections.source}: {_summary(detections)}")
            if draw:
                try:
                    _draw(detections, folder / names[Path(detections.source)])
                except ImageError as error:
                    name_broken(detections.source, error)
    finally:  # interrupted or failed, too: nobody looks at the first thousand pictures twice
        written = [_write(folder, name, kept, names) for name in formats]
        tell = say if as_json else show
        tell(f"{looked_at} of {len(paths)} pictures, {objects} detections → {folder}")
    if broken:
        show_error(f"{len(broken)} of {len(paths)} pictures could not be read; they are named above.")
    if broken or not all(written):
        raise typer.Exit(code=1)


def _lowest(threshold: float | None, thresholds: Path | None) -> "Threshold | None":
    """The one score or each class's.

    Raises:
        UsageError: both are given, or it is no score.
        DataError: the file is no file of thresholds.
    """
    from setdet.thresholds import read_thresholds

    if thresholds is not None:
        if threshold is not None:
            raise UsageError("--threshold is for all classes and --thresholds for each: give one of them.")
        return read_thresholds(thresholds)
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold}: expected a score from 0 to 1.")
    return threshold


def output_names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Where each picture's drawing goes, below the output folder: as below the pictures' common folder.

    A drawing is a PNG, unless the picture is a JPEG. Pictures that differ in nothing but the ending keep it in front.
    """
    absolute = {path: Path(os.path.abspath(path)) for path in paths}
    common = Path(os.path.commonpath([path.parent for path in absolute.values()]))
    relative = {path: place.relative_to(common) for path, place in absolute.items()}
    stems = Counter(place.with_suffix("") for place in relative.values())
    names = {}
    for path, place in relative.items():
        stem = place.with_suffix("") if stems[place.with_suffix("")] == 1 else place
        suffix = ".jpg" if place.suffix.lower() in (".jpg", ".jpeg", ".jfif") else ".png"
        names[path] = stem.with_name(stem.name + suffix)
    return names


def _summary(detections: "Detections") -> str:
    counts = Counter(detections.class_names[label] for label in detections.labels)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


def _draw(detections: "Detections", target: Path) -> None:
    """Writes the picture with its detections.

    Raises:
        ImageError: the picture is no longer what it was when it was looked at.
        WriteError: the drawing cannot be written.
    """
    from setdet.data.writing import write_atomically
    from setdet.draw import draw_detections
    from setdet.errors import ImageError
    from setdet.images import read_image
    from setdet.report.sheet import encode

    image = read_image(Path(detections.source))
    if image.shape[:2] != detections.image_size:
        raise ImageError(f"{detections.source}: the picture changed while it was being looked at. Run again on it.")
    drawn = encode(draw_detections(image, detections), kind="jpeg" if target.suffix == ".jpg" else "png")
    write_atomically(target, drawn)


def _write(folder: Path, format_name: str, found: "list[Detections]", names: dict[Path, Path]) -> bool:
    """Writes the files of a format, and says whether it could; what it could not is told."""
    from setdet.data.writing import write_atomically
    from setdet.errors import WriteError

    try:
        for place, text in _documents(format_name, found, names).items():
            write_atomically(folder / place, text)
    except WriteError as error:
        show_error(str(error))
        return False
    return True


def _documents(format_name: str, found: "list[Detections]", names: dict[Path, Path]) -> dict[Path, str]:
    """The files of a format, by their place below the output folder."""
    from setdet.detections import to_coco, to_csv, to_yolo
    from setdet.weights.classes import category_ids

    match format_name:
        case "json":
            values = [detections.to_dict() for detections in found]
            return {Path("detections.json"): json.dumps(values, indent=1, ensure_ascii=False) + "\n"}
        case "coco":
            ids = category_ids(found[0].class_names) if found else None
            return {Path("coco.json"): json.dumps(to_coco(found, category_ids=ids), ensure_ascii=False) + "\n"}
        case "yolo":
            places = [Path("labels") / names[Path(detections.source)].with_suffix(".txt") for detections in found]
            return {place: to_yolo(detections) for place, detections in zip(places, found, strict=True)}
        case _:
            return {Path("detections.csv"): to_csv(found)}
