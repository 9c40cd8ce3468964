"""The page of a training run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from setdet.data.schema import Record
from setdet.errors import DataError
from setdet.predict import Predictor
from setdet.report.charts import Series, line_chart
from setdet.report.findings import Look
from setdet.report.page import write_page, write_values
from setdet.runtime.torch import TorchRuntime
from setdet.weights.catalog import resolve
from setdet.weights.files import load_model


def write_run_report(
    folder: Path, *, records: Sequence[Record], measured_on: str, look: Look, device: str = "auto"
) -> Path:
    """Writes `report.html` into a run folder: curves, classes, confusion matrix, worst pictures, and what is wrong.

    If there are records, `report.json` has what was measured on them; curves are those of `metrics.jsonl`.

    Args:
        folder: of a run; its best weights are measured.
        records: what to measure on, with the labels of the run's classes; empty: only curves are shown.
        measured_on: what to call `records`.
        look: measures on them, and says what there is to see.
        device: as for `TorchRuntime`.

    Returns:
        The page's path.

    Raises:
        DataError: the run's metrics.jsonl is missing or broken, or a picture cannot be read.
        WeightsError: the folder has no weights.
    """
    epochs = read_epochs(folder / "metrics.jsonl")
    info, model = load_model(resolve(folder))
    content: dict[str, Any] = dict.fromkeys(("figures", "classes", "matrix", "worst", "confidence"))
    content["sections"] = ()
    if records:
        runtime = TorchRuntime(model=model, device=device)
        predictor = Predictor(runtime=runtime, class_names=info.class_names, preprocessing=info.preprocessing)
        findings = look(predictor, records)
        measured = findings.measured
        write_values(folder / "report.json", {"measured_on": measured_on, **findings.values})
        content = {
            "figures": measured.figures(),
            "classes": measured.classes(),
            "matrix": measured.matrix(),
            "worst": findings.worst,
            "sections": findings.sections,
            "confidence": measured.confidence,
        }
    height, width = info.preprocessing.image_size
    history = info.history
    lead = (
        f"{info.model.name} at {height} × {width} pixels, {history.get('epochs', '?')} epochs over "
        f"{history.get('pictures', '?')} pictures in {history.get('minutes', 0):.1f} minutes"
    )
    lead += f"; measured on {len(records)} pictures ({measured_on})." if records else "; not measured on any picture."
    config = folder / "config.yaml"
    return write_page(
        folder / "report.html",
        "run.html",
        title=f"Training run {folder.resolve().name}",
        lead=lead,
        charts=curves(epochs),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        **content,
    )


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that are about whole epochs. A last line that a crash cut short is none.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    try:
        texts = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}), so there are no curves. Expected the folder of a training run."
        ) from None
    epochs = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text or b"{}")
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error}). Remove it.") from None
        if not isinstance(line, dict):
            raise DataError(f"{path}: line {number} is no JSON object. Remove it.")
        if line.get("kind") == "epoch":
            epochs.append(line)
    return epochs


def curves(epochs: Sequence[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """AP over epochs and over minutes, loss and learning rate over epochs: (caption, chart)."""
    measured = [(line, values) for line in epochs if (values := line.get("val") or line.get("selection"))]
    charts = []
    for along, caption in (("epoch", "Accuracy over epochs"), ("minutes", "Accuracy over minutes")):
        lines = [
            Series(name, [(line[along], _number(values[key])) for line, values in measured])
            for key, name in (("ap50", "AP50"), ("ap", "AP"))
        ]
        charts.append((caption, line_chart(lines, x_label=along, y_label="AP")))
    followed = [(line["epoch"], line["matching_instability"]) for line in epochs if "matching_instability" in line]
    if followed:
        chart = line_chart([Series("instability", followed)], x_label="epoch", y_label="share of objects", y_max=1.0)
        charts.append(("Objects matched to another place than an epoch before", chart))
    for key, name in (("loss", "loss"), ("learning_rate", "learning rate")):
        line_of = Series(name, [(line["epoch"], _number(line[key])) for line in epochs])
        charts.append((f"{name.capitalize()} over epochs", line_chart([line_of], x_label="epoch", y_label=name)))
    return charts


def _number(value: float | None) -> float:
    return math.nan if value is None else value
