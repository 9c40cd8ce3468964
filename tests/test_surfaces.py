"""Generated surfaces: pure functions of seed and index, boxes that hold exactly what was drawn, data sets that read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setdet.data.sources import read_dataset
from setdet.data.surfaces import CLASS_NAMES, defects, generate, make
from setdet.data.surfaces.generate import _box_of
from setdet.errors import OutputError, UsageError

DRAWS = {
    "crazing": defects.crazing,
    "inclusion": defects.inclusion,
    "patches": defects.patches,
    "pitted_surface": defects.pitted_surface,
    "rolled-in_scale": defects.rolled_in_scale,
    "scratches": defects.scratches,
}


@settings(max_examples=15, deadline=None)
@given(index=st.integers(0, 10**6), seed=st.integers(0, 10**6), size=st.sampled_from([64, 200, 224]))
def test_a_picture_is_grey_and_its_boxes_lie_inside(index: int, seed: int, size: int) -> None:
    sample = generate(index, seed=seed, size=size)
    assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
    assert np.array_equal(sample.image[..., 0], sample.image[..., 2])
    assert 1 <= len(sample.labels) == len(sample.boxes_xyxy_px)
    assert set(sample.labels.tolist()) == {index % len(CLASS_NAMES)}
    assert (sample.boxes_xyxy_px[:, :2] >= 0).all() and (sample.boxes_xyxy_px[:, 2:] <= size).all()
    assert (sample.boxes_xyxy_px[:, 2:] - sample.boxes_xyxy_px[:, :2] >= 0.03 * size).all()


def test_a_picture_depends_on_seed_and_index_alone() -> None:
    again = [generate(7, seed=3) for _ in range(2)]
    assert np.array_equal(again[0].image, again[1].image)
    assert np.array_equal(again[0].boxes_xyxy_px, again[1].boxes_xyxy_px)
    assert not np.array_equal(again[0].image, generate(7, seed=4).image)
    assert not np.array_equal(again[0].image, generate(13, seed=3).image)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_defect_changes_its_own_pixels_in_its_own_direction(name: str) -> None:
    for seed in range(4):
        defect = DRAWS[name](np.random.default_rng(seed), 200)
        if not defect.mask.any():
            continue  # drawn outside the picture: the generator tries again
        inside, outside = defect.change[defect.mask], defect.change[~defect.mask]
        direction = 1 if name == "scratches" else -1
        assert (direction * inside).mean() > 5
        assert (direction * inside).mean() > 4 * np.abs(outside).mean()


def test_a_box_is_the_tightest_around_a_mask() -> None:
    mask = np.zeros((200, 200), dtype=np.bool_)
    mask[20, 50] = mask[59, 99] = True
    box = _box_of(mask)
    assert box is not None and box.tolist() == [50, 20, 100, 60]
    assert _box_of(np.zeros((200, 200), dtype=np.bool_)) is None


@pytest.mark.parametrize("format", ["voc", "coco", "yolo"])
def test_a_made_data_set_reads_back(format: str, tmp_path: Path) -> None:
    make(tmp_path / "steel", count=12, seed=5, format=format, val_share=0.5, size=64)  # type: ignore[arg-type]
    dataset = read_dataset(tmp_path / "steel")
    assert dataset.format == format and dataset.class_names == CLASS_NAMES
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 6, "val": 6}
    for offset, split in ((0, "train"), (6, "val")):
        by_name = {record.image.stem: record for record in dataset.splits[split]}
        for index in range(offset, offset + 6):
            sample = generate(index, seed=5, size=64)
            record = by_name[sample.name]
            assert record.labels.tolist() == sample.labels.tolist()
            assert np.allclose(record.boxes_xyxy_px, sample.boxes_xyxy_px, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["steel"]


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is in use"):
        make(tmp_path, count=12)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_filled_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", count=2, val_share=0.5, size=64)
    assert (tmp_path / "link").is_symlink() and read_dataset(tmp_path / "real").splits.keys() == {"train", "val"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make(Path("."), count=2, val_share=0.5, size=64)
    assert Path("classes.txt").is_file()
    with pytest.raises(OutputError, match=r"cannot be made \(Not a directory|cannot be made \(File exists"):
        make(Path("classes.txt") / "steel", count=2, val_share=0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "here"}


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("setdet.data.voc.write", broken)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path / "steel", count=12)
    assert list(tmp_path.iterdir()) == []


def test_too_few_pictures_for_two_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave a split empty"):
        make(tmp_path / "steel", count=2)
    with pytest.raises(UsageError, match="index of 0 or more"):
        generate(-1, seed=0)
