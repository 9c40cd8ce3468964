"""Where results go, and what they are called: a folder is never shared by two runs."""

import itertools
from collections.abc import Sequence
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


def claim(out: Path | None, *, default: Path) -> Path:
    """Makes the folder for what is to be written now: `out`, which `unused` has checked before the work.

    None: the first of `default`, `default-2`, … that nobody has, two processes at once never the same.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        return out
    while True:
        free = next_unused(default)
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        return free


def put_in_place(made: Path, folder: Path) -> None:
    """Moves a finished folder to where `unused` has found room, on the same disk.

    An empty folder that is there stays what it is, and takes what is in `made`: somebody may stand in it, or a link
    lead to it.
    """
    made.chmod(0o755)  # not for its owner alone, as temporary folders are
    if folder.exists():
        for part in made.iterdir():
            part.rename(folder / part.name)
    else:
        made.rename(folder)


def distinct_names(weights: Sequence[str]) -> list[str]:
    """A short name for each, no two alike: of a path as few of its last parts as tell it from the others."""
    paths = [Path(one).resolve().parts if Path(one).exists() else (one,) for one in weights]
    names = []
    for index, parts in enumerate(paths):
        others = paths[:index] + paths[index + 1 :]
        ends = (parts[-count:] for count in range(1, len(parts) + 1))
        own = next((end for end in ends if all(other[-len(end) :] != end for other in others)), parts)
        names.append("/".join(own).removesuffix(".safetensors"))
    return [name if names.count(name) == 1 else f"{name} #{index + 1}" for index, name in enumerate(names)]
