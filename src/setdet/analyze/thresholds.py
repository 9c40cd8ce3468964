"""For each class the lowest score to keep, chosen on pictures that nothing is reported on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from setdet.analyze.ledger import Ledger
from setdet.data.schema import Record
from setdet.errors import DataError
from setdet.evaluate import results
from setdet.metrics.curves import operating_point
from setdet.predict import Predictor


@dataclass(frozen=True)
class ChosenThresholds:
    """The scores at which each class's F1 is best.

    Attributes:
        thresholds: class name → score, of every class.
        f1: class name → F1 there, on the pictures it was chosen on; None for a class with too few boxes among them.
            Such a class, and one that is never found, has the score of the best mean F1.
        chosen_on: which pictures those are, in words.
        pictures: how many.
    """

    thresholds: dict[str, float]
    f1: dict[str, float | None]
    chosen_on: str
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """What a file of thresholds holds; `setdet.thresholds.read_thresholds` reads it."""
        return {
            "thresholds": self.thresholds,
            "f1_where_chosen": self.f1,
            "chosen_on": self.chosen_on,
            "pictures": self.pictures,
        }


def choose_thresholds(
    predictor: Predictor,
    records: Sequence[Record],
    *,
    chosen_on: str,
    least_boxes: int = 10,
    batch_size: int = 16,
    progress: bool = False,
) -> ChosenThresholds:
    """Looks for the score of best F1 at IoU 0.5, of each class by itself.

    Args:
        predictor: whose classes are those of the records' labels.
        records: pictures that no figure is reported on.
        chosen_on: what to call them.
        least_boxes: that a class must have for a score of its own.
        batch_size: pictures that go through the network at once.
        progress: show a bar, on stderr.

    Raises:
        DataError: there is no picture, or no box on any.
        ImageError: a picture cannot be read.
    """
    ledger = Ledger(predictor.class_names)
    for record, found in results(
        predictor, records, batch_size=batch_size, progress=progress, doing="choosing thresholds"
    ):
        ledger.add(record, found)
    entries = ledger.entries()
    curves = [entries.curve(label, all_scores=True) for label in range(len(predictor.class_names))]
    overall = operating_point(curves)
    if overall is None:
        raise DataError(
            f"There is no box on the {len(records)} pictures to choose thresholds on ({chosen_on}). "
            "Take a larger share."
        )
    thresholds, f1 = {}, {}
    boxes = Counter(int(label) for record in records for label in record.labels[~record.crowd])
    for label, curve in enumerate(curves):
        best = operating_point([curve]) if boxes[label] >= least_boxes else None
        chosen = overall if best is None or best.f1 == 0 else best  # where nothing is found, 0 would be as good
        thresholds[curve.name] = chosen.confidence
        f1[curve.name] = None if best is None else best.f1
    return ChosenThresholds(thresholds=thresholds, f1=f1, chosen_on=chosen_on, pictures=len(records))
