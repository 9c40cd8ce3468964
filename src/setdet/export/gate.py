"""What the parity gate looks at, runs and reports."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from setdet.data.schema import Dataset
from setdet.data.sources import make_splits, read_dataset
from setdet.data.surfaces import generate
from setdet.errors import ExportError, UsageError
from setdet.evaluate import evaluate
from setdet.export.config import ExportConfig, Sampling
from setdet.export.verify import (
    PICTURES,
    TOLERANCES,
    Differences,
    Tolerance,
    Verdict,
    compare_batches,
    compare_pictures,
    spread,
    verdict,
)
from setdet.images import Preprocessing, preprocess, read_image
from setdet.models.rtdetr import RTDETR
from setdet.predict import Predictor, expand_sources
from setdet.runtime.base import Candidates
from setdet.runtime.exported import ExportInfo, open_exported
from setdet.runtime.torch import TorchRuntime

_GENERATED = 12  # pictures: two of each kind of defect
_AT_MOST = 32  # of the pictures given: box and score differences are the same on more
_BATCH = 5  # neither the two pictures that the exporter has seen nor one
_SEED = 20_000  # of generated pictures
_WHOLE_PICTURES = "pictures as they are"
_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino", "nncf"), "pt2": ("torch",)}


@dataclass(frozen=True)
class Evidence:
    """What the gate looks at.

    Attributes:
        pictures: files, folders or globs; empty: those of `data`, else generated surfaces.
        data: a data set to compare AP on, None for none.
        split: of that data set.
    """

    pictures: tuple[str, ...] = ()
    data: Path | None = None
    split: str = "val"


@dataclass(frozen=True)
class Material:
    """The evidence, read.

    Attributes:
        pictures: uint8 (height, width, 3) RGB.
        origin: where they come from, for the report.
        dataset: with the split that AP is compared on.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    origin: str
    dataset: Dataset | None = None


def gather(evidence: Evidence) -> Material:
    """Reads pictures and data, before the minutes that an export takes.

    Raises:
        UsageError: no picture matches, or the data set has no such split.
        DataError: the data set or a picture is broken.
    """
    dataset = None
    if evidence.data is not None:
        dataset = read_dataset(evidence.data)
        if evidence.split == "val" and "train" in dataset.splits:
            dataset = make_splits(dataset)
        if evidence.split not in dataset.splits:
            raise UsageError(
                f"{evidence.data}: has no split '{evidence.split}'. Choose one of: {', '.join(dataset.splits)}."
            )
    if evidence.pictures:
        paths = expand_sources(evidence.pictures)
        origin = ", ".join(evidence.pictures)
    elif dataset is not None:
        paths = [record.image for record in dataset.splits[evidence.split]]
        origin = f"{evidence.data} ({evidence.split})"
    else:
        pictures = tuple(generate(index, seed=_SEED).image for index in range(_GENERATED))
        return Material(pictures=pictures, origin="generated surfaces")
    chosen = spread(paths, _AT_MOST)
    return Material(pictures=tuple(read_image(path) for path in chosen), origin=origin, dataset=dataset)


def judge(
    file: Path, info: ExportInfo, model: RTDETR, config: ExportConfig, material: Material, *, split: str
) -> Verdict:
    """Runs the file in its own runtime against the model.

    Args:
        file: the `.onnx`, `.xml` or `.pt2` file.
        info: what it says of itself.
        model: the weights that it was made of.
        config: how it was made.
        material: what to look at.
        split: of the data set in it.
    """
    source = TorchRuntime(model=model, decoder_layers=config.decoder_layers, queries=config.queries)
    preprocessing, tolerance = info.checkpoint.preprocessing, TOLERANCES[info.precision]
    as_run, as_written = open_exported(file, device="cpu"), open_exported(file, device="cpu", whole_batches=True)
    images = _inputs(material.pictures, preprocessing)
    runs = [
        (compare_batches(source, as_run, images, name="one picture at a time", batch_size=1), tolerance),
        (compare_batches(source, as_written, images, name=f"batches of {_BATCH}", batch_size=_BATCH), tolerance),
    ]
    if info.precision == "fp16":
        runs.append((half_range(model, config, images, kept=info.kept), tolerance))
    if info.dynamic_size:
        height, width = (max(side, info.least_side) for side in preprocessing.image_size)
        other = preprocessing.model_copy(update={"image_size": (height + 64, width + 32)})
        name = f"height {height + 64}, width {width + 32}"
        others = _inputs(material.pictures, other)
        runs.append((compare_batches(source, as_written, others, name=name, batch_size=_BATCH), tolerance))
    if info.input == "pictures":
        run = compare_pictures(
            lambda picture: _detect(source, picture, preprocessing),
            as_written,
            material.pictures,
            name=_WHOLE_PICTURES,
            input_size=preprocessing.image_size,
        )
        runs.append((run, _wider(info.precision)))
    ap, ap_tolerance = None, tolerance.ap
    if material.dataset is not None:
        predictors = (
            Predictor(runtime=runtime, class_names=info.checkpoint.class_names, preprocessing=preprocessing)
            for runtime in (source, as_run)
        )
        records, names = material.dataset.splits[split], material.dataset.class_names
        measured = [evaluate(predictor, records, class_names=names).ap or 0.0 for predictor in predictors]
        ap = measured[0], measured[1]
        ap_tolerance += 1 / max(1, sum(int((~record.crowd).sum()) for record in records))  # what one box may move
    return verdict(runs, ap=ap, ap_tolerance=ap_tolerance)


def half_range(model: RTDETR, config: ExportConfig, images: NDArray[np.uint8], *, kept: tuple[str, ...]) -> Differences:
    """Whether all parts but those that are `kept` in float32 stay within float16's range, in float32.

    CPUs compute half precision in float32 where they have no arithmetic for it, and then nothing overflows there; on
    the GPU that the file is for, it would.
    """
    from setdet.export.graph import DetectionGraph, largest_values

    graph = DetectionGraph(
        model=model,
        preprocessing=Preprocessing(image_size=images.shape[1:3]),
        sampling="grid",
        decoder_layers=config.decoder_layers,
        queries=config.queries,
    )
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    largest, layer = max(largest_values(graph.eval(), one[None], kept=kept) for one in pixels)
    limit = torch.finfo(torch.float16).max
    detail = f"{layer} reaches {largest:.3g}, and half precision ends at {limit:g}"
    return Differences(name="range", found=1.0, failure=detail if largest > limit else "", detail=detail)


def refusal(judged: Verdict, config: ExportConfig, *, sampling: Sampling) -> ExportError:
    """The error for an export that has not passed; `sampling` is the one that the file has."""
    lines = "\n".join(f"  {line}" for line in judged.complaints)
    if all(line.startswith(_WHOLE_PICTURES) for line in judged.complaints):
        advice = "Leave out --inside resize: the network itself is right"
    elif config.precision != "fp32":
        advice = f"Use a higher precision than {config.precision}"
        if config.precision == "int8":
            advice += ", or calibrate on pictures like those that the detector will see"
    elif config.sampling == "discrete":
        advice = "Discrete sampling is for models that were trained so: use --sampling grid or gather"
    elif sampling == "grid":
        advice = "Use --sampling gather if the runtime's GridSample is at fault"
    else:
        advice = "Another release of the runtime may do better"
    return ExportError(
        f"The exported file does not find what the model finds, so none was written:\n{lines}\n{advice}; "
        "--no-verify writes it nevertheless."
    )


def write_report(path: Path, judged: Verdict, info: ExportInfo, material: Material) -> None:
    """The gate's report as JSON."""
    packages = _PACKAGES[info.format]
    versions = {
        name: importlib.metadata.version(name) for name in packages if info.precision == "int8" or name != "nncf"
    }
    content = {
        "model": info.checkpoint.model.name,
        **info.model_dump(mode="json", include={"format", "precision", "sampling", "input", "output", "dynamic_size"}),
        "kept": list(info.kept),
        "versions": {"setdet": info.setdet, **versions},
        "pictures": {"from": material.origin, "count": len(material.pictures)},
        **judged.to_dict(),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _inputs(pictures: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    return np.stack([preprocess(picture, preprocessing)[0] for picture in pictures])


def _detect(source: TorchRuntime, picture: NDArray[np.uint8], preprocessing: Preprocessing) -> Candidates:
    """One picture of any size by way of setdet's own pre-processing; boxes as shares of the picture."""
    pixels, placement = preprocess(picture, preprocessing)
    boxes, scores, labels = source(pixels[None])
    height, width = picture.shape[:2]
    shares = placement.to_original(boxes[0]) / np.array([width, height, width, height], np.float32)
    return shares[None].astype(np.float32), scores, labels


def _wider(precision: str) -> Tolerance:
    """The tolerance where the file resizes, too: the wider of the two in everything."""
    own = TOLERANCES[precision]
    return Tolerance(
        found=min(own.found, PICTURES.found),
        box_px=max(own.box_px, PICTURES.box_px),
        score=max(own.score, PICTURES.score),
        ap=max(own.ap, PICTURES.ap),
    )
