"""`setdet val`: how good weights are on a data set."""

import json
import sys
from typing import Annotated, Any

import typer

from setdet.cli.console import show, show_table

_HEADLINES = {
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP, small (under 32² pixels)",
    "ap_medium": "AP, medium",
    "ap_large": "AP, large (over 96² pixels)",
    "ar100": "AR, 100 boxes a picture",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


def val(
    weights: Annotated[
        str, typer.Argument(help="A .safetensors file, a run folder, or a name such as rtdetr-n/surfaces.")
    ],
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.")],
    split: Annotated[str, typer.Option(help="Which pictures: train, val or test.")] = "val",
    confidence: Annotated[float | None, typer.Option(help="Also precision and recall at this score.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decoder_layers: Annotated[int | None, typer.Option(help="Run only the first so many.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Select only the best so many.  [default: all]")] = None,
) -> None:
    """Measure weights: COCO AP, precision, recall, class by class.

    Classes are matched by name.
    """
    from setdet.api import load

    detector = load(weights, device=device, decoder_layers=decoder_layers, queries=queries)
    measured = detector.evaluate(data, split=split, confidence=confidence, progress=sys.stderr.isatty())
    values = measured.to_dict()
    if as_json:
        typer.echo(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        _show(values, split=split)


def _show(values: dict[str, Any], *, split: str) -> None:
    show(f"{values['images']} pictures, {values['boxes']} boxes ({split})")
    show("")
    show_table(("", ""), [(label, _shown(values[key])) for key, label in _HEADLINES.items()])
    show("")
    if values["confidence"] is not None:
        show("Precision, recall and F1 are means over the classes at IoU 0.5,")
        show(f"at the score of their best mean F1, {values['confidence']:.3f}.")
    if "at_confidence" in values:
        at = values["at_confidence"]
        show(
            f"At the given score of {at['confidence']:.3f}: precision {_shown(at['precision'])}, "
            f"recall {_shown(at['recall'])}, F1 {_shown(at['f1'])}."
        )
    show("")
    columns = ("boxes", "ap", "ap50", "precision", "recall")
    show_table(
        ("class", "boxes", "AP", "AP50", "precision", "recall"),
        [(row["name"], *(_shown(row[column]) for column in columns)) for row in values["per_class"]],
    )


def _shown(value: float | None) -> str:
    """A count as it is, a share with three decimals, a dash where there is none."""
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
