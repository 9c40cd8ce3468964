"""`setdet val`: how good weights are on a data set."""

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from setdet.cli.console import say, show, show_table
from setdet.cli.engine import hint_named, precision_named
from setdet.errors import UsageError

if TYPE_CHECKING:
    from setdet.weights.catalog import Entry

# Published APs have one decimal, and another filter of resizing moves AP by a tenth.
_TOLERANCE = 0.2

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
        str,
        typer.Argument(
            help="A run folder, a checkpoint, a folder of transformers, hf:owner/name, an exported file or folder, or "
            "a name: `setdet models`."
        ),
    ],
    data: Annotated[str, typer.Argument(help="A folder, a data.yaml or a COCO JSON.")],
    split: Annotated[str, typer.Option(help="Which pictures: train, val or test.")] = "val",
    confidence: Annotated[float | None, typer.Option(help="Also precision and recall at this score.")] = None,
    expect: Annotated[
        bool, typer.Option("--expect", help="Compare with the published AP; the exit code says whether it holds.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    decoder_layers: Annotated[int | None, typer.Option(help="Run only the first so many.  [default: all]")] = None,
    queries: Annotated[int | None, typer.Option(help="Select only the best so many.  [default: all]")] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16.  [default: fp32, or what an exported file was made for]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of one prediction.")] = None,
    hint: Annotated[
        str, typer.Option(help="OpenVINO: latency, one picture at a time, or throughput, as many as there is room for.")
    ] = "latency",
    reduced_decoding: Annotated[
        bool, typer.Option("--reduced-decoding", help="Decode large JPEG files smaller than they are: faster.")
    ] = False,
) -> None:
    """Measure weights: COCO AP, precision, recall, class by class.

    Classes are matched by name.
    """
    from setdet.api import load

    published = _published(weights) if expect else None
    detector = load(
        weights,
        device=device,
        precision=precision_named(precision),
        decoder_layers=decoder_layers,
        queries=queries,
        threads=threads,
        hint=hint_named(hint),
        reduced_decoding=reduced_decoding,
    )
    measured = detector.evaluate(data, split=split, confidence=confidence, progress=sys.stderr.isatty())
    values = measured.to_dict()
    if as_json:
        typer.echo(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        _show(values, split=split)
    if published is not None:
        _compare(values["ap"], published)


def _published(weights: str) -> "Entry":
    from setdet.weights.catalog import CATALOG

    entry = CATALOG.get(weights)
    if entry is None or entry.coco_ap is None:
        known = ", ".join(name for name, entry in CATALOG.items() if entry.coco_ap is not None)
        raise UsageError(f"--expect: nothing is published of '{weights}'. Names with a published AP: {known}.")
    return entry


def _compare(ap: float | None, published: "Entry") -> None:
    """Says whether the measured AP is the published one.

    Raises:
        Exit: with code 1, where it is not.
    """
    assert published.coco_ap is not None  # `_published` gives no other
    measured = math.nan if ap is None else 100 * ap
    holds = abs(measured - published.coco_ap) <= _TOLERANCE
    verdict = "as published" if holds else "NOT as published"
    say(
        f"AP {measured:.2f}, published {published.coco_ap:.1f} on COCO val2017 ({published.source}): {verdict} "
        f"(within {_TOLERANCE} points)."
    )
    if not holds:
        raise typer.Exit(code=1)


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
