"""What verbs are given by name: weights, and a split of a data set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from setdet.cli.console import say
from setdet.errors import UsageError

if TYPE_CHECKING:
    from setdet.data.schema import Record
    from setdet.predict import Predictor


def open_predictor(weights: str, *, device: str) -> "Predictor":
    """The detector in a file, in a run folder, or of a name in the catalog.

    Raises:
        WeightsError: it is none of these, or is broken.
        UsageError: the device is not there.
    """
    from setdet.predict import Predictor
    from setdet.weights.catalog import resolve
    from setdet.weights.files import load_model, read_info

    path = resolve(weights)
    read_info(path)  # says what is wrong with a file before PyTorch takes its seconds to be imported
    from setdet.runtime.torch import TorchRuntime

    info, model = load_model(path)
    return Predictor(
        runtime=TorchRuntime(model=model, device=device),
        class_names=info.class_names,
        preprocessing=info.preprocessing,
    )


def open_split(data: str, split: str) -> "tuple[Sequence[Record], tuple[str, ...]]":
    """The records of a split, and the names of their classes; notes on how it was read are said.

    A missing val split is made from the training split, as training makes it.

    Raises:
        DataError: the data set is broken.
        UsageError: it has no such split.
    """
    from setdet.data.sources import make_splits, read_dataset

    dataset = read_dataset(data)
    if split == "val" and "train" in dataset.splits:
        dataset = make_splits(dataset)
    for note in dataset.notes:
        say(note)
    if split not in dataset.splits:
        raise UsageError(f"{data}: has no split '{split}'. Choose one of: {', '.join(dataset.splits)}.")
    return dataset.splits[split], dataset.class_names
