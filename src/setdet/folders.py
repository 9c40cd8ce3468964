"""Where results go: a folder is never shared by two runs."""

import itertools
from pathlib import Path

from setdet.errors import OutputError


def unused(folder: Path) -> Path:
    """`folder` itself, if it is free to be filled.

    Raises:
        OutputError: it is a file, or holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; --out must be a folder. Choose another.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"{folder}: the folder is in use: it holds files. Choose another with --out, or empty this one first."
        )
    return folder


def next_unused(folder: Path) -> Path:
    """The first of `folder`, `folder-2`, `folder-3`, … that does not exist."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return folder if not folder.exists() else next(path for path in numbered if not path.exists())
