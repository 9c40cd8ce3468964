"""The command line: one small file a verb.

A verb imports what it needs when it runs, so that help appears at once and without torch.
"""

import errno
import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, TextIO

import typer

from setdet import __version__
from setdet.cli import analyze, average, benchmark, data, demo, export, models, predict, report, train, val
from setdet.cli.console import say, show_error
from setdet.errors import MissingExtraError, SetdetError

# Packages of the extra 'train', by the names that they are imported by.
_TRAIN_EXTRA = frozenset(
    (
        "PIL",
        "faster_coco_eval",
        "huggingface_hub",
        "jaxtyping",
        "jinja2",
        "lightning_fabric",
        "markupsafe",
        "numba",
        "scipy",
        "tensorboard",
        "torch",
    )
)

app = typer.Typer(
    name="setdet",
    help="RT-DETR, a real-time object detector you can own: train, measure, look, run. Start with `setdet demo`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(name="demo")(demo.demo)
app.command(name="train")(train.train)
app.command(name="val")(val.val)
app.command(name="predict")(predict.predict)
app.command(name="report")(report.report)
app.command(name="average")(average.average)
app.command(name="export")(export.export)
app.add_typer(analyze.app, name="analyze")
app.add_typer(data.app, name="data")
app.command(name="benchmark")(benchmark.benchmark)
app.command(name="models")(models.models)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"setdet {__version__}")
        raise typer.Exit


@app.callback()
def _setdet(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: what follows the command's name; None: those of this process.

    Returns:
        The exit code: 0 done, 1 the job failed, 2 wrong use, 130 interrupted, 143 terminated. Failures that setdet
        foresees are one message on the standard error, without a traceback.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # what it finds in a broken picture is said here in other words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name or an arrow that it cannot write is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    log, notes = logging.getLogger("setdet"), _Notes()
    log.addHandler(notes)
    try:
        with warnings.catch_warnings(), _terminated_in_order():
            warnings.showwarning = _show_warning
            code = _run(arguments)
    finally:
        log.removeHandler(notes)
    if code and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # One of several processes: leaving in order may wait for the others, which wait for this one. torchrun ends
        # them when it is gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM, by which services are stopped, ends the command as Ctrl-C does: what is done is written first."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Notes(logging.Handler):
    """What the library notes on its way, such as how a data set was read, as lines for users."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        app(args=None if arguments is None else list(arguments), prog_name="setdet")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except SetdetError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _TRAIN_EXTRA:
            raise
        return _fail(MissingExtraError(module=module, extra="train", purpose="This command"))
    except KeyboardInterrupt:
        show_error("Interrupted.")
        return 130
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(SetdetError(f"{error.filename or 'Output'}: the disk is full. Make room, and start again."))
        if error.filename is None:
            raise
        return _fail(SetdetError(f"{error.filename}: {error.strerror}."))
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line for users, without the place in the code that Python puts in front."""
    say(f"warning: {message}")


def _fail(error: SetdetError) -> int:
    show_error(str(error))
    return error.exit_code
