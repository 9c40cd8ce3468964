"""Which format is this? Reads a data set in any of them, and makes the splits that it lacks. No torch."""

import dataclasses
import functools
import os.path
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from setdet.data import coco, voc, yolo
from setdet.data.schema import Dataset, Record
from setdet.errors import DataError, UnknownFormatError

_READERS = {
    "yolo": (yolo.recognizes, yolo.read),
    "coco": (coco.recognizes, coco.read),
    "voc": (voc.recognizes, voc.read),
}
_EXPECTED = """Expected one of:
  VOC   Annotations/*.xml with JPEGImages/ (and ImageSets/Main/*.txt), or <split>/annotations/*.xml with <split>/images/
  COCO  a .json file, annotations/instances_<split>.json, or <split>/_annotations.coco.json
  YOLO  a data.yaml; images/ and labels/ with a classes.txt; obj.names with train.txt; or pictures, text files and a
        classes.txt side by side
where <split> is train, val (valid, validation) or test. Give the folder that holds these."""


def read_dataset(path: Path | str, *, problems: list[DataError] | None = None) -> Dataset:
    """Reads a folder, a `data.yaml` or a COCO JSON; its format is recognised.

    Args:
        path: the folder or file.
        problems: takes what is wrong with single pictures, which are then left out; None: the first is raised.

    Raises:
        UnknownFormatError: it is in none of the known layouts.
        DataError: it does not exist, is broken, or holds no picture.
    """
    path = Path(path)
    if not os.path.exists(path):  # false for a name that is too long, too
        raise DataError(f"{path}: does not exist. Check the path to the data set.")
    formats = [name for name, (recognizes, _) in _READERS.items() if recognizes(path)]
    if not formats:
        raise UnknownFormatError(f"{path}: holds no data set in a known format. {_EXPECTED}")
    chosen, *others = formats
    dataset = _READERS[chosen][1](path, problems=problems)
    if not any(dataset.splits.values()) and not problems:
        raise DataError(f"{path}: the {chosen.upper()} data set holds no pictures. Add some, or check its paths.")
    notes = [f"{path}: {chosen.upper()}; {_counts(dataset)}; {len(dataset.class_names)} classes.", *dataset.notes]
    if others:
        notes.append(f"There are files of {', '.join(name.upper() for name in others)} too; they were not read.")
    seen = {label for records in dataset.splits.values() for record in records for label in record.labels.tolist()}
    unseen = [name for label, name in enumerate(dataset.class_names) if label not in seen]
    if unseen:
        notes.append(f"Classes without a box: {', '.join(unseen)}.")
    alike = Counter(name.casefold() for name in dataset.class_names)
    if twins := [name for name in dataset.class_names if alike[name.casefold()] > 1]:
        notes.append(f"Classes whose names differ in case alone, each a class of its own: {', '.join(twins)}.")
    notes += _repeated(dataset)
    splits = {split: records for split, records in dataset.splits.items() if records}
    return dataclasses.replace(dataset, splits=splits, notes=tuple(notes))


def make_splits(dataset: Dataset, *, val_share: float = 0.2, seed: int = 0) -> Dataset:
    """The data set with a validation split: its own, else a part of its training split, announced in the notes.

    Raises:
        DataError: there is neither a validation nor a training split, or too few pictures to divide.
    """
    if "val" in dataset.splits:
        return dataset
    if "train" not in dataset.splits:
        found = ", ".join(dataset.splits) or "none"
        raise DataError(f"{dataset.root}: has neither a training nor a validation split (found: {found}).")
    kept, held = hold_out(dataset.splits["train"], share=val_share, seed=seed)
    note = (
        f"There is no validation split: {len(held)} of {len(kept) + len(held)} training pictures "
        f"(share {val_share:g}, stratified by class, seed {seed}) were made one."
    )
    splits = dataset.splits | {"train": kept, "val": held}
    return dataclasses.replace(dataset, splits=splits, notes=(*dataset.notes, note))


def hold_out(records: Sequence[Record], *, share: float, seed: int) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Divides pictures into those kept and those held out, so that all classes have their share in both.

    A picture counts for the rarest of its classes. Both parts keep the records' order.

    Args:
        records: at least two.
        share: of the pictures to hold out, between 0 and 1.
        seed: another one holds out other pictures.

    Raises:
        DataError: there are fewer than two pictures, or the share is not between 0 and 1.
    """
    if len(records) < 2 or not 0.0 < share < 1.0:
        raise DataError(
            f"Cannot hold out a share of {share:g} of {len(records)} pictures: "
            "it takes two pictures at least, and a share between 0 and 1."
        )
    frequency = Counter(label for record in records for label in record.labels.tolist())
    strata = np.array(
        [min(record.labels.tolist(), key=lambda label: (frequency[label], label), default=-1) for record in records]
    )
    rng = np.random.default_rng(seed)
    # Shuffled within each class, then every picture at its rank's share of the class: taking the first of all, by
    # that share, takes the same part of every class and the wanted number in all.
    rank_share = np.empty(len(records))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        rank_share[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
    count = min(max(1, round(share * len(records))), len(records) - 1)
    chosen = set(np.argsort(rank_share, kind="stable")[:count].tolist())
    kept = tuple(record for index, record in enumerate(records) if index not in chosen)
    held = tuple(record for index, record in enumerate(records) if index in chosen)
    return kept, held


def _counts(dataset: Dataset) -> str:
    return ", ".join(
        f"{split} {len(records)} pictures with {sum(len(record.labels) for record in records)} boxes"
        for split, records in dataset.splits.items()
    )


def _repeated(dataset: Dataset) -> list[str]:
    """Says which pictures are there twice. In two splits, they make what is measured look better than it is."""
    real_folder = functools.cache(os.path.realpath)  # resolving takes a look at every folder on the way
    splits_of: dict[str, list[str]] = {}
    for split, records in dataset.splits.items():
        for image in (record.image for record in records):
            linked = image.is_symlink()
            real = os.path.realpath(image) if linked else os.path.join(real_folder(image.parent), image.name)
            splits_of.setdefault(real, []).append(split)
    repeated: dict[tuple[str, ...], list[str]] = {}
    for picture, splits in splits_of.items():
        if len(splits) > 1:
            repeated.setdefault(tuple(dict.fromkeys(splits)), []).append(picture)
    return [
        f"{len(pictures)} pictures are in {' and in '.join(splits)}, so that figures look better than they are; "
        f"the first is {pictures[0]}."
        if len(splits) > 1
        else f"{len(pictures)} pictures are in {splits[0]} more than once; the first is {pictures[0]}."
        for splits, pictures in repeated.items()
    ]
