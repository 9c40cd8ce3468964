"""Bad data gives one message that says what, where and how to fix it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from setdet.cli import main
from setdet.data.loader import load_sample
from setdet.data.sources import read_dataset
from setdet.errors import DataError, UnknownFormatError
from test_data_formats import coco_content, picture, xml

BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<annotation><filename>&c;</filename></annotation>"""


def test_paths_that_hold_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: does not exist"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(UnknownFormatError, match="no data set in a known format") as caught:
        read_dataset(tmp_path)
    assert all(word in str(caught.value) for word in ("VOC", "COCO", "YOLO", "<split>"))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnknownFormatError):
        read_dataset(tmp_path / "notes.txt")


def voc_with(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        picture(folder / "a.png")
        (folder / "a.xml").write_text(text)

    return make


def voc_box(*corners: int, name: str = "pit") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        picture(folder / "a.png")
        (folder / "classes.txt").write_text("pit\nscratch\n")
        xml(folder / "a.xml", (name, *corners))  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (voc_with("<annotation><object>"), r"a\.xml: is not XML .*line 1"),
        (voc_with("\x00\x01"), r"a\.xml: is not XML"),
        (voc_with(BOMB), r"a\.xml: declares a document type or entities.*Remove"),
        (voc_with('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>'), "declares a document type"),
        (voc_with("<html></html>"), "expected a VOC file with <annotation>"),
        (voc_with("<annotation><object><name> </name></object></annotation>"), "<name> is missing or empty"),
        (voc_box(31, 1, 40, 5), r"a\.xml: object 1 \(pit\) spans x 30 to 40.*outside of the picture of 30×20"),
        (voc_box(9, 9, 5, 12), r"object 1 \(pit\).*inverted or has no area.*correct or remove"),
        (voc_box(1, 1, 5, 5, name="pits"), r"a\.xml: object 1: unknown class 'pits'\. Did you mean 'pit'\?"),
        (voc_box("x", 1, 5, 5), "<bndbox/xmin> is 'x', expected a number"),  # type: ignore[arg-type]
        (voc_box("nan", 1, 5, 5), "<bndbox/xmin> is 'nan', expected a number"),  # type: ignore[arg-type]
        (lambda folder: xml(folder / "a.xml", ("pit", 1, 1, 5, 5)), r"a\.xml: its picture 'a' is missing below"),
        (voc_with("<annotation></annotation>"), "expected class names, each once, but there is none"),
    ],
)
def test_voc(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def encoded(encoding: str, *, declared: str, before: str = "") -> bytes:
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    text = f"<annotation><object><name>裂纹</name><bndbox>{box}</bndbox></object></annotation>"
    return f"<?xml version='1.0' encoding='{declared}'?>{before}{text}".encode(encoding)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("gbk", "GBK"), ("gbk", "gb2312"), ("gb18030", "GB18030"), ("utf-8", "utf8"), ("utf-8", "UTF-8")]
    + [("utf-8-sig", "gbk"), ("utf-16", "utf-16")],
)
def test_voc_in_other_encodings(tmp_path: Path, encoding: str, declared: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_bytes(encoded(encoding, declared=declared))
    assert read_dataset(tmp_path).class_names == ("裂纹",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded("gbk", declared="klingon"), r"a\.xml: declares the unknown encoding 'klingon'\. Save it as UTF-8"),
        (encoded("utf-8", declared="hex"), r"a\.xml: declares the unknown encoding 'hex'"),
        (encoded("gbk", declared="shift_jisx0213")[:-1] + b"\xff", r"a\.xml: is not text in 'shift_jisx0213'.*UTF-8"),
        (encoded("utf-16", declared="gbk"), r"a\.xml: its encoding cannot be told.*Save it as UTF-8"),
        (encoded("gbk", declared="gbk", before="<!DOCTYPE a [<!ENTITY b 'c'>]>"), "declares a document type"),
        (encoded("utf-7", declared="utf-7", before="<!DOCTYPE a []>"), "declares a document type"),
    ],
)
def test_voc_in_no_known_encoding(tmp_path: Path, data: bytes, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_voc_list_that_names_a_missing_file(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/a.png")
    xml(tmp_path / "Annotations/a.xml", ("pit", 1, 1, 5, 5))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"b\.xml: cannot be read"):
        read_dataset(tmp_path)


def test_voc_list_with_a_name_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a" * 300)
    with pytest.raises(DataError, match=r"aaa\.xml: cannot be read"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pit\n \nscratch\n", r"classes\.txt: line 2 is empty"),
        ("\npit\n", "line 1 is empty"),
        ("\n\n", "there is none"),
    ],
)
def test_class_file_with_a_hole(tmp_path: Path, text: str, message: str) -> None:
    voc_box(1, 1, 5, 5)(tmp_path)
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_voc_with_two_pictures_of_one_name(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/x/a.png")
    picture(tmp_path / "train/images/y/a.png")
    xml(tmp_path / "train/annotations/a.xml", ("pit", 1, 1, 5, 5))
    with pytest.raises(DataError, match="its picture may be"):
        read_dataset(tmp_path)


def annotation(**changes: object) -> dict[str, object]:
    return coco_content(
        annotations=[{"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5]} | changes]  # type: ignore[operator]
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], "is no COCO file: expected lists of objects under images"),
        ({"images": []}, "is no COCO file"),
        (coco_content(images=[], annotations=[]), "holds no pictures"),
        (coco_content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "two categories have the id 1"),
        (coco_content(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]), "'a' stands twice"),
        (coco_content(categories=[{"id": "1", "name": "a"}]), "'id' is '1', expected int"),
        (coco_content(images=[{"id": 7, "file_name": "b.png"}]), "its picture 'b.png' is missing in"),
        (coco_content(images=[{"id": 7}]), "image 7: 'file_name' is missing"),
        (coco_content(images=[{"id": 7, "file_name": "a.png"}] * 2), "two images have the id 7"),
        (annotation(image_id=8), "annotation 5 is of image 8, which is not in the list"),
        (annotation(category_id=4), r"annotation 5 of a\.png is of the unknown class 4\. Known categories: "),
        (annotation(bbox=None), "needs 'bbox'"),
        (annotation(iscrowd="0"), r"annotation 5 of a\.png: 'iscrowd' is '0', expected 0 or 1"),
        (annotation(iscrowd=[]), r"'iscrowd' is \[\], expected 0 or 1"),
        (coco_content(images=[{"id": 7, "file_name": "a" * 300 + ".png"}]), "aaa.png' is missing in"),
        (annotation(bbox=[1, 1, -3, 4]), r"annotation 5 of a\.png \(scratch\).*inverted or has no area"),
        (annotation(bbox=[1, 25, 3, 4]), "outside of the picture"),
        (annotation(bbox=[1, 1, float("nan"), 4]), "no finite number"),
        (annotation(bbox=[1, 1, 1e300, 4]), r"annotation 5 of a\.png \(scratch\) has a coordinate that is no finite"),
        (annotation(bbox=[10**400, 1, 5.5, 4]), r"annotation 5 of a\.png has a number in 'bbox' that is too large"),
        ('{"images": [' + "9" * 5000 + "]}", "is not JSON"),
        (coco_content(images=[{"id": 7, "file_name": "a.png", "height": 10**400, "width": 9}]), "declares a size of"),
    ],
)
def test_coco(tmp_path: Path, content: object, message: str) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "val.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path / "val.json")


def test_coco_splits_with_different_categories(tmp_path: Path) -> None:
    for split, name in (("train", "pit"), ("valid", "crack")):
        (tmp_path / split).mkdir()
        content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": name}]}
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="category 1 is 'crack', but 'pit' in another file"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("yaml_text", "label_text", "message"),
    [
        ("train: [", "", "is not YAML"),
        ("- a", "", "expected keys such as train"),
        ("train: images/train", "", "expected a list of class names under names"),
        ("train: images/train\nnames: [a, a]", "", "'a' stands twice"),
        ("train: images/train\nnames: {1: a}", "", "keys under names must be 0 to 0"),
        ("train: images/train\nnc: 2\nnames: [a]", "", "nc is 2, but there are 1 names"),
        ("names: [a]", "", "names no split"),
        ("train: images/trian\nnames: [a]", "", "data.yaml: train names 'images/trian', which is missing"),
        (f"train: {'a' * 300}\nnames: [a]", "", "aaa', which is missing"),
        ("train: [images/train, more]\nnames: [a]", "", "train names 'more', which is missing"),
        ("train: ['']\nnames: [a]", "", "train names '', which is missing"),
        ("train: list.txt\nnames: [a]", "", r"list\.txt: the picture .*b\.png is missing"),
        ("train: long.txt\nnames: [a]", "", r"long\.txt: the picture .*bbb\.png is missing"),
        ("train: images/train\nnames: [a, [b]]", "", r"the name of class 1, found \['b'\]\. Write the name in quotes"),
        ("train: images/train\nnames: [a, b: c]", "", r"class 1, found {'b': 'c'}\. Write the name in quotes"),
        ("train: images/train\nnames: {0: a, 1: }", "", "class 1, found ''. Write the name in quotes"),
        ("train: images/train\nnames: [a]\nkpt_shape: 17", "", "kpt_shape is '17', expected .number of keypoints, 2"),
        (
            "train: images/train\nnames: [a]\nkpt_shape: [1, 2]",
            "0 .5 .5 .1 .1",
            "line 1: expected 7 .*kpt_shape.*found 5",
        ),
        ("train: empty\nnames: [a]", "", "holds no pictures"),
        ("train: images/train\nnames: [a]", "0 .5 .5 .1 .1\n\n1 .5 .5 .1 .1", r"a\.txt: line 3: unknown class 1"),
        ("train: images/train\nnames: [a]", "0 .5 .5 .1", r"line 1: expected 'class cx cy width height'"),
        ("train: images/train\nnames: [a]", "0 .5 .5 .1 .1 .9", "Leave out the score behind the box"),
        ("train: images/train\nnames: [a]", "pit .5 .5 .1 .1", r"line 1: expected 'class"),
        ("train: images/train\nnames: [a]", "0 .5 .5 .1 0", r"a\.txt: line 1 \(a\).*no area"),
        ("train: images/train\nnames: [a]", "0 .5 1.5 .1 .1", r"line 1 \(a\).*outside of the picture"),
        ("train: images/train\nnames: [a]", "0 .5 nan .1 .1", "no finite number"),
    ],
)
def test_yolo(tmp_path: Path, yaml_text: str, label_text: str, message: str) -> None:
    picture(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text(label_text)
    (tmp_path / "list.txt").write_text("b.png\n")
    (tmp_path / "long.txt").write_text("b" * 300 + ".png\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.yaml").write_text(yaml_text)
    with pytest.raises(DataError, match=message):
        read_dataset(tmp_path)


def test_yolo_with_a_broken_picture(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("no picture")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [a]")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        read_dataset(tmp_path)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_bytes(b"names: [caf\xe9]")
    with pytest.raises(DataError, match=r"data\.yaml: is not text in UTF-8"):
        read_dataset(tmp_path)


def test_picture_of_another_size_than_declared(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", height=10, width=12)
    xml(tmp_path / "a.xml", ("pit", 1, 1, 5, 5))
    (record,) = read_dataset(tmp_path).splits["train"]
    with pytest.raises(DataError, match=r"a\.png: the annotations declare 30×20 pixels .* has 12×10"):
        load_sample(record)


def all_problems(path: Path) -> list[str]:
    problems: list[DataError] = []
    dataset = read_dataset(path, problems=problems)
    assert [record.image.name for records in dataset.splits.values() for record in records] == ["whole.png"]
    return [str(problem) for problem in problems]


def test_all_that_is_wrong_in_voc(tmp_path: Path) -> None:
    for stem in ("whole", "syntax", "class", "outside"):
        picture(tmp_path / f"{stem}.png")
        xml(tmp_path / f"{stem}.xml", ("pit", 1, 1, 5, 5))
    (tmp_path / "classes.txt").write_text("pit\n")
    (tmp_path / "syntax.xml").write_text("<annotation>")
    xml(tmp_path / "class.xml", ("crack", 1, 1, 5, 5))
    xml(tmp_path / "outside.xml", ("pit", 31, 1, 35, 5))
    xml(tmp_path / "alone.xml", ("pit", 1, 1, 5, 5))
    syntax, alone, unknown, outside = all_problems(tmp_path)
    assert "is not XML" in syntax and "'alone' is missing" in alone
    assert "unknown class 'crack'" in unknown and "outside of the picture" in outside
    assert not any("have no XML file" in note for note in read_dataset(tmp_path, problems=[]).notes)
    picture(tmp_path / "bare.png")
    assert f"1 pictures in {tmp_path} have no XML file and are left out." in read_dataset(tmp_path, problems=[]).notes


def test_all_that_is_wrong_in_yolo(tmp_path: Path) -> None:
    for stem in ("whole", "class", "number"):
        picture(tmp_path / f"images/{stem}.png")
    (tmp_path / "images/broken.png").write_text("no picture")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/class.txt").write_text("1 .5 .5 .1 .1\n")
    (tmp_path / "labels/number.txt").write_text("0 .5 .5 .1 x\n")
    stems = ("whole", "class", "missing", "number", "broken")
    (tmp_path / "train.txt").write_text("".join(f"images/{stem}.png\n" for stem in stems))
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [pit]\n")
    missing, broken, unknown, number = all_problems(tmp_path)
    assert "missing.png is missing" in missing and "broken.png: cannot be decoded" in broken
    assert "unknown class 1" in unknown and "expected 'class cx cy width height'" in number


def test_all_that_is_wrong_in_coco(tmp_path: Path) -> None:
    picture(tmp_path / "whole.png")
    images = [{"id": 1, "file_name": "whole.png"}, {"id": 2, "file_name": "missing.png"}, {"id": "3"}]
    bad_boxes = [{"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 5, 5]}, {"id": 2, "image_id": 9}]
    (tmp_path / "val.json").write_text(json.dumps(coco_content(images=images, annotations=bad_boxes)))
    kind, unknown, nowhere, missing = all_problems(tmp_path / "val.json")
    assert "'id' is '3', expected int" in kind and "unknown class 8" in unknown
    assert "is of image 9, which is not in the list" in nowhere and "'missing.png' is missing" in missing


def test_what_is_wrong_everywhere_is_no_data_set_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(json.dumps(coco_content()))  # its one picture is not there
    problems: list[DataError] = []
    assert read_dataset(tmp_path / "val.json", problems=problems).splits == {}
    assert len(problems) == 1


def test_data_check_names_all_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"{stem}.png")
        xml(tmp_path / f"{stem}.xml", ("pit", 1, 1, 5, 5))
    (tmp_path / "a.xml").write_text("<annotation>")
    xml(tmp_path / "b.xml", ("pit", 9, 1, 5, 5))
    (tmp_path / "c.png").write_text("no picture")
    assert main(["data", "check", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "a.xml: is not XML" in told and "b.xml: object 1 (pit)" in told and "c.png: cannot be decoded" in told
    assert told.count("error: ") == 3 and "3 problems, named above" in " ".join(told.split())
    (tmp_path / "b.xml").unlink()
    (tmp_path / "c.xml").unlink()  # no class is left, which ends the reading
    assert main(["data", "check", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "a.xml: is not XML" in told and "expected class names" in told
