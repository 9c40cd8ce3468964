"""The few calls that most users need: load a detector and use it, or train one. PyTorch is imported when needed."""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from setdet.detections import Detections
from setdet.errors import ConfigError, DataError, ImageError, MissingExtraError, UnknownFormatError, UsageError
from setdet.folders import next_unused
from setdet.models.variants import model_config
from setdet.predict import Predictor
from setdet.runtime.base import Runtime
from setdet.runtime.exported import exported_format, open_exported
from setdet.thresholds import Threshold
from setdet.weights.catalog import resolve
from setdet.weights.files import CheckpointInfo, load_model, read_info

if TYPE_CHECKING:
    from setdet.data.schema import Dataset
    from setdet.evaluate import Evaluation
    from setdet.predict import Source
    from setdet.training.config import TrainConfig
    from setdet.training.run import TrainResult

_log = logging.getLogger("setdet")


def load(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    decoder_layers: int | None = None,
    queries: int | None = None,
    threads: int | None = None,
    hint: Literal["latency", "throughput"] = "latency",
    reduced_decoding: bool = False,
) -> "Detector":
    """Loads a trained detector.

    Args:
        source: a run folder, a `.safetensors` file of ours, a `.pth` file of the RT-DETR authors' code, a folder of
            `transformers`, "hf:owner/name[@revision]" on the Hugging Face Hub, or a name in the catalog such as
            "rtdetr-n/surfaces" or "rtdetr-r50/coco", the last two of which are downloaded on first use; or an exported
            detector: an `.onnx` file or OpenVINO's folder, which run without PyTorch, or a `.pt2` file, which is code
            that is run.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1"; what the engine of an exported file has.
        precision: arithmetic of the network; None: float32, or what an exported file was made for.
        decoder_layers: run only the first ones and take what the last of them says: faster, at some accuracy.
        queries: select only so many, the best ones: faster, where pictures hold few objects.
        threads: CPU threads of one prediction; None: as the engine likes. PyTorch's are those of the whole process.
        hint: "throughput" has OpenVINO work on several pictures of a batch at a time.
        reduced_decoding: decode large JPEG files smaller than they are; see `Predictor`.

    Raises:
        WeightsError: it is none of these (a model's name alone is not: it says nothing of the weights), broken, or
            holds code, which is never executed.
        UsageError: the device or precision is not there, the model has fewer decoder layers or queries, or an exported
            file is asked for what is fixed in it.
        MissingExtraError: PyTorch, or the exported file's engine, is not installed.
    """
    path = resolve(os.fspath(source))
    if exported_format(path) is not None:
        if decoder_layers is not None or queries is not None:
            raise UsageError(f"{path}: layers and queries are fixed in an exported file. Export again with other ones.")
        exported = open_exported(path, device=device, precision=precision, threads=threads, hint=hint)
        own = exported.info
        return _detector(exported, own.checkpoint, threshold=own.threshold, reduced_decoding=reduced_decoding)
    if hint != "latency":
        raise UsageError(f"{path}: hint={hint} is for detectors that were exported for OpenVINO.")
    read_info(path)  # a broken file is named at once, before PyTorch takes its seconds to be imported
    _need_torch("Running a checkpoint")
    from setdet.runtime.torch import TorchRuntime

    info, model = load_model(path)
    runtime = TorchRuntime(
        model=model,
        device=device,
        precision=precision or "fp32",
        decoder_layers=decoder_layers,
        queries=queries,
        threads=threads,
    )
    return _detector(runtime, info, reduced_decoding=reduced_decoding)


def _detector(
    runtime: Runtime, info: CheckpointInfo, *, threshold: Threshold = 0.5, reduced_decoding: bool
) -> "Detector":
    predictor = Predictor(
        runtime=runtime,
        class_names=info.class_names,
        preprocessing=info.preprocessing,
        threshold=threshold,
        reduced_decoding=reduced_decoding,
    )
    return Detector(predictor=predictor, info=info)


class Detector:
    """A trained detector that is ready to use, by several threads if need be; `load` makes one.

    Attributes:
        predictor: what runs it.
        info: what its checkpoint says: model, class names, pre-processing, history.
    """

    def __init__(self, *, predictor: Predictor, info: CheckpointInfo) -> None:
        self.predictor = predictor
        self.info = info

    def __repr__(self) -> str:
        return f"Detector({self.info.model.name}, {len(self.class_names)} classes: {', '.join(self.class_names)})"

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return self.info.class_names

    def predict(
        self, sources: "Iterable[Source]", *, threshold: Threshold | None = None, batch_size: int = 8
    ) -> list[Detections]:
        """Detects on a list of paths, arrays and PIL pictures; a list comes out. See `Predictor.predict`.

        Raises:
            UsageError: `sources` is a lone picture, or another argument is out of range.
            ImageError: a picture cannot be read; the message names it.
        """
        return self.predictor.predict(sources, threshold=threshold, batch_size=batch_size)

    def stream(
        self,
        sources: "Iterable[Source]",
        *,
        threshold: Threshold | None = None,
        batch_size: int = 8,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Detections]:
        """As `predict`, one result after the other in constant memory. See `Predictor.stream`.

        Raises:
            UsageError: as `predict`.
            ImageError: as `predict`, in the picture's turn; with `on_error`, that is called in its place.
        """
        return self.predictor.stream(sources, threshold=threshold, batch_size=batch_size, on_error=on_error)

    def evaluate(
        self,
        data: str | os.PathLike[str],
        *,
        split: str = "val",
        confidence: float | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> "Evaluation":
        """Measures on a data set; classes are matched by name.

        Args:
            data: a folder, a `data.yaml` or a COCO JSON.
            split: "train", "val" or "test". A missing "val" is made from "train", always the same, and announced.
            confidence: also report precision, recall and F1 at this score.
            batch_size: pictures that go through the network at once.
            progress: show a bar, on stderr.

        Raises:
            DataError: the data set is broken, or has classes that the detector doesn't know.
            UsageError: it has no such split.
        """
        from setdet.evaluate import evaluate

        if confidence is not None and not 0 <= confidence <= 1:
            raise UsageError(f"The confidence is {confidence}; expected a score from 0 to 1.")
        dataset = read_with_split(data, split)
        return evaluate(
            self.predictor,
            dataset.splits[split],
            class_names=dataset.class_names,
            confidence=confidence,
            batch_size=batch_size,
            progress=progress,
        )


def read_with_split(data: str | os.PathLike[str], split: str) -> "Dataset":
    """A data set that has the split, and announces what its reader decided.

    Args:
        data: a folder, a `data.yaml` or a COCO JSON.
        split: "train", "val" or "test". A missing "val" is made from "train", always the same, and announced.

    Raises:
        DataError: the data set is broken.
        UsageError: it has no such split.
    """
    from setdet.data.sources import make_splits, read_dataset

    dataset = read_dataset(Path(data))
    if split == "val" and "train" in dataset.splits:
        dataset = make_splits(dataset)
    _announce(dataset)
    if split not in dataset.splits:
        raise UsageError(f"{data}: has no split '{split}'. Choose one of: {', '.join(dataset.splits)}.")
    return dataset


def train(
    data: str | os.PathLike[str],
    *,
    model: str | None = None,
    out: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    init: str | os.PathLike[str] | None = None,
    backbone_weights: str | os.PathLike[str] | None = None,
    freeze: Sequence[str] | None = None,
    epochs: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None,
    workers: int | None = None,
    seed: int | None = None,
    select_on: float | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
) -> "TrainResult":
    """Trains a detector and writes its report; what is None is as the recipe, or the run to go on with, has it.

    Args:
        data: a folder, a `data.yaml` or a COCO JSON.
        model: its name; None: that of the weights in `init`, else the recipe's usual one.
        out: the run folder, new or empty; None: the first of runs/MODEL, runs/MODEL-2, … that is not there yet.
        recipe: "default" (as None), "paper-v1", "paper-v2" or "deim".
        init: weights to start from: whatever `load` takes.
        backbone_weights: weights for the backbone alone, such as a file of ImageNet weights, or another detector's.
        freeze: parts that stay as they are, such as "backbone" or "norms".
        epochs: passes over the training pictures.
        image_size: the network's input, (height, width) or one side, in pixels; multiples of 32.
        batch_size: pictures in a batch.
        device: "auto" is the GPU if there is one.
        precision: "auto" is bfloat16 where the hardware computes it.
        workers: processes that decode pictures.
        seed: decides everything random.
        select_on: share of the training pictures to choose the best epoch on.
        overrides: any other field, as "section.field=value".
        resume: go on with the run that is in `out`, with the configuration that is there.

    Raises:
        ConfigError: a value does not fit.
        OutputError: `out` is in use, or there is nothing to resume in it.
        DataError, WeightsError, TrainingError: see `setdet.training.run.train`.
        MissingExtraError: PyTorch is not installed.
    """
    _need_torch("Training")
    from setdet.data.sources import read_dataset
    from setdet.training.config import TrainConfig

    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    values = {
        "epochs": epochs,
        "image_size": size,
        "batch_size": batch_size,
        "device": device,
        "precision": precision,
        "workers": workers,
        "seed": seed,
        "select_on": select_on,
        "freeze": None if freeze is None else tuple(freeze),
    }
    given = {name: value for name, value in values.items() if value is not None}
    weights = None if init is None else os.fspath(init)
    backbone = None if backbone_weights is None else os.fspath(backbone_weights)
    if resume:
        base = _stored(out, recipe=recipe, model=model, init=weights, backbone_weights=backbone)
    else:
        base = _fresh(recipe or "default", model=model, init=weights, backbone_weights=backbone, image_size=size)
    config = TrainConfig.from_dict(base.to_dict() | given, source="train").override(list(overrides))
    folder = next_unused(Path("runs", config.model)) if out is None else Path(out)

    # Imported last: it takes seconds, and what is wrong with the call was said by now.
    from setdet.training.run import train as run_training
    from setdet.training.setup import check_folder, configured_model

    configured_model(config, num_classes=1)
    check_folder(folder, resume=resume)  # before the data is read, which takes its time
    try:
        dataset = read_dataset(Path(data))
    except UnknownFormatError:
        raise
    except DataError as error:
        hint = f"All that is wrong: setdet data check {quote(os.fspath(data))}"
        raise DataError(f"{error}\n{hint}") from None
    _announce(dataset)
    return run_training(dataset, config, out=folder, resume=resume)


def _fresh(
    recipe_name: str,
    *,
    model: str | None,
    init: str | None,
    backbone_weights: str | None,
    image_size: tuple[int, int] | None,
) -> "TrainConfig":
    """The recipe's configuration; weights to start from say which model they are."""
    from setdet.training.recipes import recipe

    if model is None and init is not None:
        model = read_info(resolve(init)).model.name
        if model.endswith("-custom"):
            raise ConfigError(f"{init}: is a model of a size that none here has, so training cannot start from it.")
    if model is not None:
        model_config(model)  # an unknown name is an error here, before anything is read
    return recipe(recipe_name, model=model, init=init, backbone_weights=backbone_weights, image_size=image_size)


def _stored(out: str | os.PathLike[str] | None, *, recipe: str | None, **named: str | None) -> "TrainConfig":
    """The configuration of the run in `out`."""
    from setdet.training.config import TrainConfig

    if out is None:
        raise UsageError("Resuming needs out (--out), the folder of the run to go on with.")
    if recipe is not None:
        raise UsageError("A resumed run goes on with its own configuration: leave out either resume or recipe.")
    path = Path(out) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{out}: there is no run to resume (no config.yaml). Leave out resume to start one.")
    given = {name: value for name, value in named.items() if value is not None}
    return TrainConfig.from_dict(TrainConfig.from_yaml(path).to_dict() | given, source="train")


def _announce(dataset: "Dataset") -> None:
    """What the reader decided or repaired goes to the log "setdet", which Python shows on stderr."""
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several processes: one of them speaks
        for note in dataset.notes:
            _log.warning(note)


def _need_torch(purpose: str) -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError(module="torch", extra="train", purpose=purpose)
