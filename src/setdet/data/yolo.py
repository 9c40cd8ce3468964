"""YOLO: one text file a picture, `class cx cy width height` a line, as shares of the picture's size.

Read from a `data.yaml` (path, train, val, test, names), or a folder that holds one, or a folder of `images/` and
`labels/` (with or without folders for splits, on either level) and a `classes.txt`. A picture without a text file is
one without objects. Polygons are read as the boxes around them. No torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from setdet.data.records import (
    SPLITS,
    RawBox,
    RecordBuilder,
    check_class_names,
    normalize_split,
    pictures_below,
    read_class_file,
    read_text,
)
from setdet.data.schema import Dataset, Record, Sample
from setdet.data.writing import PictureFolder, refuse_crowd, write_atomically
from setdet.errors import DataError, UnknownFormatError
from setdet.images import IMAGE_SUFFIXES, image_size

_YAML_SUFFIXES = (".yaml", ".yml")
_CLASS_FILES = ("classes.txt", "labels/classes.txt", "obj.names")
# Files state six decimals or so; rounding to a billionth of a pixel undoes the noise of multiplying by the size.
_DECIMALS_PX = 9


@dataclass(frozen=True)
class _Layout:
    """Where the pictures of each split lie, and what the classes are called."""

    class_names: tuple[str, ...]
    pictures: dict[str, list[Path]]


def recognizes(path: Path) -> bool:
    """Whether `path` is a YAML file or a folder in one of this format's layouts."""
    if path.is_file():
        return path.suffix.lower() in _YAML_SUFFIXES
    return _yaml_in(path) is not None or (_class_file(path) is not None and bool(_picture_folders(path)))


def read(path: Path) -> Dataset:
    """Reads a `data.yaml` or a folder.

    Raises:
        DataError: a file is broken, pictures are missing, a class is not among the names.
    """
    file = path if path.is_file() else _yaml_in(path)
    layout = _from_yaml(file) if file is not None else _from_folder(path)
    builder = RecordBuilder()
    splits = {
        split: tuple(_record(picture, layout.class_names, builder) for picture in sorted(set(pictures)))
        for split, pictures in layout.pictures.items()
    }
    return Dataset(root=path, format="yolo", class_names=layout.class_names, splits=splits, notes=builder.notes())


def write(directory: Path, *, split: str, samples: Iterable[Sample], class_names: Sequence[str]) -> None:
    """Writes one split as `images/<split>/*.png` and `labels/<split>/*.txt`, and adds it to `data.yaml` at the end.

    Raises:
        DataError: two samples have one name, a sample has crowd boxes, or the folder has other classes already.
        OutputError: the split is there already, or the folder cannot be written.
    """
    file = directory / "data.yaml"
    content: dict[str, Any] = _load_yaml(file) if file.exists() else {}
    names = dict(enumerate(class_names))
    if content.get("names", names) != names:
        raise DataError(f"{file}: lists other classes than {', '.join(class_names)}. Choose another folder.")
    pictures = PictureFolder(directory / "images" / split)
    for sample in samples:
        refuse_crowd(sample, format_name="YOLO")
        image = pictures.save(sample)
        write_atomically(directory / "labels" / split / f"{image.stem}.txt", _lines(sample))
    given = {normalize_split(key): value for key, value in content.items()} | {
        normalize_split(split): f"images/{split}"
    }
    content = {"path": "."} | {key: given[key] for key in SPLITS if key in given} | {"names": names}
    write_atomically(file, yaml.safe_dump(content, sort_keys=False))


def _lines(sample: Sample) -> str:
    height, width = sample.image.shape[:2]
    corners = sample.boxes_xyxy_px.astype(np.float64) / (width, height, width, height)
    boxes = np.hstack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
    rows = zip(sample.labels.tolist(), boxes.tolist(), strict=True)
    return "".join(f"{label} {' '.join(f'{value:.17g}' for value in box)}\n" for label, box in rows)


def _yaml_in(folder: Path) -> Path | None:
    """The folder's YAML file that describes a data set."""
    for file in sorted(child for child in folder.iterdir() if child.suffix.lower() in _YAML_SUFFIXES):
        if file.stem in ("data", "dataset"):
            return file
        try:
            content = yaml.safe_load(read_text(file))
        except (DataError, yaml.YAMLError, RecursionError):  # some other file that lies there
            continue
        if isinstance(content, dict) and "names" in content and {"train", "val", "test"} & set(content):
            return file
    return None


def _load_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: is not YAML ({error}). Correct it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected keys such as train, val and names, found {type(content).__name__}.")
    return content


def _from_yaml(file: Path) -> _Layout:
    content = _load_yaml(file)
    class_names = _names(content, file)
    bases = [file.parent / str(content.get("path") or "."), file.parent]
    pictures: dict[str, list[Path]] = {}
    for key, value in content.items():
        split = normalize_split(str(key))
        if split is None or value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        found = pictures.setdefault(split, [])
        for entry in entries:
            found += _pictures_at(_locate(str(entry), bases, f"{file}: {key}"))
    if not pictures:
        raise DataError(f"{file}: names no split. Add train: and val: with folders of pictures.")
    return _Layout(class_names, pictures)


def _names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"{file}: the keys under names must be 0 to {len(names) - 1}, found {sorted(names, key=str)}."
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{file}: expected a list of class names under names, found {names!r}.")
    if content.get("nc", len(names)) != len(names):
        raise DataError(f"{file}: nc is {content['nc']!r}, but there are {len(names)} names. Correct one of them.")
    return check_class_names([str(name) for name in names], source=str(file))


def _locate(entry: str, bases: Sequence[Path], where: str) -> Path:
    # Some exports write ../train/images for a folder beside the YAML file.
    slashed = entry.replace("\\", "/")  # as Windows writes it
    for name in (entry, slashed, slashed.removeprefix("../")):
        for base in bases:
            if (base / name).exists():
                return base / name
    places = ", ".join(str(base) for base in dict.fromkeys(bases))
    raise DataError(
        f"{where} names '{entry}', which is missing in {places}. Correct the path, or put the folder there."
    )


def _pictures_at(place: Path) -> list[Path]:
    """The pictures of a folder, or those that a text file lists."""
    if place.is_dir():
        return pictures_below(place)
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    lines = [line.strip().replace("\\", "/") for line in read_text(place).splitlines()]
    pictures = [place.parent / line for line in lines if line]
    for picture in pictures:
        if not picture.is_file():
            raise DataError(f"{place}: the picture {picture} is missing. Put it there, or remove its line.")
    return pictures


def _class_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def _picture_folders(folder: Path) -> dict[str, Path]:
    """`images/<split>`, `<split>/images`, or `images` alone, as "train"; only where there are labels beside."""
    found = {}
    for pattern in ("images/*", "*/images"):
        for images in sorted(folder.glob(pattern)):
            split = normalize_split(images.name if pattern == "images/*" else images.parent.name)
            if split and images.is_dir() and _labels_of(images).is_dir():
                found[split] = images
    if not found and (folder / "images").is_dir() and (folder / "labels").is_dir():
        found["train"] = folder / "images"
    return found


def _from_folder(folder: Path) -> _Layout:
    class_file = _class_file(folder)
    folders = _picture_folders(folder)
    if class_file is None or not folders:
        raise UnknownFormatError(f"{folder}: holds no YOLO data set (data.yaml, or images/, labels/ and classes.txt).")
    pictures = {split: pictures_below(images) for split, images in folders.items()}
    return _Layout(read_class_file(class_file), pictures)


def _labels_of(path: Path) -> Path:
    """The same path with the last `images` in it turned to `labels`; the path itself if there is none."""
    parts = list(path.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _record(picture: Path, class_names: Sequence[str], builder: RecordBuilder) -> Record:
    file = _labels_of(picture).with_suffix(".txt")
    size = image_size(picture)
    boxes = []
    if file.is_file():
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if fields := line.split():
                boxes.append(_box(fields, size, class_names, f"{file}: line {number}", builder))
    else:
        builder.remarks["{count} pictures have no text file and count as pictures without objects."] += 1
    return builder.record(picture, size=size, boxes=boxes, source=file)


def _box(
    fields: list[str], size: tuple[int, int], class_names: Sequence[str], where: str, builder: RecordBuilder
) -> RawBox:
    polygon = len(fields) >= 7 and len(fields) % 2 == 1
    try:
        label, values = int(fields[0]), np.array(fields[1:], dtype=np.float64)
    except ValueError:
        label, values = -1, np.empty(0)
    if not (len(values) == 4 or (polygon and len(values))):
        raise DataError(f"{where}: expected 'class cx cy width height', found '{' '.join(fields)[:80]}'. Correct it.")
    if not 0 <= label < len(class_names):
        raise DataError(
            f"{where}: unknown class {label}; there are {len(class_names)} (0 to {len(class_names) - 1}). "
            "Correct it, or add the class to the names."
        )
    if polygon:
        builder.remarks["{count} polygons were read as the boxes around them."] += 1
        points = values.reshape(-1, 2)
        corners = np.concatenate([points.min(axis=0), points.max(axis=0)])
    else:
        corners = np.concatenate([values[:2] - values[2:] / 2, values[:2] + values[2:] / 2])
    height, width = size
    left, top, right, bottom = np.round(corners * (width, height, width, height), _DECIMALS_PX).tolist()
    name = where.rsplit(": ", maxsplit=1)[-1]
    return RawBox(label, (left, top, right, bottom), f"{name} ({class_names[label]})")
