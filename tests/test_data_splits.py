"""Splits that are made keep every class's share."""

from pathlib import Path

import numpy as np
import pytest

from setdet.data.schema import Dataset, Record
from setdet.data.sources import hold_out, make_splits
from setdet.errors import DataError


def records(labels_of_each: list[list[int]]) -> tuple[Record, ...]:
    return tuple(
        Record(
            image=Path(f"{number:04}.png"),
            height=10,
            width=10,
            boxes_xyxy_px=np.tile(np.array([[1, 1, 5, 5]], dtype=np.float32), (len(labels), 1)),
            labels=np.array(labels, dtype=np.int64),
            crowd=np.zeros(len(labels), dtype=np.bool_),
        )
        for number, labels in enumerate(labels_of_each)
    )


def dataset(**splits: tuple[Record, ...]) -> Dataset:
    return Dataset(root=Path("set"), format="voc", class_names=("a", "b", "c"), splits=splits)


def test_every_class_keeps_its_share() -> None:
    everything = records([[0]] * 50 + [[1, 0]] * 20 + [[2, 0]] * 10 + [[]] * 20)
    kept, held = hold_out(everything, share=0.2, seed=3)
    assert sorted([*kept, *held], key=lambda record: record.image) == list(everything)
    of_class = {label: sum(label in record.labels for record in held) for label in (0, 1, 2)}
    assert len(held) == 20 and of_class == {0: 16, 1: 4, 2: 2}
    assert list(held) == sorted(held, key=lambda record: record.image)
    assert hold_out(everything, share=0.2, seed=3) == (kept, held)
    assert hold_out(everything, share=0.2, seed=4)[1] != held


def test_both_parts_get_a_picture_at_least() -> None:
    for share in (0.01, 0.99):
        kept, held = hold_out(records([[0], [0]]), share=share, seed=0)
        assert len(kept) == len(held) == 1


@pytest.mark.parametrize(("count", "share"), [(1, 0.2), (0, 0.2), (5, 0.0), (5, 1.0)])
def test_what_cannot_be_divided_is_refused(count: int, share: float) -> None:
    with pytest.raises(DataError, match="Cannot hold out"):
        hold_out(records([[0]] * count), share=share, seed=0)


def test_a_missing_validation_split_is_made_and_announced() -> None:
    made = make_splits(dataset(train=records([[0]] * 10)), val_share=0.3, seed=0)
    assert {split: len(part) for split, part in made.splits.items()} == {"train": 7, "val": 3}
    assert any("3 of 10 training pictures" in note and "seed 0" in note for note in made.notes)
    own = dataset(train=records([[0]] * 4), val=records([[1]]))
    assert make_splits(own) is own
    with pytest.raises(DataError, match="neither a training nor a validation split"):
        make_splits(dataset(test=records([[0]])))
