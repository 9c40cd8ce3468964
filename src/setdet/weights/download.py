"""Files from the network, kept in a folder of the user's: whole, checked, and fetched once. No torch.

An interrupted download goes on where it stopped. Where nobody publishes a hash, that of the first download is written
beside the file, and every later use is compared with it.
"""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from setdet.errors import OutputError, WeightsError
from setdet.weights.whole import write_whole

_CHUNK = 1 << 20
_ATTEMPTS = 3
_TIMEOUT_SECONDS = 30


def cache_folder() -> Path:
    """Where downloads are kept: the variable SETDET_CACHE, else ~/.cache/setdet."""
    return Path(os.environ.get("SETDET_CACHE") or "~/.cache/setdet").expanduser()


def fetch(url: str, path: Path) -> Path:
    """The file behind `url` at `path`, downloaded if it is not there yet.

    Args:
        url: http or https.
        path: where it is kept; the hash is beside it, in a file that ends in `.sha256`.

    Raises:
        WeightsError: there is no network, no such file there, or the file at `path` is not the one it was.
    """
    recorded = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                if not path.is_file():  # another process may have brought it meanwhile
                    _download(url, path)
        except OSError as error:
            raise WeightsError(
                f"{error.filename or path}: cannot be written ({error.strerror}). Name another folder in SETDET_CACHE."
            ) from None
    found = _hash(path)
    expected = recorded.read_text(encoding="utf-8").strip() if recorded.is_file() else None
    if expected is None:
        # Whole, since others may read it meanwhile; and who cannot write there cannot change the file either.
        with suppress(OSError, OutputError), _alone(path):
            write_whole(recorded, lambda name: Path(name).write_text(f"{found}\n", encoding="utf-8"))
    elif found != expected:
        raise WeightsError(
            f"{path}: is not the file that it was: its SHA-256 is {found[:12]}…, expected {expected[:12]}…. "
            f"Delete it (and {recorded.name} beside it, if the change is meant), and it is downloaded again from {url}."
        )
    return path


def _download(url: str, path: Path) -> None:
    """Through a file that ends in `.part`, which a later attempt goes on with."""
    part = path.with_name(f"{path.name}.part")
    problem = ""
    for _ in range(_ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            if _continue(url, part):
                os.replace(part, path)
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what is there is as long as the file, or longer: begin anew
                part.unlink(missing_ok=True)
                problem = "the file has changed there"
                continue
            raise WeightsError(f"{url}: the server answers {error.code} {error.reason}. {_by_hand(path)}") from None
        except (OSError, HTTPException) as error:  # URLError is an OSError
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            if not part.is_file() or part.stat().st_size == before:
                break  # nothing at all came through: there is no network
    size = f" {part.stat().st_size / 1e6:.1f} MB are here; the next attempt goes on there." if part.is_file() else ""
    raise WeightsError(f"{url}: cannot be downloaded ({problem}).{size} {_by_hand(path)}")


def _continue(url: str, part: Path) -> bool:
    """Appends what is missing to `part`; True when it is whole."""
    start = part.stat().st_size if part.is_file() else 0
    mark = part.with_name(f"{part.name}.etag")  # says whether the file over there is still the same
    known = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "setdet"})
    if start and known:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", known)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != 206:  # the whole file comes, from its beginning
            start = 0
            etag = response.headers.get("ETag") or ""
            mark.write_text("" if etag.startswith("W/") else etag, encoding="utf-8")
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with part.open("ab" if start else "wb") as file:
            _copy(response, file, start=start, total=total, title=part.name.removesuffix(".part"))
    if total is not None and part.stat().st_size != total:
        return False
    mark.unlink(missing_ok=True)
    return True


def _copy(response: IO[bytes], file: IO[bytes], *, start: int, total: int | None, title: str) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total, completed=start)
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            progress.advance(task, len(chunk))


def _by_hand(path: Path) -> str:
    return f"Check the network, or download it elsewhere and put it at {path}."


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time works on `path`, where the system can: `torchrun` starts several, all wanting it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
