"""The parity gate: an export is finished when its own runtime has found with it what the model finds.

Both detect on the same pictures, alone and in batches (and, where the file allows, at another size). Of the model's
detections, those with a score of `CONFIDENT` and the `AT_LEAST` best of every picture are looked for among the file's,
and the other way round; the nearest of the same class is its partner. Compared are how many have one, how far apart
the boxes are and how far the scores; and AP, if there is a data set.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.errors import SetdetError, one_line
from setdet.runtime.base import Candidates, Runtime

CONFIDENT = 0.3
AT_LEAST = 5
_SAME_BOX = 0.5  # IoU from which two boxes may be the same one


@dataclass(frozen=True)
class Tolerance:
    """What is allowed between the model and its export, in float32 the former.

    Attributes:
        found: least share of the compared detections that have a partner, either way.
        box_px: largest distance of a corner from its partner's along an axis, in pixels of the network's input: of
            95 in 100 partners.
        score: largest difference of scores: of 95 in 100 partners.
        ap: largest loss of AP (0 to 1).
    """

    found: float
    box_px: float
    score: float
    ap: float


# Measured, then doubled or more; docs/export.md has the measurements.
TOLERANCES: dict[str, Tolerance] = {
    "fp32": Tolerance(found=1.0, box_px=0.05, score=0.001, ap=0.001),
    "fp16": Tolerance(found=0.98, box_px=0.5, score=0.015, ap=0.005),
    "bf16": Tolerance(found=0.95, box_px=4.0, score=0.08, ap=0.01),
    "int8": Tolerance(found=0.95, box_px=10.0, score=0.18, ap=0.02),
}
# Where the file resizes: its matrix products and OpenCV's fixed-point arithmetic differ by a grey level now and then.
PICTURES = Tolerance(found=0.95, box_px=3.0, score=0.04, ap=0.005)


@dataclass(frozen=True)
class Differences:
    """What one run of the comparison found; distances in pixels of the network's input.

    Attributes:
        name: what was run.
        compared: detections that were looked for, either way.
        confident: those of the model with a score of `CONFIDENT`.
        found: the share of them that has a partner; 0 where the file cannot be run.
        box_px, box_px_most, score, score_most: 95th percentile and maximum over the partners.
        failure: why the run counts as failed whatever its numbers; "" where it does not.
        detail: what a run has found that compares no detections.
    """

    name: str
    compared: int = 0
    confident: int = 0
    found: float = 0.0
    box_px: float = 0.0
    box_px_most: float = 0.0
    score: float = 0.0
    score_most: float = 0.0
    failure: str = ""
    detail: str = ""

    def __str__(self) -> str:
        """One line for people."""
        if self.detail:
            return f"{self.name}: {self.detail}"
        return (
            f"{self.name}: {self.found:.1%} of {self.compared} detections found again; 95% of the boxes within "
            f"{self.box_px:.2g} px (the farthest {self.box_px_most:.2g}), of the scores within {self.score:.2g} "
            f"(the farthest {self.score_most:.2g})"
        )

    def used(self, tolerance: Tolerance) -> float:
        """How much of the tolerance is used up by what uses most of it: 1 is just allowed."""
        if self.failure:
            return float("inf")
        lost = (1 - self.found) / (1 - tolerance.found) if tolerance.found < 1 else 0.0
        return max(lost, self.box_px / tolerance.box_px, self.score / tolerance.score)

    def complaints(self, tolerance: Tolerance) -> list[str]:
        """What is not within the tolerance, for people."""
        if self.failure:
            return [f"{self.name}: {self.failure}"]
        said = []
        if self.found < tolerance.found:
            said.append(f"{self.found:.1%} of {self.compared} detections have a partner, least {tolerance.found:.0%}")
        if self.box_px > tolerance.box_px:
            said.append(f"boxes differ by {self.box_px:.3g} px, most {tolerance.box_px:g}")
        if self.score > tolerance.score:
            said.append(f"scores differ by {self.score:.2g}, most {tolerance.score:g}")
        return [f"{self.name}: {'; '.join(said)}"] if said else []


@dataclass(frozen=True)
class Verdict:
    """Everything the gate measured, as it goes into the report.

    Attributes:
        runs: each with its tolerance.
        ap: AP of the model and of the file on the data set, None without one.
        complaints: what is not within the tolerances; none of them: passed.
    """

    runs: tuple[tuple[Differences, Tolerance], ...]
    ap: tuple[float, float] | None = None
    complaints: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether everything is within its tolerance."""
        return not self.complaints

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ap = None if self.ap is None else {"model": self.ap[0], "file": self.ap[1]}
        runs = [{**asdict(run), "tolerance": asdict(tolerance)} for run, tolerance in self.runs]
        return {"passed": self.passed, "complaints": list(self.complaints), "ap": ap, "runs": runs}


def verdict(
    runs: Sequence[tuple[Differences, Tolerance]], *, ap: tuple[float, float] | None = None, ap_tolerance: float = 0.0
) -> Verdict:
    """Puts the runs, and AP of (model, file), together."""
    complaints = [line for run, tolerance in runs for line in run.complaints(tolerance)]
    if ap is not None and ap[0] - ap[1] > ap_tolerance:
        complaints.append(f"AP falls from {ap[0]:.4f} to {ap[1]:.4f}, most {ap_tolerance:.3g}")
    return Verdict(runs=tuple(runs), ap=ap, complaints=tuple(complaints))


def compare_batches(
    model: Runtime, exported: Runtime, images: NDArray[np.uint8], *, name: str, batch_size: int
) -> Differences:
    """Runs both on pictures of the network's size (n, height, width, 3), in batches, the last of them smaller."""

    def found_by(runtime: Runtime) -> list[Candidates]:
        batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
        return [one for batch in batches for one in _split(runtime(batch), len(batch))]

    return _compare(name, lambda: found_by(model), lambda: found_by(exported), images.shape[1:3])


def compare_pictures(
    model: Callable[[NDArray[np.uint8]], Candidates],
    exported: Runtime,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    name: str,
    input_size: tuple[int, int],
) -> Differences:
    """Runs a file that takes pictures of any size, one by one, and the model behind setdet's own pre-processing.

    Args:
        model: takes one picture (height, width, 3) and gives a batch of one; boxes as shares of the picture.
        exported: takes a batch of one.
        pictures: uint8 (height, width, 3) RGB.
        name: of the run.
        input_size: (height, width) of the network's input, for differences in its pixels.
    """
    return _compare(
        name,
        lambda: [_split(model(picture), 1)[0] for picture in pictures],
        lambda: [_split(exported(picture[None]), 1)[0] for picture in pictures],
        input_size,
    )


def _compare(
    name: str,
    model: Callable[[], list[Candidates]],
    exported: Callable[[], list[Candidates]],
    size: tuple[int, int],
) -> Differences:
    expected = model()
    try:
        found = exported()
    except SetdetError:
        raise
    # Whatever an engine raises (its errors have no common base): that it cannot run the file is the finding.
    except Exception as error:
        return Differences(name=name, failure=f"the runtime fails ({one_line(error)})")
    if not all(np.isfinite(part).all() for one in found for part in one):
        return Differences(name=name, failure="numbers that are not finite: a precision with too small a range")
    boxes, scores, partners, compared, confident = [], [], 0, 0, 0
    for one, other in zip(expected, found, strict=True):
        confident += int((one[1] >= CONFIDENT).sum())
        for these, those in ((one, other), (other, one)):
            box, score, looked_for = _partners(these, those, size)
            boxes.append(box)
            scores.append(score)
            compared += looked_for
            partners += len(box)
    box, score = np.concatenate(boxes), np.concatenate(scores)
    return Differences(
        name=name,
        compared=compared,
        confident=confident,
        found=partners / compared if compared else 0.0,
        box_px=_percentile(box),
        box_px_most=float(box.max(initial=0)),
        score=_percentile(score),
        score_most=float(score.max(initial=0)),
    )


def _partners(
    these: Candidates, those: Candidates, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Box (pixels) and score differences of those of `these` that have a partner, and how many were looked for."""
    count = min(len(these[1]), max(AT_LEAST, int((these[1] >= CONFIDENT).sum())))
    boxes, scores, labels = these[0][:count].astype(np.float64), these[1][:count], these[2][:count]
    distance = np.abs(scores[:, None] - those[1])  # (count, k)
    overlap = _iou(boxes, those[0].astype(np.float64))
    # Several queries may stand on one object: the partner is the one with the most alike box and score.
    likeness = np.where((labels[:, None] == those[2]) & (overlap >= _SAME_BOX), overlap - distance, -np.inf)
    best = likeness.argmax(axis=1)
    rows = np.flatnonzero(np.isfinite(likeness[np.arange(count), best]))
    pixels = np.array([size[1], size[0]] * 2, np.float64)
    apart = (np.abs(boxes[rows] - those[0][best[rows]]) * pixels).max(axis=1, initial=0)
    return apart, distance[rows, best[rows]].astype(np.float64), count


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of every box of `a` with every one of `b`; boxes without area have 1 with themselves alone."""
    corners = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = corners.clip(0).prod(axis=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b[None] - overlap
    same = np.abs(a[:, None] - b[None]).max(axis=2) < 1e-6
    return np.where(union > 0, overlap / np.where(union > 0, union, 1), same)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, from everywhere in the sequence, the same ones each time."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _percentile(values: NDArray[np.float64]) -> float:
    return float(np.percentile(values, 95)) if len(values) else 0.0


def _split(candidates: Candidates, count: int) -> list[Candidates]:
    """A batch's candidates, picture by picture."""
    boxes, scores, labels = candidates
    if len(scores) != count:  # a graph whose batch was baked in may give another number than went in
        raise ValueError(f"{count} pictures went in, results of {len(scores)} came out")
    return [(boxes[index], scores[index], labels[index]) for index in range(count)]
