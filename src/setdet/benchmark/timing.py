"""Timing side by side: all take turns, so that what disturbs one disturbs all. No torch."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.errors import UsageError
from setdet.images import preprocess, read_image, read_reduced
from setdet.predict import Predictor
from setdet.runtime.exported import ExportedRuntime

Clock = Callable[[], float]
_WARM_UP = 2  # rounds that are not counted
_PACKAGES = ("setdet", "torch", "onnxruntime", "openvino", "transformers", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Timing:
    """How long one candidate took, over all counted rounds.

    Attributes:
        name: of the candidate.
        median_ms, p95_ms: milliseconds a round: the middle one, and the one that 95 in 100 don't exceed.
        ratio: the median over the rounds of its time through that of the first candidate in the same round.
        rounds: how many were counted.
    """

    name: str
    median_ms: float
    p95_ms: float
    ratio: float
    rounds: int


def take_turns(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, clock: Clock = time.perf_counter
) -> list[Timing]:
    """Runs every candidate in every round, forwards and backwards in turn, and sums up.

    In its turn each runs twice and the second time counts, as it would run by itself: the first one brings its weights
    into the caches and lets the threads of the one before come to rest.

    Args:
        candidates: by name; the first is what the others are compared with.
        rounds: how many count, after two that don't.
        clock: in seconds.

    Raises:
        UsageError: there is nothing to time.
    """
    if not candidates or rounds < 1:
        raise UsageError("There is nothing to time: give at least one candidate and one round.")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + _WARM_UP):
        for name in list(candidates)[:: 1 if number % 2 else -1]:
            candidates[name]()
            start = clock()
            candidates[name]()
            if number >= _WARM_UP:
                seconds[name].append(clock() - start)
    first = next(iter(seconds.values()))
    return [
        Timing(
            name=name,
            median_ms=1000 * statistics.median(times),
            p95_ms=1000 * float(np.percentile(times, 95)),
            ratio=statistics.median(own / max(other, 1e-9) for own, other in zip(times, first, strict=True)),
            rounds=rounds,
        )
        for name, times in seconds.items()
    ]


def model_alone(predictor: Predictor) -> Callable[[], object]:
    """The engine on one picture of the network's size, already in memory and in the format that the engine takes."""
    height, width = predictor.preprocessing.image_size
    picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    runtime = predictor.runtime
    if not isinstance(runtime, ExportedRuntime):
        return lambda: runtime(picture)
    values = runtime.to_input(picture)
    return lambda: runtime.engine(values)


def file_to_boxes(predictor: Predictor, picture: Path) -> Callable[[], object]:
    """Everything from a picture's file to boxes in its pixels, one picture at a time."""
    return lambda: predictor.predict([picture], batch_size=1)


@dataclass(frozen=True)
class Stages:
    """Median milliseconds of what happens between a file and its boxes.

    Attributes:
        decode: the file to pixels.
        prepare: pixels to the network's input size.
        network: those to candidates, best first.
        whole: from the file to boxes in the picture's pixels, and all of it.
    """

    decode: float
    prepare: float
    network: float
    whole: float


def stages_of(predictor: Predictor, picture: Path, *, rounds: int, clock: Clock = time.perf_counter) -> Stages:
    """Times each stage by itself, in turns.

    Raises:
        ImageError: the picture cannot be read.
    """

    def decode() -> tuple[NDArray[np.uint8], tuple[int, int]]:
        if predictor.reduced_decoding:
            return read_reduced(picture, *predictor.preprocessing.image_size)
        pixels = read_image(picture)
        return pixels, (pixels.shape[0], pixels.shape[1])

    pixels, size = decode()
    placed, _ = preprocess(pixels, predictor.preprocessing, original_size=size)
    timed = take_turns(
        {
            "decode": decode,
            "prepare": lambda: preprocess(pixels, predictor.preprocessing, original_size=size),
            "network": lambda: predictor.runtime(placed[None]),
            "whole": file_to_boxes(predictor, picture),
        },
        rounds=rounds,
        clock=clock,
    )
    return Stages(**{one.name: one.median_ms for one in timed})


def pictures_per_second(
    predictor: Predictor, pictures: Sequence[Path], *, count: int, batch_size: int = 8, clock: Clock = time.perf_counter
) -> float:
    """The rate of a stream of files, over and over: the next ones are decoded while a batch runs.

    Raises:
        ImageError: a picture cannot be read.
    """
    stream = predictor.stream((pictures[index % len(pictures)] for index in range(count)), batch_size=batch_size)
    for _ in range(min(batch_size, count)):  # the first batch starts threads and fills buffers
        next(stream)
    start, rest = clock(), 0
    for _ in stream:
        rest += 1
    return rest / max(clock() - start, 1e-9)


def machine() -> dict[str, Any]:
    """What the figures hold for: processor, cores, versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "system": platform.platform(), "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def resident_mib() -> float | None:
    """The memory of this process, MiB; None where the system doesn't say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
