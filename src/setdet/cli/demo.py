"""`setdet demo`: the whole job on generated pictures, with the weights that are in the package."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from setdet.cli.console import say, show, show_table
from setdet.errors import OutputError

WEIGHTS = "rtdetr-n/surfaces"
# The packaged weights never saw a picture of this seed: their training used others, as their history says.
DEMO_SEED = 2024
PICTURES = 24

_NEXT = [
    ("setdet data make surfaces steel --count 200", "a data set to play with; or take your own"),
    ("setdet data check steel", "what is in it"),
    (f"setdet train steel --init {WEIGHTS} --image-size 224 --epochs 10", "weights and a report in runs/"),
    ("setdet val runs/rtdetr-n steel", "AP, precision, recall"),
    ("setdet predict runs/rtdetr-n PICTURES --save csv", "boxes drawn, and a table"),
]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the sheet and the report.")] = Path("demo-output"),
) -> None:
    """See the detector work: 24 generated steel surfaces, a trained model, a sheet of what it finds, a report.

    Running it again replaces the two files.
    """
    from setdet.api import load
    from setdet.data.sources import read_dataset
    from setdet.data.surfaces import make
    from setdet.images import read_image
    from setdet.report.demo import write_demo_report
    from setdet.report.measured import measure, shown
    from setdet.report.pairing import pair
    from setdet.report.sheet import add_legend, contact_sheet, draw_found_and_true, encode

    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; --out must be a folder. Choose another.")
    started = time.perf_counter()
    detector = load(WEIGHTS, device="cpu")
    say(f"1/3  {PICTURES} steel surfaces, generated with seed {DEMO_SEED}, which no training used")
    with TemporaryDirectory(prefix="setdet-demo-") as scratch:
        folder = Path(scratch) / "surfaces"
        make(folder, count=PICTURES, seed=DEMO_SEED, format="voc")
        dataset = read_dataset(folder)
        records = sorted(
            (record for split in dataset.splits.values() for record in split), key=lambda one: one.image.name
        )
        say(f"2/3  {WEIGHTS} looks for {len(detector.class_names)} kinds of defect on them")
        measured = measure(detector.predictor, records)
        say("3/3  drawing what it found")
        drawn = [
            draw_found_and_true(read_image(record.image), found, record)
            for record, found in zip(measured.records, measured.detections, strict=True)
        ]
        out.mkdir(parents=True, exist_ok=True)
        sheet = out / "sheet.png"
        sheet.write_bytes(encode(add_legend(contact_sheet(drawn))))
        seconds = time.perf_counter() - started
        page = write_demo_report(
            out / "report.html",
            measured=measured,
            weights=WEIGHTS,
            lead=(
                f"{PICTURES} pictures of steel were generated with a seed that no training used; a small trained "
                f"detector looked for six kinds of defect on them, and what it found was compared with what is there. "
                f"All of it took {seconds:.0f} seconds on the CPU."
            ),
            commands=_NEXT,
        )

    show("")
    show_table(
        ("class", "boxes", "AP50", "AP"),
        [(row["name"], row["boxes"], shown(row["ap50"]), shown(row["ap"])) for row in measured.classes()],
    )
    found = sum(len(detections) for detections in measured.detections)
    true = sum(len(record.labels) for record in measured.records)
    right = sum(pair(*both).right for both in zip(measured.records, measured.detections, strict=True))
    show("")
    show(f"AP50       {shown(measured.values['ap50'])}, from 0 to 1: boxes at every score, mean of the classes")
    show(f"recall     {right} of the {true} defects that are there were found")
    show(
        f"precision  {right} of the {found} boxes drawn are right; those with a score from {measured.confidence:.2f} up"
    )
    show(f"sheet      {sheet}")
    show(f"report     {page}")
    show("")
    show("What to do next:")
    for command, comment in _NEXT:
        show(f"  {command:<72} # {comment}")
