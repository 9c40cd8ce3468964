"""Batches are the same for any number of workers, from any starting point, and divided evenly among processes."""

import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import setdet.data.loader as loader_module
from setdet.data.loader import Batch, PictureCache, TrainingLoader, load_sample, training_loader
from setdet.data.schema import Record
from setdet.data.transforms import NO_AUGMENTATION, AugmentConfig
from setdet.errors import DataError, ImageError
from setdet.images import Preprocessing


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    made = []
    for number in range(11):
        path = folder / f"{number:02}.png"
        cv2.imwrite(str(path), rng.integers(0, 256, (40, 60), dtype=np.uint8))
        count = number % 4
        corners = np.sort(rng.uniform(0, 40, (count, 2, 2)), axis=1).reshape(count, 4) + [0, 0, 4, 0]
        made.append(
            Record(
                image=path,
                height=40,
                width=60,
                boxes_xyxy_px=corners.astype(np.float32),
                labels=rng.integers(0, 3, count),
                crowd=np.arange(count) == 2,
            )
        )
    return tuple(made)


def loader(records: tuple[Record, ...], **changes: object) -> TrainingLoader:
    settings: dict[str, object] = {
        "augment": AugmentConfig(multi_scale=(32, 64, 96)),
        "preprocessing": Preprocessing(image_size=(64, 96)),
        "batch_size": 2,
        "seed": 5,
        "workers": 0,
        "epoch": 3,
    }
    return training_loader(records, **(settings | changes))  # type: ignore[arg-type]


def assert_same(one: list[Batch], other: list[Batch]) -> None:
    assert [batch.indices for batch in one] == [batch.indices for batch in other]
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets.boxes_cxcywh, b.targets.boxes_cxcywh)
        assert torch.equal(a.targets.labels, b.targets.labels)
        assert (a.targets.counts, a.targets.names) == (b.targets.counts, b.targets.names)


def test_a_batch_is_pinned_with_its_truth(records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    batch, pinned = next(iter(loader(records))), list[torch.Size]()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.shape)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    assert_same([batch.pin_memory()], [batch])
    assert pinned == [batch.images.shape, batch.targets.labels.shape, batch.targets.boxes_cxcywh.shape]


# PyTorch advises against more workers than cores; a machine with a single core still has to give the same batches.
def test_workers_cache_and_starting_point_change_nothing(
    records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(loader(records))
    assert len(expected) == len(loader(records)) == 5
    assert len({tuple(batch.images.shape[2:]) for batch in expected}) > 1
    assert_same(list(loader(records, workers=2)), expected)
    kept = PictureCache(limit_bytes=10**6)
    monkeypatch.setattr(loader_module, "_PICTURES", kept)
    assert_same(list(loader(records, cache=False)), expected)
    assert not kept._pictures
    rest = loader(records, first_batch=3)
    assert len(rest) == 2
    assert_same(list(rest), expected[3:])
    assert len(loader(records, first_batch=5)) == 0 and not list(loader(records, first_batch=5))


def test_epochs_and_seeds_differ(records: tuple[Record, ...]) -> None:
    orders = {
        tuple(batch.indices for batch in loader(records, **changes))  # type: ignore[arg-type]
        for changes in ({}, {"epoch": 4}, {"seed": 6})
    }
    assert len(orders) == 3
    # The same picture in another epoch is changed otherwise.
    config = AugmentConfig(photometric=1.0)
    first, second = (list(loader(records[:1], batch_size=1, epoch=epoch, augment=config)) for epoch in (0, 1))
    assert not torch.equal(first[0].images, second[0].images)


def test_a_picture_is_changed_the_same_way_in_any_batch(records: tuple[Record, ...]) -> None:
    singles = {
        batch.indices[0]: batch.images[0]
        for batch in loader(records, batch_size=1, augment=AugmentConfig(photometric=1.0))
    }
    (together,) = loader(records, batch_size=11, augment=AugmentConfig(photometric=1.0))
    assert all(
        torch.equal(image, singles[index]) for index, image in zip(together.indices, together.images, strict=True)
    )


def test_batches_hold_what_the_records_say(records: tuple[Record, ...]) -> None:
    for batch in loader(records, augment=NO_AUGMENTATION, preprocessing=Preprocessing(image_size=(64, 64))):
        assert batch.images.shape == (2, 3, 64, 64) and batch.images.dtype == torch.uint8
        start = 0
        for index, count, name in zip(batch.indices, batch.targets.counts, batch.targets.names, strict=True):
            record = records[index]
            keep = ~record.crowd
            boxes = record.boxes_xyxy_px[keep] / np.array([60, 40, 60, 40], dtype=np.float32)
            expected = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)
            assert name == str(record.image) and count == keep.sum()
            np.testing.assert_allclose(batch.targets.boxes_cxcywh[start : start + count], expected, atol=1e-5)
            np.testing.assert_array_equal(batch.targets.labels[start : start + count], record.labels[keep])
            start += count
        assert start == len(batch.targets.labels)


def test_processes_share_an_epoch_evenly(records: tuple[Record, ...]) -> None:
    shares = [list(loader(records, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    indices = [index for share in shares for batch in share for index in batch.indices]
    assert len(set(indices)) == 8
    # All processes together see what one with their joint batch sees, at one size a batch.
    together = list(loader(records, batch_size=4))
    for number, batch in enumerate(together):
        assert batch.indices == shares[0][number].indices + shares[1][number].indices
        assert batch.images.shape[2:] == shares[0][number].images.shape[2:] == shares[1][number].images.shape[2:]


def test_fewer_pictures_than_a_batch(records: tuple[Record, ...]) -> None:
    with pytest.raises(DataError, match=r"3 pictures to train on, fewer than one batch of 8\. .*--batch-size\) 3 or"):
        loader(records[:3], batch_size=8)
    with pytest.raises(DataError, match=r"batch of 4 on each of 3 processes\. .*--batch-size\) 2 or"):
        loader(records[:8], batch_size=4, world_size=3)
    assert len(loader(records[:8], batch_size=8)) == 1


def test_no_more_workers_than_cores(records: tuple[Record, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_cores", lambda: 1)
    assert len(list(loader(records[:4], batch_size=2, workers=64))) == 2  # PyTorch's warning would be an error


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="there are no process groups")
def test_a_signal_to_the_group_of_the_trainer_spares_its_workers(records: tuple[Record, ...]) -> None:
    before = set(multiprocessing.active_children())
    batches = iter(loader(records, workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None and os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    list(batches)


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no picture to train on"):
        loader(())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_without_a_traceback(
    records: tuple[Record, ...], tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    bad = Record(**(vars(records[0]) | {"image": broken}))
    with pytest.raises(ImageError, match=r"broken\.png: cannot be decoded") as caught:
        list(loader((*records[:3], bad), workers=workers))
    assert "Traceback" not in str(caught.value)


def test_torchs_random_numbers_are_left_alone(records: tuple[Record, ...]) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader(records))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cache_stops_at_its_limit_and_notices_new_files(records: tuple[Record, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((40, 60), dtype=np.uint8))
    cache = PictureCache(limit_bytes=40 * 60 * 3)
    assert cache.read(path) is cache.read(path)
    assert cache.full
    assert cache.read(records[0].image) is not cache.read(records[0].image)
    cv2.imwrite(str(path), np.full((41, 60), 9, dtype=np.uint8))
    assert cache.read(path).shape == (41, 60, 3)
    path, cache = tmp_path / "of-one-size.bmp", PictureCache(limit_bytes=10**6)
    for value in (1, 2):
        cv2.imwrite(str(path), np.full((40, 60), value, dtype=np.uint8))
        os.utime(path, (value, value))  # a disk's clock may be too coarse for two writings in a row
        assert (cache.read(path) == value).all()
    with pytest.raises(ImageError, match="cannot be read"):
        cache.read(tmp_path / "missing.png")


def test_augmentation_leaves_the_cached_picture_alone(records: tuple[Record, ...]) -> None:
    before = load_sample(records[1]).image
    cache = PictureCache(limit_bytes=10**6)
    for epoch in range(3):
        list(loader(records[:4], cache=cache, epoch=epoch))
    np.testing.assert_array_equal(cache.read(records[1].image), before)
