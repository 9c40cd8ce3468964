"""The ways in which weights can be run: engines and precisions, decoder layers, queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from setdet.config import suggest
from setdet.errors import UsageError
from setdet.models.rtdetr import RTDETR
from setdet.weights.info import CheckpointInfo

Engine = Literal["torch", "pt2", "onnx", "openvino"]
_PRECISIONS = {
    "torch": ("fp32", "bf16", "fp16"),
    "pt2": ("fp32", "bf16"),
    "onnx": ("fp32", "fp16"),
    "openvino": ("fp32", "fp16", "bf16", "int8"),
}


@dataclass(frozen=True)
class Way:
    """One of them.

    Attributes:
        engine: what computes.
        precision: in what.
        decoder_layers, queries: fewer than the weights have; None: all.
    """

    engine: Engine
    precision: str
    decoder_layers: int | None = None
    queries: int | None = None

    @property
    def line(self) -> str:
        """What it shares with those of other decoder layers."""
        return f"{self.engine} {self.precision}" + (f", {self.queries} queries" if self.queries is not None else "")

    def __str__(self) -> str:
        if self.decoder_layers is None:
            return self.line
        return f"{self.line}, {self.decoder_layers} layer{'' if self.decoder_layers == 1 else 's'}"


def ways(runtimes: Sequence[str], *, decoder_layers: Sequence[int | None], queries: Sequence[int | None]) -> list[Way]:
    """Every combination.

    Args:
        runtimes: such as "torch", "openvino:int8"; without a precision it is float32.
        decoder_layers, queries: None: all.

    Raises:
        UsageError: there is no such engine, or it has no such precision.
    """
    found = []
    for runtime, count, layers in product(runtimes, queries, decoder_layers):
        name, _, precision = runtime.partition(":")
        for engine in get_args(Engine):
            if name == engine:
                found.append(Way(engine, precision or "fp32", decoder_layers=layers, queries=count))
                break
        else:
            raise UsageError(f"--runtimes {runtime}: there is no such engine.{suggest(name, get_args(Engine))}")
        if found[-1].precision not in _PRECISIONS[name]:
            raise UsageError(
                f"--runtimes {runtime}: {name} computes in {', '.join(_PRECISIONS[name])}, not in {precision}."
            )
    return found


def write(
    way: Way,
    info: CheckpointInfo,
    model: RTDETR,
    folder: Path,
    *,
    calibration: Path | None,
    say: Callable[[str], None],
) -> Path:
    """Exports weights for a way, if that isn't PyTorch's, without comparing them: that is `setdet export`'s to do.

    Returns:
        The file or folder.

    Raises:
        UsageError: int8 without pictures to calibrate on.
        MissingExtraError: an exporter or the runtime is not installed.
    """
    from setdet.export.config import ExportConfig
    from setdet.export.run import export

    out = folder / ("model" if way.engine == "openvino" else f"model.{way.engine}")
    settings: dict[str, Any] = {
        "format": way.engine,
        "precision": way.precision,
        "decoder_layers": way.decoder_layers,
        "queries": way.queries,
    }
    config = ExportConfig.from_dict(settings, source="setdet benchmark")
    if way.precision == "int8" and calibration is None:
        raise UsageError("--runtimes openvino:int8 needs --data: pictures to calibrate on.")
    export(
        info,
        model,
        config,
        out=out,
        evidence=None,
        calibration=calibration if way.precision == "int8" else None,
        say=say,
    )
    return out
