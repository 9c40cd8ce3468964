"""YOLO: one text file a picture, `class cx cy width height` a line, as shares of the picture's size.

Read from a `data.yaml` (path, train, val, test, names, kpt_shape) or a folder that holds one, or from a folder with a
`classes.txt` or `obj.names` and one of these:

    images/  labels/      with or without folders for splits, on either level
    train.txt  valid.txt  lists of pictures, with obj.names: CVAT's and Darknet's, text files beside the pictures
    pictures              and text files beside them, as LabelImg writes them: a training split

A picture without a text file is one without objects. Polygons are read as the boxes around them. No torch.
"""

import os.path
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
    read_class_file,
    read_lines,
    read_text,
)
from setdet.data.schema import Dataset, Record, Sample
from setdet.data.writing import PictureFolder, refuse_crowd, write_atomically
from setdet.errors import DataError, UnknownFormatError
from setdet.images import IMAGE_SUFFIXES, files_below, image_size

_YAML_SUFFIXES = (".yaml", ".yml")
_LISTS_NAMES = "obj.names"
_CLASS_FILES = ("classes.txt", "labels/classes.txt", _LISTS_NAMES)
# How a key without a value may be spelled, as YAML's plain text.
_NOTHING = ("", "~", "null")
# Files state six decimals or so; rounding to a billionth of a pixel undoes the noise of multiplying by the size.
_DECIMALS_PX = 9


@dataclass(frozen=True)
class _Layout:
    """What the classes are called, and where the pictures of each split lie.

    Attributes:
        class_names: in the order of their numbers.
        places: folders, lists of pictures, or pictures, by split.
        keypoint_fields: of a line, behind its box.
    """

    class_names: tuple[str, ...]
    places: dict[str, list[Path]]
    keypoint_fields: int = 0


def recognizes(path: Path) -> bool:
    """Whether `path` is a YAML file or a folder in one of this format's layouts."""
    if path.is_file():
        return path.suffix.lower() in _YAML_SUFFIXES
    return _yaml_in(path) is not None or (_class_file(path) is not None and bool(_places(path)))


def read(path: Path, *, problems: list[DataError] | None = None) -> Dataset:
    """Reads a `data.yaml` or a folder.

    Args:
        path: the file or folder.
        problems: see `RecordBuilder`.

    Raises:
        DataError: a file is broken, pictures are missing, a class is not among the names.
    """
    file = path if path.is_file() else _yaml_in(path)
    builder = RecordBuilder(problems=problems)
    layout = _from_yaml(file, builder) if file is not None else _from_folder(path)
    splits: dict[str, tuple[Record, ...]] = {}
    used: set[Path] = set()
    for split, places in layout.places.items():
        listed = [picture for place in places for picture in _pictures_at(place, builder)]
        pictures = sorted(set(listed))
        repeated = len(listed) - len(pictures)
        builder.remarks[f"{{count}} entries of {split} name a picture again; each picture was read once."] += repeated
        records = []
        for picture in pictures:
            used.add(_label_file(picture))
            with builder.guarded():
                records.append(_record(picture, layout, builder))
        splits[split] = tuple(records)
    _remark_unused(layout, used, builder)
    return Dataset(root=path, format="yolo", class_names=layout.class_names, splits=splits, notes=builder.notes())


def write(directory: Path, *, split: str, samples: Iterable[Sample], class_names: Sequence[str]) -> None:
    """Writes one split as `images/<split>/*.png` and `labels/<split>/*.txt`, and adds it to `data.yaml` at the end.

    Raises:
        DataError: two samples have one name, a sample has crowd boxes, or the folder has other classes already.
        OutputError: the split is there already, or the folder cannot be written.
    """
    file = directory / "data.yaml"
    content: dict[str, Any] = _load_yaml(file) if file.exists() else {}
    if "names" in content and _names(content, file) != tuple(class_names):
        raise DataError(f"{file}: lists other classes than {', '.join(class_names)}. Choose another folder.")
    pictures = PictureFolder(directory / "images" / split)
    for sample in samples:
        refuse_crowd(sample, format_name="YOLO")
        image = pictures.save(sample)
        write_atomically(directory / "labels" / split / f"{image.stem}.txt", _lines(sample))
    given = {normalize_split(key): value for key, value in content.items()} | {
        normalize_split(split): f"images/{split}"
    }
    content = {"path": "."} | {key: given[key] for key in SPLITS if key in given}
    content["names"] = dict(enumerate(class_names))
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
            content = _load_yaml(file)
        except DataError:  # some other file that lies there
            continue
        if "names" in content and {"train", "val", "test"} & set(content):
            return file
    return None


def _load_yaml(file: Path) -> dict[str, Any]:
    """The content with every value as it is spelled: to YAML, `no` is false and `010` eight, here they are names."""
    try:
        content = yaml.load(read_text(file), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{file}: is not YAML ({error}). Correct it.") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected keys such as train, val and names, found {type(content).__name__}.")
    return {key: value for key, value in content.items() if value not in _NOTHING}


def _from_yaml(file: Path, builder: RecordBuilder) -> _Layout:
    content = _load_yaml(file)
    class_names = _names(content, file)
    bases = [file.parent / str(content.get("path", ".")), file.parent]
    places: dict[str, list[Path]] = {}
    absent: list[DataError] = []
    for key, value in content.items():
        split = normalize_split(key)
        if split is None:
            continue
        entries = [str(entry) for entry in (value if isinstance(value, list) else [value])]
        found = [place for entry in entries if (place := _locate(entry, bases)) is not None]
        missing = [entry for entry in entries if _locate(entry, bases) is None]
        if missing:
            error = DataError(
                f"{file}: {key} names '{missing[0]}', which is missing in {', '.join(map(str, dict.fromkeys(bases)))}. "
                "Correct the path, or put the folder there."
            )
            if found:  # a part of a split is missing, and nobody would see it
                raise error
            absent.append(error)
        else:
            places.setdefault(split, []).extend(found)
    if not places and absent:
        raise absent[0]
    if not places:
        raise DataError(f"{file}: names no split. Add train: and val: with folders of pictures.")
    for error in absent:  # many a file names a test split that nobody has downloaded
        builder.remarks[f"{{count}} split is left out. {error}"] += 1
    return _Layout(class_names, places, _keypoint_fields(content, file))


def _names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(len(names))}:
            raise DataError(f"{file}: the keys under names must be 0 to {len(names) - 1}, found {sorted(names)}.")
        names = [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{file}: expected a list of class names under names, found {names!r}.")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{file}: expected the name of class {index}, found {name!r}. Write the name in quotes.")
    if content.get("nc", str(len(names))) != str(len(names)):
        raise DataError(f"{file}: nc is {content['nc']}, but there are {len(names)} names. Correct one of them.")
    return check_class_names(names, source=str(file))


def _keypoint_fields(content: dict[str, Any], file: Path) -> int:
    shape = content.get("kpt_shape", ["0", "0"])
    if not (isinstance(shape, list) and len(shape) == 2 and all(str(side).isdecimal() for side in shape)):
        raise DataError(f"{file}: kpt_shape is {shape!r}, expected [number of keypoints, 2 or 3]. Correct it.")
    return int(shape[0]) * int(shape[1])


def _locate(entry: str, bases: Sequence[Path]) -> Path | None:
    # Some exports write ../train/images for a folder beside the YAML file.
    slashed = entry.replace("\\", "/")  # as Windows writes it
    names = filter(None, (entry, slashed, slashed.removeprefix("../")))
    places = (base / name for name in names for base in bases)
    return next((place for place in places if os.path.exists(place)), None)  # false for a name too long, too


def _pictures_at(place: Path, builder: RecordBuilder) -> list[Path]:
    """The pictures of a folder, or those that a text file lists."""
    if place.is_dir():
        return files_below(place)
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    pictures = []
    for line in filter(None, read_lines(place)):
        name = line.replace("\\", "/")
        # CVAT puts data/ before every path, Darknet's name for the folder that the list is in.
        paths = [place.parent / name, place.parent / name.removeprefix("data/")]
        found = [path for path in paths if os.path.isfile(path)]
        with builder.guarded():
            if not found:
                raise DataError(f"{place}: the picture {paths[0]} is missing. Put it there, or remove its line.")
            pictures.append(found[0])
    return pictures


def _class_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CLASS_FILES if (folder / name).is_file()), None)


def _places(folder: Path) -> dict[str, list[Path]]:
    """Where the pictures of each split lie in a folder without a YAML file; only where there are labels, too."""
    found: dict[str, list[Path]] = {}
    for pattern in ("images/*", "*/images"):
        for images in sorted(folder.glob(pattern)):
            split = normalize_split(images.name if pattern == "images/*" else images.parent.name)
            if split and images.is_dir() and _labels_of(images).is_dir():
                found.setdefault(split, []).append(images)
    if not found and (folder / "images").is_dir() and (folder / "labels").is_dir():
        found["train"] = [folder / "images"]
    if not found and (folder / _LISTS_NAMES).is_file():
        for file in sorted(folder.glob("*.txt")):
            if split := normalize_split(file.stem):
                found.setdefault(split, []).append(file)
    if not found:
        pictures = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if any(picture.with_suffix(".txt").is_file() for picture in pictures):
            found["train"] = [folder]
    return found


def _from_folder(folder: Path) -> _Layout:
    class_file, places = _class_file(folder), _places(folder)
    if class_file is None or not places:
        raise UnknownFormatError(f"{folder}: holds no YOLO data set (data.yaml, or images/, labels/ and classes.txt).")
    return _Layout(read_class_file(class_file), places)


def _labels_of(path: Path) -> Path:
    """The same path with the last `images` in it turned to `labels`; the path itself if there is none."""
    parts = list(path.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _label_folder(pictures: Path) -> Path:
    """Where the text files for a folder of pictures lie: in its twin of labels, or else beside the pictures."""
    twin = _labels_of(pictures)
    return twin if twin.is_dir() else pictures


def _label_file(picture: Path) -> Path:
    return _label_folder(picture.parent) / f"{picture.stem}.txt"


def _remark_unused(layout: _Layout, used: set[Path], builder: RecordBuilder) -> None:
    """Tells of text files that belong to no picture: it may be missing, or of a kind that cannot be read."""
    folders = {_label_folder(place) for places in layout.places.values() for place in places if place.is_dir()}
    unused = {file for folder in folders for file in files_below(folder, {".txt"})} - used
    if unused:  # a linked folder may have been found under another name
        real = {os.path.realpath(file) for file in used}
        unused = {file for file in unused if _may_be_label(file) and os.path.realpath(file) not in real}
    if unused:
        builder.remarks[
            f"{{count}} text files belong to no picture that can be read; the first is {min(unused)}. Put the picture "
            f"there, as one of {' '.join(sorted(IMAGE_SUFFIXES))}, or remove the file."
        ] += len(unused)


def _may_be_label(file: Path) -> bool:
    """Whether a text file is not one of those that tools put beside labels: names of classes, lists of a split."""
    name = file.stem.lower()
    return name not in ("classes", "notes") and not name.startswith("readme") and normalize_split(name) is None


def _record(picture: Path, layout: _Layout, builder: RecordBuilder) -> Record:
    file = _label_file(picture)
    size = image_size(picture)
    boxes = []
    if file.is_file():
        for number, line in enumerate(read_lines(file), start=1):
            if fields := line.split():
                boxes.append(_box(fields, size, layout, f"{file}: line {number}", builder))
    else:
        builder.remarks["{count} pictures have no text file and count as pictures without objects."] += 1
    return builder.record(picture, size=size, boxes=boxes, source=file)


def _box(fields: list[str], size: tuple[int, int], layout: _Layout, where: str, builder: RecordBuilder) -> RawBox:
    if layout.keypoint_fields:
        expected = 5 + layout.keypoint_fields
        if len(fields) != expected:
            raise DataError(
                f"{where}: expected {expected} fields, a box and its keypoints by kpt_shape in the YAML file, found "
                f"{len(fields)}. Correct the line, or kpt_shape."
            )
        builder.remarks["{count} boxes have keypoints, which are left out."] += 1
        fields = fields[:5]
    polygon = len(fields) >= 7 and len(fields) % 2 == 1
    try:
        label, values = int(fields[0]), np.array(fields[1:], dtype=np.float64)
    except ValueError:
        label, values = -1, np.empty(0)
    if not (len(values) == 4 or (polygon and len(values))):
        remedy = "Leave out the score behind the box" if len(fields) == 6 else "Correct it"
        raise DataError(f"{where}: expected 'class cx cy width height', found '{' '.join(fields)[:80]}'. {remedy}.")
    if not 0 <= label < len(layout.class_names):
        last = len(layout.class_names) - 1
        raise DataError(
            f"{where}: unknown class {label}; there are {last + 1} (0 to {last}). "
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
    return RawBox(label, (left, top, right, bottom), f"{name} ({layout.class_names[label]})")
