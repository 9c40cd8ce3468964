"""What the writers of all formats share: whole files or none, pictures under unique names, folders not in use."""

import contextlib
import os
import threading
from pathlib import Path

import cv2
import numpy as np

from setdet.data.schema import Sample
from setdet.errors import DataError, OutputError, WriteError
from setdet.images import IMAGE_SUFFIXES


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: whoever reads it meanwhile sees the old one or the new one.

    Text is stored as UTF-8; what a file name holds beside it (of other encodings) as an escape, which JSON reads back.

    Raises:
        WriteError: it cannot be written.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="backslashreplace")
    # A name that no other process or thread has, and no longer than a file's may be.
    partial = path.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise WriteError(
            f"{path}: cannot be written ({error.strerror}). Make room, or choose another folder."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class PictureFolder:
    """A folder that takes the pictures of one split, as PNG: without loss, so reading gives back what was written.

    Raises:
        OutputError: the folder holds something already, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            in_use = any(folder.iterdir())
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made ({error.strerror}). Choose another folder.") from None
        if in_use:
            raise OutputError(f"{folder}: is in use. Choose another folder or split, or empty this one first.")
        self._folder = folder
        self._stems: set[str] = set()

    def save(self, sample: Sample) -> Path:
        """Writes the picture of `sample` under its name and returns the file's path.

        Raises:
            DataError: two samples have the same name.
            WriteError: the file cannot be written.
        """
        name = Path(sample.name)
        stem = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
        if not stem or stem in self._stems:
            raise DataError(f"{self._folder}: two pictures are called '{stem}'. Give each sample a name of its own.")
        self._stems.add(stem)
        path = self._folder / f"{stem}.png"
        # A grey picture is stored as one channel: a third of the size, and decoded to the same three.
        grey = bool(np.all(sample.image == sample.image[:, :, :1]))
        pixels = sample.image[:, :, 0] if grey else cv2.cvtColor(sample.image, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".png", pixels)
        write_atomically(path, encoded.tobytes())
        return path


def refuse_crowd(sample: Sample, *, format_name: str) -> None:
    """Refuses boxes of groups, for formats that have no mark for them.

    Raises:
        DataError: there is one.
    """
    if sample.crowd.any():
        raise DataError(
            f"{sample.name}: has crowd boxes, which {format_name} cannot mark. Write COCO, or leave them out."
        )
