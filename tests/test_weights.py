"""Checkpoints: what is written comes back, what is broken is refused with a reason, nothing is half-written."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from setdet.errors import OutputError, WeightsError
from setdet.images import Preprocessing
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import model_config
from setdet.weights.files import (
    CheckpointInfo,
    initialize_from,
    load_checkpoint,
    load_model,
    read_info,
    save_checkpoint,
)

NAMES = ("crack", "dent")


def make_info(model: RTDETR, class_names: tuple[str, ...] = NAMES) -> CheckpointInfo:
    return CheckpointInfo(
        model=model.config,
        class_names=class_names,
        preprocessing=Preprocessing(image_size=(96, 64)),
        history={"epochs": 3},
    )


@pytest.fixture(scope="module")
def model() -> RTDETR:
    torch.manual_seed(0)
    return build_model("rtdetr-n", num_classes=2)


@pytest.fixture
def checkpoint(model: RTDETR, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, state=model.state_dict(), info=make_info(model))
    return path


def test_a_checkpoint_comes_back_as_it_was(model: RTDETR, checkpoint: Path) -> None:
    info, loaded = load_model(checkpoint)
    assert info == make_info(model) == read_info(checkpoint)
    assert not loaded.training
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert [path.name for path in checkpoint.parent.iterdir()] == ["weights.safetensors"]


def test_half_precision_is_widened_on_loading(model: RTDETR, tmp_path: Path) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in model.state_dict().items()}
    save_checkpoint(tmp_path / "half.safetensors", state=half, info=make_info(model))
    _, state = load_checkpoint(tmp_path / "half.safetensors")
    assert all(t.dtype in (torch.float32, torch.int64) for t in state.values())
    assert torch.equal(state["backbone.stem.conv1.conv.weight"], half["backbone.stem.conv1.conv.weight"].float())


@pytest.mark.parametrize("start", [b"\x80", b"PK"], ids=["as a pickle", "as a zip archive"])
def test_a_header_whose_length_begins_like_another_format_is_still_ours(start: bytes, checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    old = int.from_bytes(content[:8], "little")
    length = next(n for n in range(old, old + 2**16 + 1) if n.to_bytes(8, "little").startswith(start))
    padded = content[8 : 8 + old].ljust(length)
    checkpoint.write_bytes(length.to_bytes(8, "little") + padded + content[8 + old :])
    assert read_info(checkpoint).class_names == NAMES


def test_a_failed_write_leaves_the_old_file(model: RTDETR, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint.read_bytes()

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OutputError, match=r"cannot be written \(disk full\).*--resume"):
        save_checkpoint(checkpoint, state=model.state_dict(), info=make_info(model))
    assert checkpoint.read_bytes() == before
    assert len(list(checkpoint.parent.iterdir())) == 1


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match="never executed"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def test_a_file_cut_short_is_refused(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cut short"):
        load_model(checkpoint)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(WeightsError, match="without setdet's metadata"):
        read_info(tmp_path / "foreign.safetensors")


def test_tensors_of_another_model_are_refused_with_the_first_differences(model: RTDETR, tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    save_checkpoint(path, state={"a.weight": torch.zeros(1)}, info=make_info(model))
    with pytest.raises(WeightsError, match="does not fit rtdetr-n, .* differences: backbone.stem.conv1.conv.weight is"):
        load_model(path)


def test_nan_in_a_tensor_is_refused(model: RTDETR, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    state["memory_proj.0.conv.weight"] = torch.full_like(state["memory_proj.0.conv.weight"], torch.nan)
    save_checkpoint(tmp_path / "nan.safetensors", state=state, info=make_info(model))
    with pytest.raises(WeightsError, match="1 tensors hold NaN or infinity, first: memory_proj.0.conv.weight"):
        load_model(tmp_path / "nan.safetensors")


def test_fine_tuning_keeps_everything_but_the_class_heads(model: RTDETR, checkpoint: Path) -> None:
    torch.manual_seed(1)
    tuned = build_model("rtdetr-n", num_classes=5)
    heads = tuned.query_selection.class_head.weight.clone()
    report = initialize_from(tuned, checkpoint, ("a", "b", "c", "d", "e"))
    assert any("class heads start anew" in line for line in report)
    assert torch.equal(tuned.query_selection.class_head.weight, heads)
    assert torch.equal(tuned.backbone.stem.conv1.conv.weight, model.backbone.stem.conv1.conv.weight)
    assert torch.equal(tuned.query_selection.box_head.layers[0].weight, model.query_selection.box_head.layers[0].weight)


def test_fine_tuning_on_the_same_classes_keeps_the_heads(model: RTDETR, checkpoint: Path) -> None:
    torch.manual_seed(1)
    tuned = build_model("rtdetr-n", num_classes=2)
    initialize_from(tuned, checkpoint, NAMES)
    assert torch.equal(tuned.query_selection.class_head.weight, model.query_selection.class_head.weight)


def test_fine_tuning_on_as_many_other_classes_starts_their_heads_anew(checkpoint: Path) -> None:
    torch.manual_seed(1)
    tuned = build_model("rtdetr-n", num_classes=2)
    heads = ("query_selection.class_head.", "decoder.class_heads.", "decoder.denoising_embedding.")
    fresh = {name: tensor.clone() for name, tensor in tuned.state_dict().items() if name.startswith(heads)}
    report = initialize_from(tuned, checkpoint, NAMES[::-1])
    assert any("class heads start anew" in line for line in report)
    assert all(torch.equal(tuned.state_dict()[name], tensor) for name, tensor in fresh.items())


def test_fine_tuning_from_another_architecture_is_refused(checkpoint: Path) -> None:
    with pytest.raises(WeightsError, match="is a rtdetr-n and does not fit rtdetr-r18"):
        initialize_from(build_model("rtdetr-r18", num_classes=2), checkpoint, NAMES)


def test_fine_tuning_from_a_variant_says_how_to_train_it(tmp_path: Path) -> None:
    changes = ["encoder.interaction=cross", "decoder.queries=50"]
    variant = build_model(model_config("rtdetr-n", num_classes=2).override(changes))
    save_checkpoint(tmp_path / "variant.safetensors", state=variant.state_dict(), info=make_info(variant))
    with pytest.raises(WeightsError, match=r"--set 'architecture=\[encoder.interaction=cross\]'"):
        initialize_from(build_model("rtdetr-n", num_classes=2), tmp_path / "variant.safetensors", NAMES)
