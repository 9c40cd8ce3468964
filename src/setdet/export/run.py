"""From weights to a file that has passed the gate, or to no file."""

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from setdet.data.sources import make_splits, read_dataset
from setdet.errors import MissingExtraError, OutputError, UsageError
from setdet.export.config import OPSETS, ExportConfig, Sampling
from setdet.export.gate import Evidence, gather, judge, refusal, write_report
from setdet.export.verify import Verdict, spread
from setdet.folders import put_in_place, unused
from setdet.images import preprocess, read_image
from setdet.models.rtdetr import RTDETR
from setdet.runtime.exported import INPUTS, OPENVINO_FILE, ExportInfo
from setdet.thresholds import lowest_scores
from setdet.weights.info import CheckpointInfo

if TYPE_CHECKING:
    from setdet.export.graph import DetectionGraph

_REPORT = "parity.json"


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        path: the `.onnx` or `.pt2` file, or OpenVINO's folder.
        info: what it says of itself.
        report: the gate's report; None where the gate was left out.
        verdict: what the gate measured; None where it was left out.
        notes: what a user should know, one line each.
    """

    path: Path
    info: ExportInfo
    report: Path | None
    verdict: Verdict | None
    notes: tuple[str, ...]


def export(
    checkpoint: CheckpointInfo,
    model: RTDETR,
    config: ExportConfig,
    *,
    out: Path,
    evidence: Evidence | None,
    calibration: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Exports, runs the gate, and only then puts the file where it was asked for.

    Args:
        checkpoint: what is known of the weights.
        model: the weights; stays as it is.
        config: what to make.
        out: a new `.onnx` or `.pt2` file, or a new or empty folder for OpenVINO.
        evidence: what the gate looks at; None: no gate.
        calibration: the data set that int8 is calibrated on.
        say: called with what goes on.

    Raises:
        UsageError: the configuration contradicts itself, or does not fit the model.
        OutputError: `out` is in use, or has the wrong ending.
        ExportError: the file does not find what the model finds; nothing is left of it.
        DataError: a data set or picture is broken.
        MissingExtraError: an exporter or the runtime is not installed.
    """
    config.check(calibrated=calibration is not None)
    _check_out(out, config)
    _need_packages(config)
    from setdet.export.graph import DetectionGraph

    sampling = config.sampling_for(checkpoint.model)
    graph = DetectionGraph(
        model=model,
        preprocessing=checkpoint.preprocessing,
        sampling=sampling,
        takes_pictures=config.pictures,
        gives_detections=config.detections,
        decoder_layers=config.decoder_layers,
        queries=config.queries,
    )
    info = _describe(checkpoint.model_copy(update={"model": graph.config}), config, sampling)
    material = None if evidence is None else gather(evidence)
    examples = None if calibration is None else _calibration_pictures(calibration, config)
    say(f"writing the graph of {graph.config.name}: {config.format}, {config.precision}, {sampling} sampling")
    behind = out.resolve()  # "." or a link
    behind.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=behind.parent, prefix=f".{behind.name}."))
    try:
        file, info = _write(graph, info, config, partial, calibration=examples, say=say)
        verdict = None
        if material is not None and evidence is not None:
            say(f"comparing it with the model, on {len(material.pictures)} pictures ({material.origin})")
            verdict = judge(file, info, model, config, material, split=evidence.split)
            if not verdict.passed:
                raise refusal(verdict, config, sampling=sampling)
            write_report(partial / _REPORT, verdict, info, material)
        report = _put_in_place(partial, file, out, config)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(path=out, info=info, report=report, verdict=verdict, notes=_notes(out, info, config, verdict))


def _check_out(out: Path, config: ExportConfig) -> None:
    if config.format == "openvino":
        unused(out)
        return
    if out.suffix != f".{config.format}":
        kind = "an ONNX" if config.format == "onnx" else "a compiled"
        raise OutputError(f"{out}: {kind} file ends in .{config.format}; choose such a name with --out.")
    for path in (out, _report_beside(out)):
        if path.exists():
            raise OutputError(f"{path}: is there already. Choose another with --out, or remove it first.")


def _need_packages(config: ExportConfig) -> None:
    if config.format == "pt2":
        return
    needed = ["onnx", "onnxscript", "onnxruntime" if config.format == "onnx" else "openvino"]
    extras = dict.fromkeys(needed, config.format) | ({"nncf": "int8"} if config.precision == "int8" else {})
    for module, extra in extras.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module=module, extra=extra, purpose=f"Exporting to {config.format}")


def _describe(checkpoint: CheckpointInfo, config: ExportConfig, sampling: Sampling) -> ExportInfo:
    from setdet.export.graph import least_side

    if config.thresholds is not None:
        lowest_scores(config.thresholds, checkpoint.class_names)
    in_parts = config.precision == "fp16" and config.format == "onnx"
    return ExportInfo(
        checkpoint=checkpoint,
        format=config.format,
        precision=config.precision,
        sampling=sampling,
        input="pictures" if config.pictures else "tensor",
        output="detections" if config.detections else "predictions",
        dynamic_size=config.dynamic_size,
        least_side=least_side(checkpoint.model.decoder.queries),
        kept=("query_selection", "decoder") if in_parts else (),
        threshold=0.5 if config.thresholds is None else config.thresholds,
        setdet=importlib.metadata.version("setdet"),
    )


def _write(
    graph: "DetectionGraph",
    info: ExportInfo,
    config: ExportConfig,
    folder: Path,
    *,
    calibration: list[Path] | None,
    say: Callable[[str], None],
) -> tuple[Path, ExportInfo]:
    """Writes the format's files into `folder`; the one that is opened is returned, and what it says of itself."""
    if config.format == "pt2":
        from setdet.export.compiled import compile_ahead

        say("compiling it for this machine: a minute or more")
        compile_ahead(graph, folder / "model.pt2", info=info)
        return folder / "model.pt2", info
    from setdet.export.onnx import describe, to_half, to_onnx

    model = to_onnx(graph, info=info, opset=OPSETS[config.target])
    if config.format == "onnx":
        import onnx

        model = to_half(model) if config.precision == "fp16" else model
        describe(model, info)
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx", info
    from setdet.export.openvino import to_openvino, write

    converted = to_openvino(model)
    if calibration is not None:
        from setdet.export.int8 import to_int8

        say(f"calibrating on {len(calibration)} pictures")
        pictures = [preprocess(read_image(picture), info.checkpoint.preprocessing)[0] for picture in calibration]
        converted, kept = to_int8(converted, pictures, info=info, say=say)
        info = info.model_copy(update={"kept": kept})
    write(converted, folder, info=info)
    return folder / OPENVINO_FILE, info


def _calibration_pictures(path: Path, config: ExportConfig) -> list[Path]:
    """Of the training split, without what the gate would make its validation split of."""
    dataset = read_dataset(path)
    if "train" not in dataset.splits:
        raise UsageError(
            f"{path}: has no training split to calibrate on, only {', '.join(dataset.splits)}: pictures that the file "
            "is judged by. Name a data set with one in --calibrate."
        )
    records = make_splits(dataset).splits["train"]
    return [record.image for record in spread(records, config.calibration_pictures)]


def _put_in_place(partial: Path, file: Path, out: Path, config: ExportConfig) -> Path | None:
    """Moves what is finished to where it belongs; returns the report's place."""
    has_report = (partial / _REPORT).is_file()
    if config.format != "openvino":
        if has_report:
            os.replace(partial / _REPORT, _report_beside(out))
        os.replace(file, out)
        return _report_beside(out) if has_report else None
    put_in_place(partial, out)
    return out / _REPORT if has_report else None


def _report_beside(out: Path) -> Path:
    return out.with_suffix(f".{_REPORT}")


def _notes(out: Path, info: ExportInfo, config: ExportConfig, verdict: Verdict | None) -> tuple[str, ...]:
    notes = []
    if verdict is None:
        notes.append("not compared with the model (--no-verify)")
    elif not any(run.confident for run, _ in verdict.runs):
        notes.append("the model is sure of nothing on these pictures: compare on pictures of yours, with --pictures")
    if config.format == "pt2":
        notes.append("machine code for CPUs like this one and this PyTorch: compile it where it is to run")
    if config.target == "tensorrt":
        adapt = " (adapt the sizes to your pictures)" if info.dynamic_size or info.input == "pictures" else ""
        notes.append(f"not run here, for TensorRT 10{adapt}: {trtexec(out, info)}")
    return tuple(notes)


def trtexec(out: Path, info: ExportInfo) -> str:
    """The command that builds TensorRT's engine; the file's own types are obeyed, so what is float32 stays so."""
    least = own = most = info.checkpoint.preprocessing.image_size
    if info.input == "pictures":
        least, most = (32, 32), (4 * own[0], 4 * own[1])
    elif info.dynamic_size:
        least = (info.least_side, info.least_side)
        own = (max(own[0], info.least_side), max(own[1], info.least_side))
        most = (2 * own[0], 2 * own[1])
    files = (("onnx", out), ("saveEngine", out.with_suffix(".engine")))
    parts = ["trtexec", *(f"--{option}={shlex.quote(str(path))}" for option, path in files), "--stronglyTyped"]
    for bound, count, (height, width) in (("min", 1, least), ("opt", 1, own), ("max", 8, most)):
        shape = f"{count}x{height}x{width}x3" if info.input == "pictures" else f"{count}x3x{height}x{width}"
        parts.append(f"--{bound}Shapes={INPUTS[info.input]}:{shape}")
    return " ".join(parts)
