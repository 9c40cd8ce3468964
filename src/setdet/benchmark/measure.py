"""Everything that is measured of several detectors: time in turns, stages, a stream's rate, memory, accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from setdet.benchmark.timing import (
    Stages,
    Timing,
    file_to_boxes,
    machine,
    model_alone,
    pictures_per_second,
    resident_mib,
    stages_of,
    take_turns,
)
from setdet.predict import Predictor

STREAMED = 64  # pictures whose rate is measured, after the first batch


@dataclass(frozen=True)
class Candidate:
    """A detector, and one way of running it.

    Attributes:
        name: unlike all others'.
        line: what it shares with those that are drawn as one line with it: all but the number of decoder layers.
        open: opens it, for one picture at a time or for a stream of them.
    """

    name: str
    line: str
    open: Callable[[Literal["latency", "throughput"]], Predictor]


@dataclass(frozen=True)
class Measured:
    """What was measured of one candidate.

    Attributes:
        line: as the candidate's.
        alone: the network alone, in turns with all others and the peers.
        whole: from the first picture's file to boxes, in turns with all others.
        stages: where that time goes.
        pictures_per_second: of a stream of files.
        memory_mib: by how much the process grew when it was opened and used once; None where that isn't known.
        ap: mean over IoU 0.50 to 0.95, 0 to 1; None where it wasn't measured.
    """

    line: str
    alone: Timing
    whole: Timing
    stages: Stages
    pictures_per_second: float
    memory_mib: float | None
    ap: float | None


@dataclass(frozen=True)
class Comparison:
    """What was measured of all.

    Attributes:
        measured: by the candidates' names.
        peers: other people's models, alone, by name.
        settings: what the figures hold for.
    """

    measured: dict[str, Measured]
    peers: dict[str, Timing]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"machine": machine(), **asdict(self)}


def compare(
    candidates: Sequence[Candidate],
    pictures: Sequence[Path],
    *,
    rounds: int,
    peers: Mapping[str, Callable[[], object]],
    accuracy: Callable[[Predictor], float | None] | None,
    settings: dict[str, Any],
    say: Callable[[str], None],
) -> Comparison:
    """Measures all candidates; the first is what the others are compared with.

    Args:
        candidates: what to measure.
        pictures: files; the first is timed by itself, all of them as a stream.
        rounds: how often each is timed, besides two for warming up.
        peers: other people's models on one picture that is in memory, by name.
        accuracy: measures AP, 0 to 1; None: it is not measured.
        settings: what else the figures hold for.
        say: called with what goes on.

    Raises:
        ImageError: a picture cannot be read.
        UsageError: there are no candidates, or no rounds.
    """
    predictors, memory = {}, {}
    for one in candidates:
        before = resident_mib()
        predictors[one.name] = one.open("latency")
        predictors[one.name].predict(pictures[:1])
        after = resident_mib()
        memory[one.name] = None if before is None or after is None else max(0.0, after - before)
    say(f"{rounds} rounds of {len(candidates) + len(peers)} networks, then of whole ways from file to boxes")
    networks = {name: model_alone(one) for name, one in predictors.items()}
    alone = {one.name: one for one in take_turns({**networks, **peers}, rounds=rounds)}
    ways = {name: file_to_boxes(one, pictures[0]) for name, one in predictors.items()}
    whole = {one.name: one for one in take_turns(ways, rounds=rounds)}
    measured = {}
    for one in candidates:
        predictor = predictors[one.name]
        if accuracy is not None:
            say(f"AP of {one.name}")
        measured[one.name] = Measured(
            line=one.line,
            alone=alone[one.name],
            whole=whole[one.name],
            stages=stages_of(predictor, pictures[0], rounds=rounds),
            pictures_per_second=pictures_per_second(one.open("throughput"), pictures, count=STREAMED),
            memory_mib=memory[one.name],
            ap=None if accuracy is None else accuracy(predictor),
        )
    return Comparison(
        measured=measured,
        peers={name: alone[name] for name in peers},
        settings={**settings, "rounds": rounds, "batch": 1, "picture": pictures[0].name},
    )
