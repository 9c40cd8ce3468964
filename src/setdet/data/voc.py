"""Pascal VOC: one XML file a picture.

Read from three layouts, alone or as folders named after splits (`train`, `validation`, …):

    Annotations/*.xml   JPEGImages/*  ImageSets/Main/{train,val,test}.txt    the classic one
    annotations/**.xml  images/**                                            NEU-DET's
    *.xml beside the pictures                                                labelling tools'

Corners in the files are 1-based and inclusive. Boxes marked `difficult` are kept as ordinary ones. The class is the
object's name, whatever the file is called. Classes are sorted by name unless a `classes.txt` lists them. A size of 0×0,
which some tools write, counts as none. No torch.
"""

import math
import os.path
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, TreeBuilder, indent, tostring
from xml.parsers import expat

from setdet.data.records import (
    SPLITS,
    RawBox,
    RecordBuilder,
    check_class_names,
    normalize_split,
    read_class_file,
    read_lines,
    subfolder,
    unknown_class,
)
from setdet.data.schema import Dataset, Record, Sample
from setdet.data.writing import PictureFolder, refuse_crowd, write_atomically
from setdet.errors import DataError, UnknownFormatError
from setdet.images import files_below

_CLASS_FILE = "classes.txt"
_DECLARED_ENCODING = re.compile(rb"""<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z][A-Za-z0-9._-]*)["']""")
_FLAG = re.compile(r"\s+(-1|0|1)$")
_ENCODINGS_OF_EXPAT = frozenset({"utf-8", "utf-16", "iso-8859-1", "us-ascii"})


@dataclass(frozen=True)
class _Part:
    """Some XML files and the folder to look for their pictures in."""

    split: str
    annotations: tuple[Path, ...]
    pictures: Path


def recognizes(path: Path) -> bool:
    """Whether `path` is a folder in one of this format's layouts."""
    return path.is_dir() and bool(_parts(path))


def read(path: Path, *, problems: list[DataError] | None = None) -> Dataset:
    """Reads a VOC folder.

    Args:
        path: the folder.
        problems: see `RecordBuilder`.

    Raises:
        DataError: a file is broken, a picture is missing, a class is not among those listed.
    """
    parts = _parts(path) if path.is_dir() else []
    if not parts:
        raise UnknownFormatError(f"{path}: holds no VOC data set (folders of XML files, alone or by split).")
    builder = RecordBuilder(problems=problems)
    trees: dict[Path, Element] = {}
    names: set[str] = set()
    for file in (file for part in parts for file in part.annotations):
        with builder.guarded():
            tree = _parse(file)
            names |= {_text(node, "name", file) for node in tree.iter("object")}
            trees[file] = tree
    if (path / _CLASS_FILE).is_file():
        class_names = read_class_file(path / _CLASS_FILE)
    else:
        class_names = check_class_names(sorted(names), source=f"{path}: objects in {len(trees)} XML files")
    splits: dict[str, tuple[Record, ...]] = {}
    for part in parts:
        pictures = _PictureIndex(part.pictures)
        records = []
        for file in (file for file in part.annotations if file in trees):
            with builder.guarded():
                records.append(_record(file, trees[file], pictures, class_names, builder))
        pictures.remark_unused(records, part.annotations, builder)
        splits[part.split] = tuple(sorted((*splits.get(part.split, ()), *records), key=lambda record: record.image))
    return Dataset(root=path, format="voc", class_names=class_names, splits=splits, notes=builder.notes())


def write(directory: Path, *, split: str, samples: Iterable[Sample], class_names: Sequence[str]) -> None:
    """Writes one split as `<split>/images/*.png` and `<split>/annotations/*.xml`, and `classes.txt`, as they come.

    Raises:
        DataError: two samples have one name, a sample has crowd boxes, or the folder has other classes already.
        OutputError: the split is there already, or the folder cannot be written.
    """
    class_file = directory / _CLASS_FILE
    if class_file.exists() and read_class_file(class_file) != tuple(class_names):
        raise DataError(f"{class_file}: lists other classes than {', '.join(class_names)}. Choose another folder.")
    pictures = PictureFolder(directory / split / "images")
    write_atomically(class_file, "".join(f"{name}\n" for name in class_names))
    for sample in samples:
        refuse_crowd(sample, format_name="VOC")
        image = pictures.save(sample)
        tree = _to_xml(sample, image.name, class_names)
        write_atomically(directory / split / "annotations" / f"{image.stem}.xml", tostring(tree, encoding="unicode"))


def _parts(root: Path) -> list[_Part]:
    if (sets := _image_sets(root)) is not None:
        return sets
    if annotations := _xml_files(root):
        return [_Part("train", annotations, root)]
    parts = []
    for child in sorted(root.iterdir()):
        split = normalize_split(child.name)
        if split and child.is_dir() and (annotations := _xml_files(child)):
            parts.append(_Part(split, annotations, child))
    return parts


def _xml_files(folder: Path) -> tuple[Path, ...]:
    """The annotations of a folder: all below its folder of them, or those right in it."""
    if (annotations := subfolder(folder, "annotations")) is not None:
        return tuple(files_below(annotations, {".xml"}))
    return tuple(
        sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml" and not path.name.startswith("."))
    )


def _image_sets(root: Path) -> list[_Part] | None:
    """The classic layout's lists; None where there are none."""
    lists, annotations = root / "ImageSets" / "Main", subfolder(root, "annotations")
    if annotations is None:
        return None
    listed = {name: _listed(lists / f"{name}.txt", annotations) for name in SPLITS if (lists / f"{name}.txt").is_file()}
    if "train" not in listed and (lists / "trainval.txt").is_file():
        val = set(listed.get("val", ()))
        if train := [file for file in _listed(lists / "trainval.txt", annotations) if file not in val]:
            listed["train"] = train
    pictures = subfolder(root, "JPEGImages") or root
    return [_Part(name, tuple(files), pictures) for name, files in listed.items()] or None


def _listed(file: Path, annotations: Path) -> list[Path]:
    """The XML files that a list names, one a line, with or without VOC's flag (1, 0 or -1) behind."""
    found = []
    for line in filter(None, read_lines(file)):
        # A name may hold spaces, and end like one with a flag: "scratch 1".
        whole, without_flag = (annotations / f"{_unquoted(name)}.xml" for name in (line, _FLAG.sub("", line)))
        found.append(without_flag if os.path.isfile(without_flag) and not os.path.isfile(whole) else whole)
    return found


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] in "\"'" else name


class _PictureIndex:
    """The pictures of a folder and its subfolders, to be found by name or stem."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_stem: dict[str, list[Path]] = {}
        for path in files_below(folder):
            self._by_stem.setdefault(path.stem, []).append(path)

    def find(self, file: Path, declared: str) -> Path:
        """The picture of the XML `file`, whose <filename> is `declared` (with or without suffix, or empty)."""
        # Path takes "crazing_1" and "crazing_1.jpg" alike, but a name may hold dots of its own: try it whole, too.
        name = declared.replace("\\", "/").rsplit("/", maxsplit=1)[-1]
        for stem in (file.stem, Path(name).stem, name):
            found = self._by_stem.get(stem, [])
            if len(found) > 1:  # folders of classes, in the annotations as in the pictures
                found = [path for path in found if path.parent.name == file.parent.name] or found
            if len(found) > 1:
                found = [path for path in found if path.name == name] or found
            if len(found) > 1:
                raise DataError(f"{file}: its picture may be {found[0]} or {found[1]}. Rename or remove one of them.")
            if found:
                return found[0]
        raise DataError(
            f"{file}: its picture '{name or file.stem}' is missing below {self._folder}. "
            "Put it there, or remove the XML file."
        )

    def remark_unused(self, records: Iterable[Record], annotations: Iterable[Path], builder: RecordBuilder) -> None:
        """Tells of pictures that no XML file speaks of, broken ones included."""
        used, named = {record.image for record in records}, {file.stem for file in annotations}
        unused = sum(path not in used and stem not in named for stem, paths in self._by_stem.items() for path in paths)
        if unused and self._folder.name != "JPEGImages":  # the classic lists choose among the pictures on purpose
            builder.remarks[f"{{count}} pictures in {self._folder} have no XML file and are left out."] += unused


def _parse(file: Path) -> Element:
    """The tree of an XML file, which may not declare a document type.

    Entities are declared there, and a few nested ones grow to gigabytes. No annotation needs them.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({error.strerror}). Put it there, or correct the list of files."
        ) from None
    data, encoding = _in_known_encoding(data, file)
    builder = TreeBuilder()
    parser = expat.ParserCreate(encoding)
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: declares a document type or entities, which is unsafe. Remove the <!DOCTYPE …> part.")

    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise DataError(f"{file}: is not XML ({error}). Export it again, or remove it.") from None
    except (LookupError, ValueError) as error:  # a declared encoding that does not fit the file's first bytes
        raise DataError(f"{file}: its encoding cannot be told ({error}). Save it as UTF-8.") from None
    root = builder.close()
    if root.tag != "annotation":
        raise DataError(f"{file}: expected a VOC file with <annotation> at its top, found <{root.tag}>.")
    return root


def _in_known_encoding(data: bytes, file: Path) -> tuple[bytes, str | None]:
    """The bytes of an XML file for expat, and their encoding; None where expat finds it out by itself.

    Expat knows four encodings and, through Python, those of one byte a character; Chinese tools declare others.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        return data, "utf-8"
    declared = _DECLARED_ENCODING.match(data)
    name = declared[1].decode("ascii").lower() if declared else "utf-8"
    if name in _ENCODINGS_OF_EXPAT:
        return data, None
    try:
        # What Windows calls gb2312 is its superset, and editors there write the additional characters, too.
        return data.decode("gb18030" if name == "gb2312" else name).encode("utf-8"), "utf-8"
    except LookupError:
        raise DataError(f"{file}: declares the unknown encoding '{name}'. Save it as UTF-8.") from None
    except ValueError as error:
        raise DataError(f"{file}: is not text in '{name}', as it declares ({error}). Save it as UTF-8.") from None


def _record(
    file: Path, tree: Element, pictures: _PictureIndex, class_names: Sequence[str], builder: RecordBuilder
) -> Record:
    image = pictures.find(file, (tree.findtext("filename") or "").strip())
    size = None
    if tree.find("size") is not None:
        size = (int(_number(tree, "size/height", file)), int(_number(tree, "size/width", file)))
    if size == (0, 0):
        builder.remarks["{count} XML files declare a size of 0×0; those of the pictures stand in for it."] += 1
        size = None
    boxes = []
    for number, node in enumerate(tree.iter("object"), start=1):
        name = _text(node, "name", file)
        if name not in class_names:
            raise unknown_class(name, class_names, source=f"{file}: object {number}")
        if node.findtext("difficult", "0").strip() == "1":
            builder.remarks["{count} boxes marked difficult are kept as ordinary boxes."] += 1
        xmin, ymin, xmax, ymax = (_number(node, f"bndbox/{key}", file) for key in ("xmin", "ymin", "xmax", "ymax"))
        corners = (xmin - 1, ymin - 1, xmax, ymax)
        boxes.append(RawBox(class_names.index(name), corners, f"object {number} ({name})"))
    return builder.record(image, size=size, boxes=boxes, source=file)


def _text(node: Element, path: str, file: Path) -> str:
    text = (node.findtext(path) or "").strip()
    if not text:
        raise DataError(f"{file}: <{path}> is missing or empty in <{node.tag}>. Add it, or remove that part.")
    return text


def _number(node: Element, path: str, file: Path) -> float:
    text = _text(node, path, file)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{file}: <{path}> is '{text}', expected a number. Correct it.")
    return value


def _to_xml(sample: Sample, filename: str, class_names: Sequence[str]) -> Element:
    height, width = sample.image.shape[:2]
    root = Element("annotation")
    SubElement(root, "filename").text = filename
    size = SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        SubElement(size, key).text = str(value)
    for box, label in zip(sample.boxes_xyxy_px.tolist(), sample.labels.tolist(), strict=True):
        node = SubElement(root, "object")
        SubElement(node, "name").text = class_names[label]
        SubElement(node, "difficult").text = "0"
        corners = SubElement(node, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True):
            SubElement(corners, key).text = f"{value:.17g}"
    indent(root)
    return root
