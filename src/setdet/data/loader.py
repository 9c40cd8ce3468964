"""Training batches: decoded, augmented, and the same whatever the number of workers and wherever one starts."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from setdet.data.mixing import augment
from setdet.data.schema import Record, Sample, check_size
from setdet.data.transforms import AugmentConfig, batch_preprocessing
from setdet.errors import DataError, SetdetError
from setdet.images import Preprocessing, read_image
from setdet.targets import Targets


@dataclass(frozen=True)
class Batch:
    """What one training step works on.

    Attributes:
        images: RGB, 0 to 255.
        targets: the boxes, crowd boxes left out.
        indices: the position of each picture in the records.
    """

    images: UInt8[Tensor, "batch 3 height width"]
    targets: Targets
    indices: tuple[int, ...]

    def pin_memory(self) -> "Batch":
        """The same batch in memory that a GPU fetches from by itself; PyTorch's loader calls it."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


class PictureCache:
    """Decoded pictures, kept until a limit is reached; later ones are decoded each time.

    None is thrown out for another: an epoch sees every picture once, so the oldest would always be the next needed.
    """

    def __init__(self, *, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._pictures: dict[tuple[Path, int, int], NDArray[np.uint8]] = {}

    @property
    def full(self) -> bool:
        """Whether nothing more is taken in."""
        return self._used_bytes >= self._limit_bytes

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The picture as `read_image` gives it; a kept one cannot be written to."""
        try:
            stat = path.stat()
        except OSError:
            return read_image(path)  # which says what is wrong with it
        key = (path, stat.st_mtime_ns, stat.st_size)  # a file that was written anew is another picture
        if (image := self._pictures.get(key)) is not None:
            return image
        image = read_image(path)
        if self._used_bytes + image.nbytes <= self._limit_bytes:
            image.flags.writeable = False
            self._pictures[key] = image
            self._used_bytes += image.nbytes
        else:
            self._used_bytes = self._limit_bytes
        return image

    def __reduce__(self) -> tuple[object, ...]:
        # A worker that is not forked starts with an empty cache: sending the pictures costs more than decoding them.
        return _empty_cache, (self._limit_bytes,)


def _empty_cache(limit_bytes: int) -> PictureCache:
    return PictureCache(limit_bytes=limit_bytes)


# One for the process: an epoch's loader forks its workers anew, and they inherit what is decoded already.
_PICTURES = PictureCache(limit_bytes=2**30)
_NO_PICTURES = PictureCache(limit_bytes=0)


def load_sample(record: Record, *, cache: PictureCache = _NO_PICTURES) -> Sample:
    """Decodes a record's picture.

    Raises:
        ImageError: it cannot be decoded.
        DataError: its size is not the one that the annotations declare, so boxes would not lie where they belong.
    """
    image = cache.read(record.image)
    check_size(record, *image.shape[:2])
    return Sample(
        image=image,
        boxes_xyxy_px=record.boxes_xyxy_px,
        labels=record.labels,
        crowd=record.crowd,
        name=str(record.image),
    )


class TrainingLoader:
    """The batches of one epoch from `first_batch` on; see `training_loader`."""

    def __init__(self, *, batches: "_Batches", first_batch: int, workers: int, pinned: bool) -> None:
        self._batches = batches
        self._first_batch = first_batch
        self._workers = workers
        self._pinned = pinned

    def __len__(self) -> int:
        return max(0, len(self._batches) - self._first_batch)

    def __iter__(self) -> Iterator[Batch]:
        # Forked workers have what this process has decoded; others would decode everything again in every epoch.
        fork = self._workers > 0 and sys.platform == "linux"
        if fork:
            self._batches.fill_cache()
        loader: DataLoader[Batch | SetdetError] = DataLoader(
            self._batches,
            sampler=range(self._first_batch, len(self._batches)),
            batch_size=None,
            num_workers=min(self._workers, _cores()),  # PyTorch warns of more
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if fork else None,
            # The loader draws a seed for its workers, which nothing here uses, and must not draw it from the
            # generator that training draws from: a resumed run would go another way.
            generator=torch.Generator(),
            pin_memory=self._pinned,
        )
        for batch in loader:
            if isinstance(batch, SetdetError):
                raise batch
            yield batch


def training_loader(
    records: Sequence[Record],
    *,
    augment: AugmentConfig,
    preprocessing: Preprocessing,
    batch_size: int,
    seed: int,
    workers: int,
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    cache: bool | PictureCache = True,
    pinned: bool = False,
) -> TrainingLoader:
    """The batches of one epoch.

    Order and augmentation are pure functions of seed, epoch and position, so that any number of workers gives the
    same batches and a run can go on at any of them. Pictures left over after the last full batch are left out.

    Args:
        records: the pictures to train on.
        augment: what to change on them.
        preprocessing: the network's input.
        batch_size: pictures in a batch of this process.
        seed: of the whole run.
        workers: processes that prepare batches, at most as many as there are cores; 0 prepares them in this one.
        epoch: counted from 0.
        first_batch: the batch to start at.
        rank, world_size: this process among those that share the epoch; each gets as many batches of the same size.
        cache: whether to keep decoded pictures in memory (up to 1 GiB, for all loaders of this process), or where.
        pinned: whether batches are in memory that a GPU fetches from by itself.

    Raises:
        DataError: there are fewer pictures than one batch; while iterating: a picture is broken or has another size
            than declared.
    """
    if not records:
        raise DataError("There is no picture to train on. Give a data set whose training split has pictures.")
    pictures = cache if isinstance(cache, PictureCache) else _PICTURES if cache else _NO_PICTURES
    batches = _Batches(
        records=records,
        augmentation=augment,
        preprocessing=preprocessing,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        cache=pictures,
    )
    return TrainingLoader(batches=batches, first_batch=first_batch, workers=workers, pinned=pinned)


class _Batches(TorchDataset[Batch | SetdetError]):
    """One epoch's batches by number."""

    def __init__(
        self,
        *,
        records: Sequence[Record],
        augmentation: AugmentConfig,
        preprocessing: Preprocessing,
        batch_size: int,
        seed: int,
        epoch: int,
        rank: int,
        world_size: int,
        cache: PictureCache,
    ) -> None:
        self._records = records
        self._augmentation = augmentation
        self._preprocessing = preprocessing
        self._seed = seed
        self._epoch = epoch
        self._cache = cache
        order = np.random.default_rng([seed, epoch]).permutation(len(records))
        if len(records) < batch_size * world_size:
            where = f" on each of {world_size} processes" if world_size > 1 else ""
            raise DataError(
                f"There are {len(records)} pictures to train on, fewer than one batch of {batch_size}{where}. "
                f"Add pictures, or choose batch_size (--batch-size) {max(1, len(records) // world_size)} or less."
            )
        count = len(order) // (batch_size * world_size)
        shared = order[: count * batch_size * world_size].reshape(count, world_size, batch_size)
        self._order: list[list[int]] = shared[:, rank].tolist()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, number: int) -> Batch | SetdetError:
        try:
            return self._make(number)
        except SetdetError as error:  # raised through a worker it would carry the worker's traceback in its message
            return error

    def fill_cache(self) -> None:
        """Decodes ahead, so that workers inherit the pictures instead of each decoding them in each epoch."""
        for batch in self._order:
            for index in batch:
                if self._cache.full:
                    return
                try:
                    self._cache.read(self._records[index].image)
                except SetdetError:  # told when its batch comes, as without workers
                    continue

    def _make(self, number: int) -> Batch:
        indices = self._order[number]
        preprocessing = batch_preprocessing(
            self._preprocessing, self._augmentation, seed=self._seed, epoch=self._epoch, batch=number
        )
        samples = []
        for index in indices:
            rng = np.random.default_rng([self._seed, self._epoch, index])
            samples.append(
                augment(
                    self._load(index),
                    self._augmentation,
                    rng,
                    preprocessing=preprocessing,
                    another=lambda rng=rng: self._load(rng.integers(len(self._records))),  # type: ignore[misc]
                )
            )
        return collate(samples, indices)

    def _load(self, index: int) -> Sample:
        return load_sample(self._records[index], cache=self._cache)


def collate(samples: Sequence[Sample], indices: Sequence[int]) -> Batch:
    """Packs samples of one size into a batch; crowd boxes are left out."""
    # Channels last, as the pictures are and as they are trained on.
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    boxes, labels = [], []
    for sample in samples:
        height, width = sample.image.shape[:2]
        top_left, bottom_right = np.split(sample.boxes_xyxy_px[~sample.crowd], 2, axis=1)
        shape = np.array([width, height], dtype=np.float32)
        boxes.append(
            np.concatenate([0.5 * (top_left + bottom_right) / shape, (bottom_right - top_left) / shape], axis=1)
        )
        labels.append(sample.labels[~sample.crowd])
    targets = Targets(
        labels=torch.from_numpy(np.concatenate(labels)),
        boxes_cxcywh=torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
        counts=tuple(len(label) for label in labels),
        names=tuple(sample.name for sample in samples),
    )
    return Batch(images=images, targets=targets, indices=tuple(indices))


def _as_it_is(batch: Any) -> Any:
    """Batches are made whole by `_Batches`; the loader's own collation would take them apart."""
    return batch


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker(_: int) -> None:
    # Ctrl-C reaches every process of a terminal, and `timeout` ends every process of a group. The one that trains
    # finishes its step, and needs its workers for it.
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers are the parallelism; and a forked process must not use OpenCV's threads, which did not survive the fork.
    cv2.setNumThreads(0)
