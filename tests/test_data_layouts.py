"""Folders as tools and people leave them: where pictures, annotations and names of classes are looked for."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from setdet.data import voc, yolo
from setdet.data.schema import Dataset
from setdet.data.sources import read_dataset
from setdet.errors import DataError
from test_data_formats import CLASSES, coco_content, one_sample, picture, xml

BOX = "0 .5 .5 .2 .2\n"


def write(path: Path, text: str = BOX) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def found(dataset: Dataset) -> dict[str, dict[str, int]]:
    """The number of boxes of every picture, by split."""
    return {split: {record.image.name: len(record.labels) for record in part} for split, part in dataset.splits.items()}


def noted(dataset: Dataset, words: str) -> str:
    (note,) = (note for note in dataset.notes if words in note)
    return note


def test_voc_annotations_in_folders_of_classes(tmp_path: Path) -> None:
    for name in ("pit", "crack"):
        picture(tmp_path / f"train/images/{name}/1.png")
        xml(tmp_path / f"train/annotations/{name}/1.xml", (name, 1, 1, 5, 5))
    picture(tmp_path / "train/images/2.png")
    xml(tmp_path / "train/annotations/2.xml", ("pit", 1, 1, 5, 5))
    dataset = read_dataset(tmp_path)
    assert {(record.image.parent.name, record.labels.tolist()[0]) for record in dataset.splits["train"]} == {
        ("crack", 0),
        ("pit", 1),
        ("images", 1),
    }


def test_voc_lists_of_names_with_spaces(tmp_path: Path) -> None:
    for stem in ("scratch 1", "scratch", "deep pit", "edge"):
        picture(tmp_path / f"JPEGImages/{stem}.jpg")
        xml(tmp_path / f"Annotations/{stem}.xml", ("pit", 1, 1, 5, 5))
    write(tmp_path / "ImageSets/Main/train.txt", 'scratch 1\r\n"deep pit" -1\r\n')
    write(tmp_path / "ImageSets/Main/val.txt", "scratch  1\nedge 0\n\n")
    assert found(read_dataset(tmp_path)) == {
        "train": {"deep pit.jpg": 1, "scratch 1.jpg": 1},
        "val": {"edge.jpg": 1, "scratch.jpg": 1},
    }


def test_voc_size_of_nothing_is_that_of_the_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", height=10, width=12)
    size = "<size><width>0</width><height>0</height></size>"
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
    write(tmp_path / "a.xml", f"<annotation>{size}<object><name>pit</name><bndbox>{box}</bndbox></object></annotation>")
    dataset = read_dataset(tmp_path)
    (record,) = dataset.splits["train"]
    assert (record.height, record.width) == (10, 12)
    assert noted(dataset, "size of 0×0").startswith("1 XML files")


@pytest.mark.parametrize("module", [voc, yolo])
def test_writing_refuses_another_list_of_classes(tmp_path: Path, module: ModuleType) -> None:
    module.write(tmp_path, split="train", samples=[one_sample()], class_names=CLASSES)
    with pytest.raises(DataError, match="lists other classes than pit, scratch"):
        module.write(tmp_path, split="val", samples=[one_sample()], class_names=("pit", "scratch"))
    module.write(tmp_path, split="val", samples=[one_sample()], class_names=CLASSES)
    assert read_dataset(tmp_path).class_names == CLASSES


def test_what_is_not_used_is_announced_and_splits_may_be_capitalised(tmp_path: Path) -> None:
    for split in ("Train", "VALID"):
        picture(tmp_path / f"{split}/images/{split}.png")
        write(tmp_path / f"{split}/labels/{split}.txt")
        xml(tmp_path / f"{split}/annotations/{split}.xml", ("pit", 1, 1, 5, 5))
    write(tmp_path / "classes.txt", "pit\ncrack\n")
    dataset = read_dataset(tmp_path)
    assert found(dataset) == {"train": {"Train.png": 1}, "val": {"VALID.png": 1}}
    assert "There are files of VOC too; they were not read." in dataset.notes
    assert "Classes without a box: crack." in dataset.notes


def test_class_files_have_a_name_a_line(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    write(tmp_path / "classes.txt", "pit\u2028deep\r\na\x0cb\r\n\r\n")
    assert read_dataset(tmp_path).class_names == ("pit\u2028deep", "a\x0cb")


def test_coco_pictures_of_the_splits_own_folder_come_first(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    for path in ("images/a.png", "train/a.png", "train/b.png", "val/b.png", "images/train/c.png"):
        picture(tmp_path / path)
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    write(tmp_path / "annotations/instances_train.json", json.dumps(coco_content(images=images, annotations=[])))
    records = read_dataset(tmp_path).splits["train"]
    assert sorted(record.image.relative_to(tmp_path).as_posix() for record in records) == [
        "images/train/c.png",
        "train/a.png",
        "train/b.png",
    ]
    picture(tmp_path / "images/train/a.png")
    with pytest.raises(DataError, match=r"its picture 'a\.png' may be .*train.a\.png or .*images.train.a\.png"):
        read_dataset(tmp_path)
    (tmp_path / "images/train/a.png").unlink()
    (tmp_path / "images/train/a.png").symlink_to(tmp_path / "train/a.png")  # the same file twice
    assert len(read_dataset(tmp_path).splits["train"]) == 3


def test_coco_names_from_windows_and_marks_of_crowds(tmp_path: Path) -> None:
    picture(tmp_path / "train/a.png")
    image = {"id": 7, "file_name": "train\\a.png"}
    marks = [{}, *({"iscrowd": mark} for mark in (0, 1, True, False, None))]
    boxes = [
        {"id": number, "image_id": 7, "category_id": 3, "bbox": [number, 0, 5, 5]} | mark
        for number, mark in enumerate(marks)
    ]
    write(tmp_path / "all.json", json.dumps(coco_content(images=[image], annotations=boxes)))
    (record,) = read_dataset(tmp_path / "all.json").splits["train"]
    assert record.crowd.tolist() == [False, False, True, True, False, False]


def test_pictures_that_are_there_twice_are_announced(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"images/{name}.png")
        write(tmp_path / f"labels/{name}.txt")
    write(tmp_path / "train.txt", "images/a.png\nimages/b.png\nimages/a.png\n")
    write(tmp_path / "val.txt", "images/c.png\nimages/../images/b.png\n")
    write(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\nnames: [pit]")
    dataset = read_dataset(tmp_path)
    assert noted(dataset, "name a picture again").startswith("1 entries of train")
    note = noted(dataset, "are in train and in val")
    assert note.startswith("1 pictures") and note.endswith("b.png.")

    twins = [{"id": number, "file_name": "a.png"} for number in (1, 2)]
    write(tmp_path / "images/val.json", json.dumps(coco_content(images=twins, annotations=[])))
    note = noted(read_dataset(tmp_path / "images/val.json"), "in val more than once")
    assert note.startswith("1 pictures") and note.endswith("a.png.")


def test_links_to_one_picture_are_one_picture(tmp_path: Path) -> None:
    picture(tmp_path / "store/a.png")
    for split in ("train", "val"):
        (tmp_path / f"set/{split}/images").mkdir(parents=True)
        (tmp_path / f"set/{split}/images/{split}.png").symlink_to(tmp_path / "store/a.png")
        write(tmp_path / f"set/{split}/labels/{split}.txt")
    write(tmp_path / "set/classes.txt", "pit\n")
    assert noted(read_dataset(tmp_path / "set"), "are in train and in val").startswith("1 pictures")


def test_yolo_boxes_with_keypoints(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", "0 .5 .5 .2 .2 .1 .1 2 .9 .9 1\n")
    write(tmp_path / "data.yaml", "train: images\nkpt_shape: [2, 3]\nnames: [person]")
    dataset = read_dataset(tmp_path)
    np.testing.assert_allclose(dataset.splits["train"][0].boxes_xyxy_px, [[12, 8, 18, 12]])
    assert noted(dataset, "have keypoints").startswith("1 boxes")
    assert not any("polygons" in note for note in dataset.notes)


def test_yolo_text_files_without_a_picture_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.jpg"):
        picture(tmp_path / "images" / name)
    (tmp_path / "images/c.heic").touch()
    for name in ("a", "sub/b", "c", "sub/d"):
        write(tmp_path / f"labels/{name}.txt")
    for other in ("labels/classes.txt", "labels/train.txt", "labels/README.roboflow.txt"):
        write(tmp_path / other, "pit\n")
    dataset = read_dataset(tmp_path)
    assert found(dataset) == {"train": {"a.png": 1, "b.jpg": 1}}
    note = noted(dataset, "belong to no picture")
    assert note.startswith("2 text files") and "labels/c.txt" in note


def test_yolo_folders_that_are_links(tmp_path: Path) -> None:
    picture(tmp_path / "store/images/a.png")
    write(tmp_path / "store/labels/a.txt")
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        (tmp_path / "set" / kind / "part").symlink_to(tmp_path / "store" / kind, target_is_directory=True)
    # The same labels by a path that sorts first.
    (tmp_path / "set/labels/other").symlink_to(tmp_path / "store/labels", target_is_directory=True)
    write(tmp_path / "set/data.yaml", "train: images\nnames: [pit]")
    dataset = read_dataset(tmp_path / "set")
    assert found(dataset) == {"train": {"a.png": 1}}
    assert not any("belong to no picture" in note for note in dataset.notes)


def test_yolo_two_folders_of_one_split(tmp_path: Path) -> None:
    for folder in ("train", "training"):
        picture(tmp_path / f"images/{folder}/{folder}.png")
        write(tmp_path / f"labels/{folder}/{folder}.txt")
    write(tmp_path / "classes.txt", "pit\n")
    assert found(read_dataset(tmp_path)) == {"train": {"train.png": 1, "training.png": 1}}


@pytest.mark.parametrize("prefix", ["", "data/"])
def test_yolo_from_cvat(tmp_path: Path, prefix: str) -> None:
    root = tmp_path / "images" / "task"  # its labels are not sought in a folder beside "images"
    for split, stem in (("train", "a"), ("valid", "b")):
        picture(root / f"obj_{split}_data/{stem}.png")
        write(root / f"obj_{split}_data/{stem}.txt")
        write(root / f"{split}.txt", f"{prefix}obj_{split}_data/{stem}.png\n")
    write(root / "obj.names", "pit\n")
    write(root / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    dataset = read_dataset(root)
    assert (dataset.format, dataset.class_names) == ("yolo", ("pit",))
    assert found(dataset) == {"train": {"a.png": 1}, "val": {"b.png": 1}}


def test_yolo_from_labelimg(tmp_path: Path) -> None:
    for stem in ("a", "b"):
        picture(tmp_path / f"{stem}.png")
    write(tmp_path / "a.txt")
    write(tmp_path / "classes.txt", "pit\n")
    dataset = read_dataset(tmp_path)
    assert found(dataset) == {"train": {"a.png": 1, "b.png": 0}}
    assert noted(dataset, "no text file").startswith("1 pictures")
    assert not any("belong to no picture" in note for note in dataset.notes)


def test_yolo_names_as_they_are_spelled(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    write(tmp_path / "data.yaml", "train: images\nval: null\ntest:\nnc: 5\nnames: [no, yes, 010, 1.0, 'a: b']")
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("no", "yes", "010", "1.0", "a: b") and list(dataset.splits) == ["train"]
    for split in ("train", "val"):
        yolo.write(tmp_path / "set", split=split, samples=[one_sample()], class_names=("no", "010", "~"))
    assert read_dataset(tmp_path / "set").class_names == ("no", "010", "~")


def test_yolo_from_roboflow_with_a_split_that_is_not_there(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        picture(tmp_path / f"{split}/images/{split}.png")
        write(tmp_path / f"{split}/labels/{split}.txt")
    places = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(tmp_path / "data.yaml", f"{places}names: [pit]")
    dataset = read_dataset(tmp_path)
    assert found(dataset) == {"train": {"train.png": 1}, "val": {"valid.png": 1}}
    assert "test names '../test/images', which is missing" in noted(dataset, "1 split is left out.")
