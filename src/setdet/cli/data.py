"""`setdet data …`: making and checking data sets."""

from collections import Counter
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal, cast

import typer

from setdet.cli.console import err, say, show, show_error, show_table
from setdet.errors import UsageError

app = typer.Typer(help="Make and check data sets.", no_args_is_help=True)
_make = typer.Typer(help="Make data sets from nothing.", no_args_is_help=True)
app.add_typer(_make, name="make")

_FORMATS = ("voc", "coco", "yolo")


@_make.command()
def surfaces(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the data set.")],
    count: Annotated[int, typer.Option(min=1, help="Pictures.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Decides every pixel; another seed, other pictures.")] = 0,
    format_: Annotated[str, typer.Option("--format", help="voc, coco or yolo.")] = "voc",
) -> None:
    """Generate pictures of steel surfaces with six kinds of defect, and exact boxes."""
    from setdet.config import suggest
    from setdet.data.surfaces import make

    if format_ not in _FORMATS:
        raise UsageError(f"--format {format_}: there is no such format.{suggest(format_, _FORMATS)}")
    make(directory, count=count, seed=seed, format=cast("Literal['voc', 'coco', 'yolo']", format_))
    show(f"{count} pictures in {directory} ({format_}).")
    show(f"next     setdet train {quote(str(directory))} --model rtdetr-n --image-size 224")


@app.command()
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder, a data.yaml or a COCO JSON.")],
) -> None:
    """Read a data set, open every picture, and say what is in it.

    Everything that is wrong is named, in the annotations or in the pictures; the exit code is 1 then.
    """
    from rich.progress import track

    from setdet.data.schema import check_size
    from setdet.data.sources import read_dataset
    from setdet.errors import DataError
    from setdet.images import read_image

    problems: list[DataError] = []
    try:
        dataset = read_dataset(data, problems=problems)
    except DataError:  # that ends the reading; what was found before is worth knowing, too
        for problem in problems:
            show_error(str(problem))
        raise
    for note in dataset.notes:
        show(note)
    show("")
    boxes = {
        split: Counter(int(label) for record in records for label in record.labels)
        for split, records in dataset.splits.items()
    }
    rows: list[list[object]] = [["pictures", *(len(records) for records in dataset.splits.values())]]
    empty = [sum(not len(record.labels) for record in records) for records in dataset.splits.values()]
    rows.append(["  without boxes", *empty])
    rows.append(["boxes", *(counts.total() for counts in boxes.values())])
    rows += [
        [f"  {name}", *(counts[label] for counts in boxes.values())] for label, name in enumerate(dataset.class_names)
    ]
    show_table(("", *dataset.splits), rows)
    show("")

    for problem in problems:
        show_error(str(problem))
    records = [record for split in dataset.splits.values() for record in split]
    for record in track(records, description="opening pictures", console=err, transient=True):
        try:
            check_size(record, *read_image(record.image).shape[:2])
        except DataError as error:
            problems.append(error)
            show_error(str(error))
    if problems:
        say(f"{data}: {len(problems)} problems, named above.")
        raise typer.Exit(code=1)
    show(f"All {len(records)} pictures can be read.")
