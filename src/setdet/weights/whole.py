"""Files that are there whole or not at all. No torch."""

import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from setdet.errors import WriteError


def write_whole(path: Path, write: Callable[[str], object]) -> None:
    """Calls `write` with the name of a file beside `path`, and puts that in its place when it is on the disk.

    Raises:
        WriteError: it cannot be written; what was there before is as it was.
    """
    draft = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(str(draft))
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # PyTorch's writer says what went wrong with its own file, after what went wrong with the disk.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        raise WriteError(
            f"{path}: cannot be written ({cause}). Make room, or choose another place; a training run goes on with "
            "--resume."
        ) from None
    finally:
        draft.unlink(missing_ok=True)
