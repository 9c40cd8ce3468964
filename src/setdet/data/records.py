"""What the readers of all formats share: text files, names of splits, and boxes that are checked as they come."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from setdet.config import suggest
from setdet.data.schema import Record
from setdet.errors import DataError
from setdet.images import image_size

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
# Text formats round their numbers; a box that reaches this little over the edge is not worth a word.
_ROUNDING_PX = 0.01
_LARGEST_SIDE_PX = 2**31 - 1  # what PNG can state
_LARGEST_COORDINATE = float(np.finfo(np.float32).max)


def normalize_split(name: str) -> str | None:
    """One of train, val and test for the usual spellings of them, else None."""
    return _SPLIT_NAMES.get(name.strip().lower())


def subfolder(folder: Path, name: str) -> Path | None:
    """The folder of this name in `folder`, however it is capitalised; None if there is none."""
    if not folder.is_dir():
        return None
    found = [child for child in folder.iterdir() if child.name.lower() == name.lower() and child.is_dir()]
    return min(found) if found else None


def read_text(path: Path) -> str:
    """A text file in UTF-8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without the space around them, empty ones included.

    Only line feeds and carriage returns end a line: a form feed, or what Unicode calls a line separator, does not.
    """
    return [line.strip() for line in read_text(path).split("\n")]


def read_class_file(path: Path) -> tuple[str, ...]:
    """A file of class names, one a line.

    Raises:
        DataError: it is empty, a line before the last name is, or a name stands twice.
    """
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(
            f"{path}: line {names.index('') + 1} is empty, so it is unclear which number the classes after it have. "
            "Write the missing name there, or remove the line."
        )
    return check_class_names(names, source=str(path))


def check_class_names(names: Sequence[str], *, source: str) -> tuple[str, ...]:
    """The names, if there are some and none stands twice.

    Raises:
        DataError: otherwise.
    """
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or twice:
        found = f"'{twice[0]}' stands twice" if twice else "there is none"
        raise DataError(f"{source}: expected class names, each once, but {found}. Correct the list.")
    return tuple(names)


@dataclass(frozen=True)
class RawBox:
    """One box as a file states it: a class, corners in pixels (half-open), and a name for messages.

    `area_px` is the object's, where the file states one besides the box.
    """

    label: int
    xyxy_px: tuple[float, float, float, float]
    where: str
    crowd: bool = False
    area_px: float | None = None


@dataclass
class RecordBuilder:
    """Makes records of checked boxes, and counts what it had to repair.

    Attributes:
        clipped: boxes that reached over their picture's edge.
        duplicates: boxes that stood twice.
        remarks: other things to tell the user, each with how often it happened; the first `{count}` in it says so.
        problems: takes what is wrong with single pictures, which are then left out; None: the first is raised.
    """

    clipped: int = 0
    duplicates: int = 0
    remarks: Counter[str] = field(default_factory=Counter)
    problems: list[DataError] | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """For the work on one picture: an error in it ends that work, and goes where `problems` says."""
        try:
            yield
        except DataError as error:
            if self.problems is None:
                raise
            self.problems.append(error)

    def record(self, image: Path, *, size: tuple[int, int] | None, boxes: Iterable[RawBox], source: Path) -> Record:
        """One picture's record: boxes clipped to it, exact duplicates dropped.

        Args:
            image: the picture's path.
            size: (height, width) as the annotations declare it; None reads it from the picture.
            boxes: the boxes, unchecked.
            source: the annotation file, for messages.

        Raises:
            DataError: a box lies outside, is inverted or has no area, or the size makes no sense.
        """
        height, width = image_size(image) if size is None else size
        if not (1 <= height <= _LARGEST_SIDE_PX and 1 <= width <= _LARGEST_SIDE_PX):
            raise DataError(
                f"{source}: declares a size of {width}×{height} pixels for {image.name}. Write its real size."
            )
        kept: dict[tuple[object, ...], float | None] = {}
        for box in boxes:
            entry = (box.label, *self._clip(box, height, width, source), box.crowd)
            self.duplicates += entry in kept
            kept.setdefault(entry, box.area_px)
        boxes_xyxy_px = np.array([entry[1:5] for entry in kept], dtype=np.float32).reshape(-1, 4)
        return Record(
            image=image,
            height=height,
            width=width,
            boxes_xyxy_px=boxes_xyxy_px,
            labels=np.array([entry[0] for entry in kept], dtype=np.int64),
            crowd=np.array([entry[5] for entry in kept], dtype=np.bool_),
            areas_px=_areas(list(kept.values()), boxes_xyxy_px),
        )

    def notes(self) -> tuple[str, ...]:
        """What was repaired, one line each."""
        lines = [remark.replace("{count}", str(count), 1) for remark, count in self.remarks.items() if count]
        if self.clipped:
            lines.append(f"{self.clipped} boxes reached over the edge of their picture and were clipped to it.")
        if self.duplicates:
            lines.append(f"{self.duplicates} exact duplicates of boxes were dropped.")
        return tuple(lines)

    def _clip(self, box: RawBox, height: int, width: int, source: Path) -> tuple[float, float, float, float]:
        if not all(abs(value) <= _LARGEST_COORDINATE for value in box.xyxy_px):  # false for NaN, too
            raise DataError(f"{source}: {box.where} has a coordinate that is no finite number. Correct or remove it.")
        # The precision of a Record: what rounds onto the edge is not outside.
        left, top, right, bottom = (float(np.float32(value)) for value in box.xyxy_px)
        stated = f"{box.where} spans x {left:g} to {right:g}, y {top:g} to {bottom:g}"
        if right <= left or bottom <= top:
            raise DataError(
                f"{source}: {stated}: it is inverted or has no area. The first corner must be the upper left one; "
                "correct or remove the box."
            )
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise DataError(
                f"{source}: {stated}: it lies outside of the picture of {width}×{height} pixels. "
                "Correct or remove the box, or correct the declared size."
            )
        clipped = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
        if max(abs(a - b) for a, b in zip(clipped, (left, top, right, bottom), strict=True)) > _ROUNDING_PX:
            self.clipped += 1
        return clipped


def _areas(stated: Sequence[float | None], boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """The stated areas, completed by those of the boxes; None where none is stated."""
    if all(area is None for area in stated):
        return None
    of_boxes = np.prod(boxes_xyxy_px[:, 2:].astype(np.float64) - boxes_xyxy_px[:, :2], axis=1)
    return np.array([box if area is None else area for area, box in zip(stated, of_boxes, strict=True)], np.float64)


def unknown_class(name: str, known: Sequence[str], *, source: object) -> DataError:
    """The error for a class that is not among the known ones."""
    return DataError(
        f"{source}: unknown class '{name}'.{suggest(name, known)} Correct the name, or add it to the classes."
    )
