"""Training as a whole, on a handful of tiny pictures: the run folder, resuming, interrupting, failing."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import setdet.training.run as run_module
import setdet.training.session as session_module
from setdet.data.loader import Batch, TrainingLoader
from setdet.data.schema import Dataset, Record
from setdet.errors import ConfigError, DataError, OutputError, TrainingError, WeightsError
from setdet.models.rtdetr import RTDETR
from setdet.models.variants import MODELS, DecoderConfig, EncoderConfig, HGNetStage, HGNetV2Config
from setdet.runtime.torch import TorchRuntime
from setdet.training.config import TrainConfig
from setdet.training.run import train
from setdet.training.session import Session
from setdet.training.setup import STATE, choose_pictures
from setdet.weights.files import load_model, read_info

CLASS_NAMES = ("bright", "dark")

# rtdetr-n, several times narrower: what these tests ask of a model does not depend on its size.
TINY = MODELS["rtdetr-n"].model_copy(
    update={
        "name": "tiny",
        "backbone": HGNetV2Config(
            stem=(8, 8),
            stages=tuple(
                HGNetStage(
                    channels_in=channels_in,
                    channels_mid=8,
                    channels_out=channels_out,
                    blocks=1,
                    downsample=index > 0,
                    light=index > 1,
                    kernel=3,
                    layers=2,
                )
                for index, (channels_in, channels_out) in enumerate([(8, 16), (16, 16), (16, 32), (32, 32)])
            ),
        ),
        "encoder": EncoderConfig(width=32, feedforward=64, heads=2, expansion=0.5, fusion_blocks=1),
        "decoder": DecoderConfig(width=32, feedforward=64, heads=2, layers=2),
    }
)


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", TINY)


def make_dataset(folder: Path, *, train_count: int = 6, val_count: int = 2, boxes: bool = True) -> Dataset:
    """Grey pictures of 64 pixels with one bright or dark rectangle each."""
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", train_count), ("val", val_count)):
        records = []
        for index in range(count):
            label = index % 2
            image = rng.integers(100, 150, (64, 64, 3), dtype=np.uint8)
            left, top = rng.integers(4, 28, 2)
            image[top : top + 30, left : left + 24] = 255 * (1 - label)
            path = folder / f"{split}-{index}.png"
            cv2.imwrite(str(path), image)
            number = 1 if boxes else 0
            records.append(
                Record(
                    image=path,
                    height=64,
                    width=64,
                    boxes_xyxy_px=np.array([[left, top, left + 24, top + 30]], dtype=np.float32)[:number],
                    labels=np.array([label], dtype=np.int64)[:number],
                    crowd=np.zeros(number, dtype=np.bool_),
                )
            )
        if records:
            splits[split] = tuple(records)
    return Dataset(root=folder, format="voc", class_names=CLASS_NAMES, splits=splits)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    folder.mkdir()
    return make_dataset(folder)


def tiny(**changes: object) -> TrainConfig:
    """Two epochs of three steps."""
    values = {
        "model": "tiny",
        "queries": 8,
        "denoising_queries": 4,
        "epochs": 2,
        "image_size": [64, 64],
        "batch_size": 2,
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "evaluate_every": 0,
        "log_every_steps": 2,
    }
    return TrainConfig.from_dict({**values, **changes})


def lines(out: Path, kind: str) -> list[dict[str, object]]:
    parsed = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in parsed if line["kind"] == kind]


def assert_same_state(first: Path, second: Path) -> None:
    """Weights, average, optimiser and losses of two run folders agree to the bit."""
    a, b = (torch.load(folder / STATE, weights_only=True) for folder in (first, second))
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for name in a[part]:
            assert torch.equal(a[part][name], b[part][name]), f"{part}: {name}"
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    for index, slots in a["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(value, b["optimizer"]["state"][index][name]), f"optimizer: {index} {name}"
    assert {**a["progress"], "seconds": 0} == {**b["progress"], "seconds": 0}
    first_lines, second_lines = (
        [(line["epoch"], line["step"], line["loss"], line["terms"]) for line in lines(folder, "epoch")]
        for folder in (first, second)
    )
    assert first_lines == second_lines


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Sends this process a Ctrl-C once `steps` optimiser steps are taken."""
    original, taken = run_module.optimizer_step, [0]

    def counted(**arguments: object) -> torch.Tensor:
        norm = original(**arguments)  # type: ignore[arg-type]
        taken[0] += 1
        if taken[0] == steps:
            for process in (os.getpid(), *(worker.pid for worker in multiprocessing.active_children())):
                os.kill(process, signal.SIGINT)  # as a terminal does, to all of them
        return norm

    monkeypatch.setattr(run_module, "optimizer_step", counted)


def test_run_folder_has_weights_config_log_and_state(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    before = torch.random.get_rng_state()
    result = train(dataset, tiny(evaluate_every=2, precision="bf16"), out=out)

    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random state must be left alone"
    assert (result.epochs, result.steps, result.interrupted, result.evaluated_on) == (2, 6, False, "val")
    assert 0 <= result.metrics["ap"] <= 1
    assert yaml.safe_load((out / "config.yaml").read_text())["queries"] == 8
    assert [line["step"] for line in lines(out, "step")] == [2, 4, 6]
    first, last = lines(out, "epoch")
    assert "val" not in first and last["val"] == result.metrics
    assert list((out / "tensorboard").iterdir())

    info, model = load_model(out / "best.safetensors")
    assert info.class_names == CLASS_NAMES
    assert info.preprocessing.image_size == (64, 64)
    assert info.history["epochs"] == 2 and info.history["config"]["seed"] == 0
    assert model.config.decoder.queries == 8
    state = torch.load(out / STATE, weights_only=True)
    assert all(torch.equal(value, state["ema"][name]) for name, value in model.state_dict().items())
    assert (out / "best.safetensors").read_bytes() == (out / "last.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("steps", "workers", "precision", "optimizer"),
    [(1, 0, "fp32", "adamw"), (3, 0, "bf16", "muon"), (4, 1, "bf16", "adamw")],
)
def test_interrupted_and_resumed_run_is_bit_identical(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    workers: int,
    precision: str,
    optimizer: str,
) -> None:
    config = tiny(precision=precision, optimizer=optimizer)
    train(dataset, config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        stopped = train(dataset, config.model_copy(update={"workers": workers}), out=tmp_path / "parts")
    assert stopped.interrupted and stopped.steps == steps
    torch.rand(7)  # whatever else the process draws must not matter
    finished = train(dataset, config, out=tmp_path / "parts", resume=True)
    assert not finished.interrupted and finished.steps == 6
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_stop_wanted_during_an_evaluation_is_heeded_after_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Session.finish_epoch

    def interrupted(self: Session) -> None:
        if self.progress.epoch == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "finish_epoch", interrupted)
        stopped = train(dataset, tiny(), out=tmp_path / "parts")
    assert (stopped.epochs, stopped.steps, stopped.interrupted) == (1, 3, True)
    train(dataset, tiny(), out=tmp_path / "parts", resume=True)
    train(dataset, tiny(), out=tmp_path / "whole")
    assert_same_state(tmp_path / "whole", tmp_path / "parts")


def test_killed_run_resumes_from_its_last_state_and_repeats_the_rest(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(checkpoint_every_steps=2, accumulate=2, epochs=3)  # steps of 2 batches and 1, twice an epoch
    train(dataset, config, out=tmp_path / "whole")

    original, taken = run_module.optimizer_step, [0]

    def dying(**arguments: object) -> torch.Tensor:
        norm = original(**arguments)  # type: ignore[arg-type]
        taken[0] += 1
        if taken[0] == 5:
            raise MemoryError("killed")
        return norm

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "optimizer_step", dying)
        with pytest.raises(MemoryError):
            train(dataset, config, out=tmp_path / "parts")
    train(dataset, config, out=tmp_path / "parts", resume=True)
    assert_same_state(tmp_path / "whole", tmp_path / "parts")
    assert [line["step"] for line in lines(tmp_path / "parts", "step")] == [2, 4, 6]


def test_a_gpu_without_room_is_told_with_what_to_do(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(batch: Batch, **_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.setattr(run_module, "backward", full)
    with pytest.raises(TrainingError, match=r"memory is full \(CUDA out.*GiB\)\. .*batch_size=2, accumulate=2"):
        train(dataset, tiny(epochs=1, batch_size=4), out=tmp_path / "run")


def test_accumulated_batches_count_as_one_step(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, batches = run_module.backward, []

    def seen(batch: Batch, **arguments: Any) -> dict[str, torch.Tensor]:
        batches.append((arguments["share"], arguments["is_last"]))
        return original(batch, **arguments)

    monkeypatch.setattr(run_module, "backward", seen)
    result = train(dataset, tiny(accumulate=2, epochs=1), out=tmp_path / "run")
    assert result.steps == 2
    assert batches == [(0.5, False), (0.5, True), (1.0, True)], "three batches: two, then one"


def test_rates_optimiser_and_augmentation_are_the_configured_ones(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, augmented = session_module.training_loader, {}

    def seen(records: tuple[Record, ...], **arguments: Any) -> TrainingLoader:
        augment = arguments["augment"]
        augmented[arguments["epoch"]] = (augment.photometric, augment.mosaic)
        return original(records, **arguments)

    monkeypatch.setattr(session_module, "training_loader", seen)
    config = tiny(
        epochs=3,
        plain_epochs=1,
        mix_epochs=1,
        augment={"mosaic": 0.3},
        optimizer="muon",
        learning_rate=1e-3,
        schedule="flat-cosine",
        final_rate=0.5,
        warmup="quadratic",
        warmup_steps=2,
        log_every_steps=1,
    )
    train(dataset, config, out=tmp_path / "run")
    rates = [1000 * line["learning_rate"] for line in lines(tmp_path / "run", "step")]  # type: ignore[operator]
    assert rates == pytest.approx([0.25, 1, 1, 1, 1, 0.75, 0.5, 0.5, 0.5])
    assert augmented == {0: (0.5, 0.3), 1: (0.5, 0), 2: (0, 0)}
    groups = torch.load(tmp_path / "run" / STATE, weights_only=True)["optimizer"]["param_groups"]
    assert {group["matrices"] for group in groups} == {0, 1, 3}


def test_the_averaged_weights_are_measured_every_so_often_and_at_the_end(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[RTDETR] = []

    def runtime(*, model: RTDETR, **settings: Any) -> TorchRuntime:
        measured.append(model)
        return TorchRuntime(model=model, **settings)

    monkeypatch.setattr(session_module, "TorchRuntime", runtime)
    train(dataset, tiny(epochs=3, evaluate_every=2), out=tmp_path / "run")
    assert ["val" in line for line in lines(tmp_path / "run", "epoch")] == [False, True, True]
    state, last = torch.load(tmp_path / "run" / STATE, weights_only=True), measured[-1].state_dict()
    assert all(torch.equal(value, last[name]) for name, value in state["ema"].items())
    assert any(not torch.equal(value, last[name]) for name, value in state["model"].items())


def test_a_folder_that_another_run_has_taken_meanwhile_is_left_to_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, prepare = tmp_path / "run/config.yaml", session_module.build_parts

    def overtaken(config: TrainConfig, **arguments: Any) -> Any:
        theirs.parent.mkdir()
        theirs.write_text("theirs")
        return prepare(config, **arguments)

    monkeypatch.setattr(session_module, "build_parts", overtaken)
    with pytest.raises(OutputError, match="another run has begun in this folder"):
        train(dataset, tiny(epochs=1), out=tmp_path / "run")
    assert theirs.read_text() == "theirs" and list(theirs.parent.iterdir()) == [theirs]


def test_resuming_a_finished_run_changes_nothing(dataset: Dataset, tmp_path: Path) -> None:
    first = train(dataset, tiny(epochs=1), out=tmp_path / "run")
    weights = (tmp_path / "run" / "last.safetensors").read_bytes()
    again = train(dataset, tiny(epochs=1), out=tmp_path / "run", resume=True)
    assert (again.steps, again.epochs) == (first.steps, first.epochs)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == weights


def test_best_epoch_is_chosen_on_a_part_of_the_training_split(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[Path]] = []

    class Evaluation:
        def to_dict(self) -> dict[str, float]:
            return {"ap": [0.2, 0.5, 0.3][len(seen) - 1], "ap50": 0.6}

    def fake(predictor: object, records: tuple[Record, ...], **_: object) -> Evaluation:
        seen.append({record.image for record in records})
        return Evaluation()

    monkeypatch.setattr(session_module, "evaluate", fake)
    result = train(dataset, tiny(epochs=3, select_on=0.34, evaluate_every=1), out=tmp_path / "run")
    assert result.best_epoch == 2 and result.evaluated_on == "selection"
    assert result.metrics["ap"] == 0.5, "the figures are those of the weights that are reported"
    assert read_info(tmp_path / "run" / "best.safetensors").history["epochs"] == 2
    assert read_info(tmp_path / "run" / "last.safetensors").history["epochs"] == 3
    assert seen[0] and seen[0] < {record.image for record in dataset.splits["train"]}


def test_a_run_without_patience_left_ends_early_and_is_complete(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = iter([0.2, 0.5, 0.3, 0.4, 0.9])

    class Evaluation:
        def to_dict(self) -> dict[str, float]:
            return {"ap": next(curve), "ap50": 0.6}

    monkeypatch.setattr(session_module, "evaluate", lambda *_, **__: Evaluation())
    config = tiny(epochs=9, select_on=0.34, evaluate_every=1, patience=2)
    result = train(dataset, config, out=tmp_path / "run")
    assert (result.epochs, result.best_epoch, result.interrupted) == (4, 2, False)
    assert result.metrics["ap"] == 0.5
    assert (tmp_path / "run" / "report.html").is_file()
    capsys.readouterr()
    assert train(dataset, config, out=tmp_path / "run", resume=True).epochs == 4
    assert "nothing left to train: the run ended after epoch 4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'patience' needs 'select_on'"):
        tiny(patience=2)
    with pytest.raises(ConfigError, match="^[^{]*'patience' of 3 would end the run before a second evaluation"):
        tiny(select_on=0.34, evaluate_every=5, patience=3)


def test_val_split_is_made_where_there_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    dataset = make_dataset(tmp_path / "data", train_count=10, val_count=0)
    result = train(dataset, tiny(epochs=1, evaluate_every=1), out=tmp_path / "run")
    assert result.metrics
    assert "val" in capfd.readouterr().err


def test_val_pictures_without_boxes_have_no_ap(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    empty = make_dataset(tmp_path / "empty", boxes=False)
    mixed = replace(dataset, splits={"train": dataset.splits["train"], "val": empty.splits["val"]})
    result = train(mixed, tiny(epochs=1, evaluate_every=1), out=tmp_path / "run")
    assert result.metrics["ap"] is None
    assert "AP undefined (no boxes)" in capfd.readouterr().err


def test_fewer_pictures_than_a_batch(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"6 pictures to train on, .* one batch of 16.*--batch-size\) 6 or less"):
        train(dataset, tiny(batch_size=16), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_pictures_and_no_boxes_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    empty = Dataset(root=tmp_path / "data", format="voc", class_names=CLASS_NAMES, splits={})
    with pytest.raises(TrainingError, match=r"no pictures to train on.*found none"):
        train(empty, tiny(), out=tmp_path / "run")
    with pytest.raises(TrainingError, match="none of the 6 training pictures has a box"):
        train(make_dataset(tmp_path / "data", boxes=False), tiny(), out=tmp_path / "run")
    crowds = make_dataset(tmp_path / "data")
    crowds.splits["train"] = tuple(replace(record, crowd=~record.crowd) for record in crowds.splits["train"])
    with pytest.raises(TrainingError, match="none of the 6 training pictures has a box"):
        train(crowds, tiny(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing may be half-written"


def test_output_folder_in_use(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with pytest.raises(OutputError, match="no run to resume"):
        train(dataset, tiny(), out=out, resume=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="in use"):
        train(dataset, tiny(), out=out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match="is a file"):
        train(dataset, tiny(), out=out / "notes.txt")


def test_resuming_with_another_configuration_or_data_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(dataset, tiny(epochs=1), out=out)
    with pytest.raises(ConfigError, match=r"epochs \(was 1, now 2\)"):
        train(dataset, tiny(epochs=2), out=out, resume=True)
    other = Dataset(root=dataset.root, format="voc", class_names=("a", "b"), splits=dataset.splits)
    with pytest.raises(TrainingError, match="other training pictures"):
        train(other, tiny(epochs=1), out=out, resume=True)
    first, *rest = dataset.splits["train"]
    moved = replace(first, boxes_xyxy_px=first.boxes_xyxy_px + 1)
    shifted = replace(dataset, splits={**dataset.splits, "train": (moved, *rest)})
    with pytest.raises(TrainingError, match="other training pictures"):
        train(shifted, tiny(epochs=1), out=out, resume=True)
    content = torch.load(out / STATE, weights_only=True)
    torch.save({**content, "processes": 2}, out / STATE)
    with pytest.raises(TrainingError, match="nproc-per-node 2"):
        train(dataset, tiny(epochs=1), out=out, resume=True)
    (out / STATE).write_bytes(b"broken")
    with pytest.raises(TrainingError, match="no training state"):
        train(dataset, tiny(epochs=1), out=out, resume=True)


@pytest.mark.parametrize("select_on", [None, 0.34])
def test_resuming_with_other_pictures_to_measure_on(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    select_on: float | None,
) -> None:
    out, config = tmp_path / "my run", tiny(evaluate_every=2, select_on=select_on)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train(dataset, config, out=out).interrupted
    assert f"setdet train {dataset.root} --out '{out}' --resume" in capsys.readouterr().err

    measured = {record.image for record in choose_pictures(dataset, config).evaluation}
    moved = {
        split: tuple(
            replace(record, boxes_xyxy_px=record.boxes_xyxy_px + 1) if record.image in measured else record
            for record in records
        )
        for split, records in dataset.splits.items()
    }
    if select_on is None:  # nothing is decided by them
        train(replace(dataset, splits=moved), config, out=out, resume=True)
        assert "measured on (val), or their boxes, have changed" in capsys.readouterr().err
    else:
        with pytest.raises(TrainingError, match="choose the best epoch on, or their boxes, have changed"):
            train(replace(dataset, splits=moved), config, out=out, resume=True)
    train(dataset, config, out=out, resume=True)
    assert ("have changed" in capsys.readouterr().err) == (select_on is None), "the last ones seen are what counts"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_batch_that_is_not_finite_costs_that_batch_only(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], optimizer: str
) -> None:
    """The very same weights, moments and statistics as if the batch had not been there."""
    original, calls = run_module.backward, [0]

    def poisoned(batch: Batch, **arguments: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        if calls[0] != 5:
            return original(batch, **arguments)
        with monkeypatch.context() as patch:
            forward = RTDETR.forward

            def overflowing(model: RTDETR, images: torch.Tensor, *rest: Any) -> Any:
                return forward(model, images * torch.inf, *rest)

            patch.setattr(RTDETR, "forward", overflowing)
            return original(batch, **arguments)

    def absent(batch: Batch, **arguments: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        if calls[0] != 5:
            return original(batch, **arguments)
        model = arguments["model"]
        statistics = [buffer.clone() for buffer in model.buffers()]
        terms = original(batch, **arguments)
        for buffer, value in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(value)
        next(iter(model.parameters())).grad.fill_(torch.nan)
        return terms

    for name, backward in (("poisoned", poisoned), ("absent", absent)):
        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "backward", backward)
            assert train(dataset, tiny(optimizer=optimizer), out=tmp_path / name).steps == 6
    assert "A step was left out in epoch 2: the loss (" in capfd.readouterr().err
    (skipped,) = lines(tmp_path / "poisoned", "skipped")
    assert "nan" in str(skipped["what"]) and len(skipped["pictures"]) == 2  # type: ignore[arg-type]
    one, other = (torch.load(tmp_path / name / STATE, weights_only=True) for name in ("poisoned", "absent"))
    for part in ("model", "ema"):
        assert all(value.isfinite().all() for value in one[part].values())
        assert all(torch.equal(value, other[part][name]) for name, value in one[part].items())
    for slots, others in zip(one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True):
        assert slots["step"] == 5 and all(torch.equal(slots[name], others[name]) for name in slots)


def test_a_run_whose_every_step_fails_ends_with_the_names_of_the_pictures(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = run_module.backward

    def poisoned(batch: Batch, **arguments: Any) -> dict[str, torch.Tensor]:
        terms = original(batch, **arguments)
        next(iter(arguments["model"].parameters())).grad.fill_(torch.inf)
        return terms

    monkeypatch.setattr(run_module, "backward", poisoned)
    with pytest.raises(TrainingError, match=r"20 steps in a row .*gradient \(norm (nan|inf)\).*train-\d\.png"):
        train(dataset, tiny(epochs=9), out=tmp_path / "run")
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_run_of_an_earlier_version_without_newer_fields_goes_on(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(dataset, tiny(epochs=1), out=tmp_path / "run")
    content = torch.load(tmp_path / "run" / STATE, weights_only=True)
    del content["config"]["patience"], content["config"]["optimizer"], content["config"]["loss"]["edge_weight"]
    for group in content["optimizer"]["param_groups"]:
        del group["matrices"]
    torch.save(content, tmp_path / "run" / STATE)
    assert train(dataset, tiny(epochs=1), out=tmp_path / "run", resume=True).epochs == 1


def test_a_finished_run_has_a_report_from_python_too(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tiny(epochs=1), out=tmp_path / "run")
    assert "tiny" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_backbone_weights_alone(dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(dataset, tiny(epochs=1), out=tmp_path / "first")
    config = tiny(epochs=1, seed=1, backbone_weights=str(tmp_path / "first"), freeze=["backbone"])
    train(dataset, config, out=tmp_path / "second")
    assert "everything behind it starts anew" in capfd.readouterr().err
    before, after = (load_model(tmp_path / name / "last.safetensors")[1].state_dict() for name in ("first", "second"))
    kept = {name for name in before if torch.equal(before[name], after[name])}
    backbone = {name for name in before if name.startswith("backbone.")}
    assert backbone <= kept and not any("sampling_offsets.weight" in name for name in kept)
    with pytest.raises(ConfigError, match="leave out 'backbone_weights'"):
        tiny(init="a", backbone_weights="b")


def test_a_warm_up_longer_than_the_run_is_said(
    dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(dataset, tiny(epochs=1, warmup_steps=2000), out=tmp_path / "run")
    assert "warm-up of 2000 steps is longer than the run" in capfd.readouterr().err


def test_the_model_itself_can_be_changed_by_a_run(dataset: Dataset, tmp_path: Path) -> None:
    train(dataset, tiny(epochs=1, architecture=["encoder.interaction=none", "decoder.layers=1"]), out=tmp_path / "run")
    _, model = load_model(tmp_path / "run" / "last.safetensors")
    assert (model.config.encoder.interaction, len(model.decoder.layers)) == ("none", 1)


def test_resuming_does_not_need_what_the_run_started_from(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataset, tiny(epochs=1), out=tmp_path / "first")
    config = tiny(init=str(tmp_path / "first"))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        train(dataset, config, out=tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "moved")
    assert train(dataset, config, out=tmp_path / "second", resume=True).steps == 6


def test_fine_tuning_with_other_classes(dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(dataset, tiny(epochs=1), out=tmp_path / "first")
    three = Dataset(root=dataset.root, format="voc", class_names=("bright", "dark", "new"), splits=dataset.splits)
    config = tiny(epochs=1, init=str(tmp_path / "first"), freeze=["backbone"], learning_rate=1e-5)
    result = train(three, config, out=tmp_path / "second")
    assert "class heads start anew" in capfd.readouterr().err
    before, after = (load_model(tmp_path / name / "last.safetensors")[1].state_dict() for name in ("first", "second"))
    backbone = [name for name in before if name.startswith("backbone.")]
    assert backbone and all(torch.equal(before[name], after[name]) for name in backbone)
    assert result.steps == 3
    with pytest.raises(WeightsError):
        train(three, tiny(init=str(tmp_path / "nothing")), out=tmp_path / "third")


def test_many_epochs_keep_no_tensors(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    original = Session.finish_epoch

    def counted(self: Session) -> None:
        original(self)
        gc.collect()
        counts.append(sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects()))

    monkeypatch.setattr(Session, "finish_epoch", counted)
    train(dataset, tiny(epochs=4, evaluate_every=1), out=tmp_path / "run")
    assert counts[1] == counts[2] == counts[3]


def test_loss_falls(dataset: Dataset, tmp_path: Path) -> None:
    unchanged = {"photometric": 0, "zoom_out": 0, "iou_crop": 0, "flip_horizontal": 0}
    config = tiny(epochs=1, batch_size=6, learning_rate=2e-3, augment=unchanged, denoising_queries=0)
    often = replace(dataset, splits={"train": dataset.splits["train"] * 40})
    train(often, config, out=tmp_path / "run")
    losses = [line["loss"] for line in lines(tmp_path / "run", "step")]
    assert losses[-1] < 0.85 * losses[0]  # type: ignore[operator]


def test_two_processes_share_a_run(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    script = Path(__file__).with_name("train_two_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["--standalone", "--nproc-per-node", "2", str(script), str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second, "both processes hold the same weights and report the same metrics"
    assert first["steps"] == 4 and first["metrics"]
    assert len(lines(tmp_path / "run", "epoch")) == 2
