"""What is written in a format is read back the same, and the layouts found in the wild are recognised."""

import json
import os
import tempfile
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from setdet.data import coco, voc, yolo
from setdet.data.loader import load_sample
from setdet.data.schema import Dataset, Sample
from setdet.data.sources import read_dataset
from setdet.errors import DataError, OutputError

CLASSES = ("scratch", "pit", "crack & <tear>")
FORMATS = {"voc": voc, "coco": coco, "yolo": yolo}


@st.composite
def samples(draw: st.DrawFn, *, crowd: bool) -> Sample:
    height, width = draw(st.integers(3, 40)), draw(st.integers(3, 40))
    boxes: dict[tuple[float, ...], tuple[int, bool]] = {}
    for _ in range(draw(st.integers(0, 4))):
        # Any float32 that is not so near to 0 that a format's text form could not tell it from 0.
        left, right = sorted(draw(st.lists(st.integers(0, width * 64), min_size=2, max_size=2, unique=True)))
        top, bottom = sorted(draw(st.lists(st.integers(0, height * 64), min_size=2, max_size=2, unique=True)))
        shift = (
            draw(st.floats(0, 0.875, width=32, allow_subnormal=False))
            if left and top and right < width * 64 and bottom < height * 64
            else 0.0
        )
        corners = np.array([left, top, right, bottom], dtype=np.float32) / 64 + np.float32(shift) / 64
        boxes[tuple(corners.tolist())] = (draw(st.integers(0, 2)), crowd and draw(st.booleans()))
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if draw(st.booleans()):
        pixels = np.repeat(pixels[:, :, :1], 3, axis=2)
    return Sample(
        image=pixels,
        boxes_xyxy_px=np.array(list(boxes), dtype=np.float32).reshape(-1, 4),
        labels=np.array([label for label, _ in boxes.values()], dtype=np.int64),
        crowd=np.array([group for _, group in boxes.values()], dtype=np.bool_),
        name=f"p{draw(st.integers(0, 10**9))}.v1",
    )


def assert_same(one: Sample, other: Sample) -> None:
    for field in ("image", "boxes_xyxy_px", "labels", "crowd"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_what_is_written_is_read_back(name: str, data: st.DataObject) -> None:
    drawn = st.lists(samples(crowd=name == "coco"), min_size=1, max_size=3, unique_by=lambda sample: sample.name)
    splits = {"train": data.draw(drawn), "val": data.draw(drawn)}
    with tempfile.TemporaryDirectory() as folder:
        for split, written in splits.items():
            FORMATS[name].write(Path(folder), split=split, samples=iter(written), class_names=CLASSES)
        dataset = read_dataset(folder)
        assert (dataset.format, dataset.class_names) == (name, CLASSES)
        assert not any("clipped" in note or "duplicate" in note for note in dataset.notes)
        for split, written in splits.items():
            records = dataset.splits[split]
            assert [record.image.stem for record in records] == sorted(sample.name for sample in written)
            for record, sample in zip(records, sorted(written, key=lambda sample: sample.name), strict=True):
                assert_same(load_sample(record), sample)
                sides = sample.boxes_xyxy_px[:, 2:].astype(np.float64) - sample.boxes_xyxy_px[:, :2]
                if record.areas_px is not None:  # as COCO states them
                    np.testing.assert_allclose(record.areas_px, sides.prod(axis=1))


def one_sample(name: str = "a", **changes: object) -> Sample:
    values = {
        "image": np.zeros((20, 30, 3), dtype=np.uint8),
        "boxes_xyxy_px": np.array([[1, 2, 11, 12]], dtype=np.float32),
        "labels": np.array([1]),
        "crowd": np.array([False]),
        "name": name,
    }
    return Sample(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("module", FORMATS.values())
def test_writing_refuses_a_split_in_use_and_twin_names(tmp_path: Path, module: ModuleType) -> None:
    module.write(tmp_path, split="train", samples=[one_sample()], class_names=CLASSES)
    with pytest.raises(OutputError, match="in use"):
        module.write(tmp_path, split="train", samples=[one_sample()], class_names=CLASSES)
    with pytest.raises(DataError, match="two pictures are called 'a'"):
        module.write(tmp_path, split="val", samples=[one_sample(), one_sample()], class_names=CLASSES)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("module", [voc, yolo])
def test_crowds_are_refused_where_they_cannot_be_marked(tmp_path: Path, module: ModuleType) -> None:
    with pytest.raises(DataError, match="crowd"):
        module.write(tmp_path, split="train", samples=[one_sample(crowd=np.array([True]))], class_names=CLASSES)


def picture(path: Path, height: int = 20, width: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width), dtype=np.uint8))


def xml(path: Path, *objects: tuple[str, int, int, int, int], filename: str = "", difficult: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    size = "<size><width>30</width><height>20</height><depth>1</depth></size>"
    path.write_text(f"<annotation><filename>{filename}</filename>{size}{nodes}</annotation>")


def test_voc_by_split_with_pictures_in_folders_of_classes(tmp_path: Path) -> None:
    picture(tmp_path / "train/images/pit/pit_1.jpg")
    # The class is the object's, not the file's; the declared name lacks its suffix; corners are 1-based, inclusive.
    xml(tmp_path / "train/annotations/pit_1.xml", ("scratch", 1, 1, 30, 20), ("pit", 2, 3, 4, 4), filename="pit_1")
    picture(tmp_path / "validation/images/crack.v2.png")
    box = ("pit", 5, 5, 9, 9)
    xml(tmp_path / "validation/annotations/1.xml", box, box, filename="crack.v2", difficult=1)
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("pit", "scratch")
    (record,) = dataset.splits["train"]
    np.testing.assert_array_equal(record.boxes_xyxy_px, [[0, 0, 30, 20], [1, 2, 4, 4]])
    np.testing.assert_array_equal(record.labels, [1, 0])
    assert (record.height, record.width) == (20, 30)
    assert len(dataset.splits["val"][0].labels) == 1
    assert "1 exact duplicates of boxes were dropped." in dataset.notes
    assert "2 boxes marked difficult are kept as ordinary boxes." in dataset.notes


def test_one_place_may_hold_boxes_of_two_classes_or_a_box_and_a_crowd(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    xml(tmp_path / "1.xml", ("pit", 1, 1, 5, 5), ("crack", 1, 1, 5, 5))
    dataset = read_dataset(tmp_path)
    assert dataset.splits["train"][0].labels.tolist() == [1, 0]
    assert not any("duplicates" in note for note in dataset.notes)
    (record,) = coco_of(tmp_path, {"bbox": [1, 1, 4, 5]}, {"bbox": [1, 1, 4, 5], "iscrowd": 1}).splits["val"]
    assert record.crowd.tolist() == [False, True]


def test_yolo_from_windows_and_macos(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "ü b.PNG")
        (tmp_path / "images" / split / "._ü b.PNG").write_bytes(b"a twin that macOS leaves")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "ü b.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .2 .2\r\n0 .1 .1 .2 .1 .2 .3\r\n")
    (tmp_path / "val.txt").write_bytes(".\\images\\val\\ü b.PNG\r\n".encode())
    (tmp_path / "data.yaml").write_bytes(b"\xef\xbb\xbftrain: .\\images\\train\r\nval: val.txt\r\nnames: [pit]\r\n")
    splits = read_dataset(tmp_path).splits
    assert {name: [len(record.labels) for record in records] for name, records in splits.items()} == {
        "train": [2],
        "val": [2],
    }


def test_voc_from_macos(tmp_path: Path) -> None:
    picture(tmp_path / "1.png")
    xml(tmp_path / "1.xml", ("pit", 1, 1, 5, 5))
    for name in ("._1.png", "._1.xml"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert len(read_dataset(tmp_path).splits["train"]) == 1


def test_a_folder_may_be_called_anything(tmp_path: Path) -> None:
    folder = tmp_path / "a{b}c {} Fläche {count}"
    xml(folder / "1.xml", ("pit", 1, 1, 5, 5))
    for stem in ("1", "2"):
        picture(folder / f"{stem}.png")
    assert f"1 pictures in {folder} have no XML file and are left out." in read_dataset(folder).notes


def test_classes_that_differ_in_case_alone_are_announced(tmp_path: Path) -> None:
    for stem, name in (("1", "Pit"), ("2", "pit"), ("3", "crack")):
        picture(tmp_path / f"{stem}.png")
        xml(tmp_path / f"{stem}.xml", (name, 1, 1, 5, 5))
    (note,) = (note for note in read_dataset(tmp_path).notes if "case alone" in note)
    assert note.endswith("each a class of its own: Pit, pit.")


def test_voc_with_lists_of_splits(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"JPEGImages/{stem}.jpg")
        xml(tmp_path / f"Annotations/{stem}.xml", ("pit", 1, 1, 5, 5))
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_text("b\na\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("c\n")
    (tmp_path / "ImageSets/Main/pit_train.txt").write_text("a 1\nb -1\n")
    dataset = read_dataset(tmp_path)
    assert {split: [record.image.stem for record in records] for split, records in dataset.splits.items()} == {
        "train": ["a", "b"],
        "val": ["c"],
    }


def test_voc_trainval_without_train_leaves_validation_pictures_out(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        picture(tmp_path / f"JPEGImages/{stem}.jpg")
        xml(tmp_path / f"Annotations/{stem}.xml", ("pit", 1, 1, 5, 5))
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\nb\nc\n")

    def stems() -> dict[str, list[str]]:
        return {split: [one.image.stem for one in part] for split, part in read_dataset(tmp_path).splits.items()}

    assert stems() == {"train": ["a", "b", "c"]}
    (lists / "val.txt").write_text("b\n")
    assert stems() == {"train": ["a", "c"], "val": ["b"]}
    (lists / "val.txt").write_text("a\nb\nc\n")
    assert stems() == {"val": ["a", "b", "c"]}


def test_voc_beside_the_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    xml(tmp_path / "a.xml", ("pit", 1, 1, 5, 5))
    dataset = read_dataset(tmp_path)
    assert [record.image.name for record in dataset.splits["train"]] == ["a.png"]
    assert any("1 pictures" in note and "no XML" in note for note in dataset.notes)


def coco_content(**changes: object) -> dict[str, object]:
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [25, 2, 10, 4], "iscrowd": 1}],
        "categories": [{"id": 90, "name": "pit"}, {"id": 3, "name": "scratch"}],
    } | changes


def test_coco_maps_ids_with_gaps_clips_and_keeps_crowds(tmp_path: Path) -> None:
    picture(tmp_path / "val2017/a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(coco_content()))
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("scratch", "pit")
    (record,) = dataset.splits["val"]
    assert record.labels.tolist() == [1] and record.crowd.tolist() == [True]
    np.testing.assert_array_equal(record.boxes_xyxy_px, [[25, 2, 30, 6]])
    assert any("1 boxes reached over the edge" in note for note in dataset.notes)


def coco_of(folder: Path, *annotations: dict[str, object]) -> Dataset:
    """A data set of one picture with these annotations."""
    picture(folder / "a.png")
    given = [{"id": number, "image_id": 7, "category_id": 90} | one for number, one in enumerate(annotations)]
    (folder / "val.json").write_text(json.dumps(coco_content(annotations=given)))
    return read_dataset(folder / "val.json")


def test_coco_areas_of_segments_are_kept_and_nonsense_is_that_of_the_box(tmp_path: Path) -> None:
    boxes = [[index, 0, 4, 5] for index in range(7)]
    stated: list[object] = [7.5, 0, None, -1, float("nan"), "9", 10**400]
    dataset = coco_of(tmp_path, *({"bbox": box, "area": area} for box, area in zip(boxes, stated, strict=True)))
    (record,) = dataset.splits["val"]
    assert record.areas_px is not None and record.areas_px.tolist() == [7.5, 0, 20, 20, 20, 20, 20]
    assert any(note.startswith("4 areas are no number of pixels") for note in dataset.notes)


def test_coco_without_areas_goes_by_the_boxes(tmp_path: Path) -> None:
    (record,) = coco_of(tmp_path, {"bbox": [1, 1, 4, 5]}).splits["val"]
    assert record.areas_px is None


def test_coco_boxes_without_an_area_are_left_out(tmp_path: Path) -> None:
    dataset = coco_of(tmp_path, {"bbox": [1, 1, 1.03, 0.0]}, {"bbox": [1, 1, 4, 5]})  # as in instances_train2017
    assert [record.boxes_xyxy_px.tolist() for record in dataset.splits["val"]] == [[[1, 1, 5, 6]]]
    assert any(note.startswith("1 boxes have no width or no height") for note in dataset.notes)


def test_coco_as_a_file_and_by_folders_of_splits(tmp_path: Path) -> None:
    picture(tmp_path / "valid/a.png")
    (tmp_path / "valid/_annotations.coco.json").write_text(json.dumps(coco_content()))
    assert list(read_dataset(tmp_path).splits) == ["val"]
    assert list(read_dataset(tmp_path / "valid/_annotations.coco.json").splits) == ["val"]
    (tmp_path / "valid/things.json").write_text(json.dumps(coco_content()))
    assert list(read_dataset(tmp_path / "valid/things.json").splits) == ["train"]


def test_coco_files_of_no_split_are_named(tmp_path: Path) -> None:
    for folder in ("train", "extra"):
        picture(tmp_path / folder / "a.png")
        (tmp_path / folder / "_annotations.coco.json").write_text(json.dumps(coco_content()))
    dataset = read_dataset(tmp_path)
    assert list(dataset.splits) == ["train"]
    note = "Left out, because their names stand for no split: extra/_annotations.coco.json."
    assert [line for line in dataset.notes if "eft out" in line] == [note]


@pytest.mark.parametrize("names", [["pit", "scratch"], {0: "pit", 1: "scratch"}])
def test_yolo_by_data_yaml(tmp_path: Path, names: object) -> None:
    picture(tmp_path / "set/train/images/a.png")
    (tmp_path / "set/train/labels").mkdir()
    (tmp_path / "set/train/labels/a.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0 0 0.1 0 0.1 0.2\n")
    picture(tmp_path / "set/elsewhere/b.png")
    (tmp_path / "set/val.txt").write_text("./elsewhere/b.png\n")
    content = {"train": "../train/images", "val": ["val.txt"], "nc": 2, "names": names}
    (tmp_path / "set/data.yaml").write_text(yaml.safe_dump(content))
    dataset = read_dataset(tmp_path / "set/data.yaml")
    (record,) = dataset.splits["train"]
    np.testing.assert_allclose(record.boxes_xyxy_px, [[7.5, 5, 22.5, 15], [0, 0, 3, 4]])
    assert record.labels.tolist() == [1, 0]
    assert any("1 polygons" in note for note in dataset.notes)
    assert len(dataset.splits["val"][0].labels) == 0
    assert any("1 pictures have no text file" in note for note in dataset.notes)


@pytest.mark.parametrize("layout", ["images/{split}", "{split}/images", "images"])
def test_yolo_by_folders_and_a_class_file(tmp_path: Path, layout: str) -> None:
    images = layout.format(split="valid")
    picture(tmp_path / images / "a.png")
    labels = tmp_path / images.replace("images", "labels")
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "classes.txt").write_text("pit\n")
    dataset = read_dataset(tmp_path)
    (record,) = dataset.splits["train" if layout == "images" else "val"]
    np.testing.assert_allclose(record.boxes_xyxy_px, [[0, 0, 30, 20]])


@pytest.mark.skipif("SETDET_NEU_DET" not in os.environ, reason="SETDET_NEU_DET does not name a copy of NEU-DET")
def test_neu_det_is_read_whole() -> None:
    dataset = read_dataset(os.environ["SETDET_NEU_DET"])
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 1440, "val": 360}
    assert len(dataset.class_names) == 6
    assert sum(len(record.labels) for records in dataset.splits.values() for record in records) == 4189 - 3
    assert "81 boxes marked difficult are kept as ordinary boxes." in dataset.notes
    assert "3 exact duplicates of boxes were dropped." in dataset.notes
