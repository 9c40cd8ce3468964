"""What every measure takes: truth and detections that belong together."""

from collections.abc import Sequence

from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.errors import UsageError


def check_inputs(records: Sequence[Record], detections: Sequence[Detections], class_names: Sequence[str]) -> None:
    """Makes sure that each picture has its detections, and that both mean the same classes.

    Raises:
        UsageError: the lengths differ, a record has a label beyond the classes, or detections have other classes.
    """
    if len(records) != len(detections):
        raise UsageError(
            f"There are {len(records)} records and {len(detections)} detections; expected one `Detections` a record, "
            "in the same order (an empty one where nothing was found)."
        )
    check_labels(records, class_names)
    for record, found in zip(records, detections, strict=True):
        if found.class_names != tuple(class_names):
            raise UsageError(
                f"{record.image}: its detections are of the classes {', '.join(found.class_names)}; "
                f"expected {', '.join(class_names)}."
            )


def check_labels(records: Sequence[Record], class_names: Sequence[str]) -> None:
    """Makes sure that every label of the truth is an index into `class_names`.

    Raises:
        UsageError: one is not.
    """
    for record in records:
        if len(record.labels) and not (0 <= record.labels.min() and record.labels.max() < len(class_names)):
            raise UsageError(
                f"{record.image}: labels from {record.labels.min()} to {record.labels.max()}, but {len(class_names)} "
                f"classes ({', '.join(class_names)}). Match the data's classes to the detector's by name first."
            )
