"""What the studies share: a list of training runs, gone through by one command that goes on where it stopped."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import setdet
from setdet.data.writing import write_atomically


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        name: of its folder.
        stage: what it is for; one word of the study's own.
        settings: arguments of `setdet.train`.
        overrides: any other field.
        pictures: makes or finds the data set that it trains on; None: the study's.
    """

    name: str
    stage: str
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    pictures: Callable[[], Path] | None = None


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that every study has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="NEU-DET")
    parser.add_argument("--out", type=Path, required=True, help="a folder for all runs")
    parser.add_argument("--only", nargs="+", default=[""], metavar="NAME", help="runs whose names start so")
    parser.add_argument("--list", action="store_true", help="say what there is and what is done")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def go_through(runs: Sequence[Run], args: argparse.Namespace) -> list[Run]:
    """Trains what is asked for and not done yet; returns all runs that are done."""
    for run in runs:
        if not run.name.startswith(tuple(args.only)):
            continue
        if args.list:
            print(f"{'done' if is_done(args.out / run.name) else '    '}  {run.stage:12} {run.name}")
        elif not is_done(args.out / run.name):
            _go_on_with(run, args)
    return [run for run in runs if is_done(args.out / run.name)]


def is_done(folder: Path) -> bool:
    """Its report is the last thing that a run writes."""
    return (folder / "report.html").is_file()


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Puts `text` in the place of what stands between two lines of a page.

    Raises:
        SystemExit: the page has no such lines.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise SystemExit(f"{page}: has no lines '{begin}' and '{end}' to write between.")
    write_atomically(page, f"{before}{begin}\n\n{text}\n\n{end}{after}")


def _go_on_with(run: Run, args: argparse.Namespace) -> None:
    folder = args.out / run.name
    source = args.data if run.pictures is None else run.pictures()
    init = run.settings.get("init")
    if init is not None and Path(init).is_relative_to(args.out) and not is_done(Path(init)):
        raise SystemExit(f"{run.name} starts from {init}, which is not done.")
    settings = run.settings
    resume = (folder / "state").is_dir()
    if resume:  # says so if it was started with others
        settings = {name: value for name, value in settings.items() if name != "recipe"}
    result = setdet.train(source, out=folder, device=args.device, overrides=run.overrides, resume=resume, **settings)
    if result.interrupted:
        raise SystemExit(130)  # whoever stopped this run wants no other one
