"""Eight bits where they do no harm: which parts of the network are left out is measured, not assumed."""

import contextlib
import gc
import io
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from setdet.errors import ExportError
from setdet.export.sampling import POSITIONS
from setdet.export.verify import TOLERANCES, compare_batches, spread
from setdet.runtime.exported import ExportedRuntime, ExportInfo
from setdet.runtime.openvino import OpenVINOEngine

_NETWORK = ("backbone", "encoder", "memory_proj", "query_selection", "decoder")
# Never in eight bits: little arithmetic, and what overlaps what decides between two queries.
_LEFT_OUT = r"decoder\.rivals"
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
_JUDGED = 16  # pictures that harm is measured on
_TRIED = 32  # pictures of a calibration that is only tried out
# Of what the gate allows; it looks at other pictures than those.
_ALLOWED = 0.5


def to_int8(
    model: ov.Model, pictures: Sequence[NDArray[np.uint8]], *, info: ExportInfo, say: Callable[[str], None]
) -> tuple[ov.Model, tuple[str, ...]]:
    """Calibrates on `pictures`, which are not looked at by the gate.

    If the whole network in eight bits strays too far from its float32 self, each part is tried alone, and the most
    harmful ones are left as they are: as few of them as it takes.

    Args:
        model: in float32.
        pictures: (height, width, 3) RGB of the network's size.
        info: of the export.
        say: called with what goes on.

    Returns:
        The quantised model and the parts that are not quantised, as the modules are called.

    Raises:
        ExportError: it strays too far whatever is left out.
    """
    inputs = [_as_input(picture, info) for picture in pictures]
    tried, judged = spread(inputs, _TRIED), np.stack(spread(pictures, _JUDGED))
    reference = _runtime(model, info)

    def harm(ignored: list[str]) -> float:
        runtime = _runtime(_quantise(model, tried, ignored), info)
        differences = compare_batches(reference, runtime, judged, name="int8", batch_size=len(judged))
        return differences.used(TOLERANCES["int8"])

    kept: tuple[str, ...] = ()
    if harm(_all_but(kept)) > _ALLOWED:
        kept = sensitive_parts(parts_of(model), alone=lambda part: harm(_only(part)), without=harm, say=say)
    return _quantise(model, inputs, _all_but(kept)), kept


def sensitive_parts(
    parts: Sequence[str],
    *,
    alone: Callable[[str], float],
    without: Callable[[list[str]], float],
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """The parts that cannot be quantised, the most harmful first.

    Args:
        parts: all of the network's.
        alone: the harm of a part when it alone is quantised, as a share of what the gate allows.
        without: the harm of the network when nothing is quantised that the patterns name.
        say: called with every part's harm.

    Raises:
        ExportError: it takes all of them.
    """
    harms: dict[str, float] = {}
    for part in parts:
        harms[part] = alone(part)
        say(f"{part} in eight bits: {harms[part]:.2f} of what is allowed")
    order = sorted(parts, key=lambda part: -harms[part])
    for count in range(1, len(order)):
        # The parts' errors have little to do with each other, so their squares add up.
        if math.hypot(*(harms[part] for part in order[count:])) > _ALLOWED:
            continue
        if without(_all_but(kept := tuple(order[:count]))) <= _ALLOWED:
            return kept
    raise ExportError(
        "No part of the network bears eight bits on these pictures. Calibrate on pictures that the detector is made "
        "for, or use --precision bf16."
    )


def parts_of(model: ov.Model) -> list[str]:
    """The parts that can be quantised by themselves: a stage, a fusion block, a decoder layer, a head."""
    names = (op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() in _WEIGHTED)
    paths = (name.partition("/")[0].split(".") for name in names if not re.match(_LEFT_OUT, name))
    return list(
        dict.fromkeys(
            ".".join(path[: 3 if len(path) > 2 and path[2].isdigit() else 2]) for path in paths if path[0] in _NETWORK
        )
    )


def _all_but(kept: Sequence[str]) -> list[str]:
    """Patterns of what stays as it is: whatever lies around the network, what is left out always, and `kept` of it."""
    return [*_only("|".join(_NETWORK)), *(rf"^{part}[./]" for part in kept)]


def _only(part: str) -> list[str]:
    """Patterns of all but a part of the network, of positions everywhere, and of what is left out always."""
    return [rf"^(?!({part})[./])", rf".*{re.escape(POSITIONS)}", rf"^{_LEFT_OUT}[./]"]


def _quantise(model: ov.Model, inputs: Sequence[NDArray[Any]], ignored: list[str]) -> ov.Model:
    # NNCF reports its use to its makers, unless it believes that it is being tested.
    os.environ.setdefault("NNCF_CI", "1")
    with _quiet():
        import nncf

        nncf.set_log_level(logging.ERROR)
        quantised = nncf.quantize(
            model.clone(),
            nncf.Dataset(list(inputs)),
            preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, asymmetric activations: SiLU is lopsided
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(patterns=[f"{pattern}.*" for pattern in ignored], validate=False),
        )
    gc.collect()  # NNCF's cores end in the thread that they were made in; see `openvino_core`
    return quantised


def _runtime(model: ov.Model, info: ExportInfo) -> ExportedRuntime:
    """What is not quantised, in float32: the harm is that of eight bits alone."""
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    engine = OpenVINOEngine(model.clone(), device="CPU", config=config, whole_batches=False)
    return ExportedRuntime(engine=engine, info=info)


def _as_input(picture: NDArray[np.uint8], info: ExportInfo) -> NDArray[Any]:
    """A picture of the network's size (height, width, 3) as the graph's input, a batch of one."""
    if info.input == "pictures":
        return picture[None]
    return np.ascontiguousarray(picture.transpose(2, 0, 1)[None], np.float32) / np.float32(255)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's two bars a calibration: there may be dozens, and the standard output is for results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
