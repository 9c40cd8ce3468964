"""`setdet average`: the mean of several checkpoints, and what has none."""

from pathlib import Path

import pytest
import torch

from setdet.cli import main
from setdet.errors import OutputError, UsageError, WeightsError
from setdet.images import Preprocessing
from setdet.models.rtdetr import build_model
from setdet.weights.average import average
from setdet.weights.files import CheckpointInfo, load_checkpoint, load_model, read_info, save_checkpoint
from small_data import SMALL


def write(path: Path, *, seed: int, names: tuple[str, ...] = ("a", "b"), side: int = 64) -> Path:
    """A checkpoint with random weights and random statistics of its norms."""
    torch.manual_seed(seed)
    model = build_model(SMALL, num_classes=len(names))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    info = CheckpointInfo(
        model=model.config,
        class_names=names,
        preprocessing=Preprocessing(image_size=(side, side)),
        history={"epochs": seed},
    )
    save_checkpoint(path, state=model.state_dict(), info=info)
    return path


def test_weights_and_statistics_are_means(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2, 3)]
    assert average(paths, out=tmp_path / "mean.safetensors") == []
    info, mean = load_checkpoint(tmp_path / "mean.safetensors")
    states = [load_checkpoint(path)[1] for path in paths]
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(dim=0).float()
            assert torch.equal(tensor, expected), name
        else:
            assert torch.equal(tensor, states[0][name]), name
    assert any("running_var" in name for name in mean)
    assert [history["epochs"] for history in info.history["average_of"]] == [1, 2, 3]
    load_model(tmp_path / "mean.safetensors")


def test_half_precision_makes_a_small_file_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "whole.safetensors", seed=1)
    small = tmp_path / "new" / "half.safetensors"
    assert main(["average", str(whole), "--half", "--out", str(small)]) == 0
    assert str(small) in capsys.readouterr().out
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    (_, halved), (_, exact) = load_checkpoint(small), load_checkpoint(whole)
    for name, tensor in halved.items():
        expected = exact[name]
        assert torch.equal(tensor, expected.half().float() if tensor.is_floating_point() else expected), name
    assert read_info(small).history == {**read_info(whole).history, "precision": read_info(small).history["precision"]}


def test_runs_that_began_differently_are_told_of(tmp_path: Path) -> None:
    tuned = write(tmp_path / "tuned.safetensors", seed=1)
    info, state = load_checkpoint(tuned)
    other = {**state, "decoder.class_heads.0.weight": -state["decoder.class_heads.0.weight"]}
    save_checkpoint(tmp_path / "other.safetensors", state=other, info=info)
    (note,) = average([tuned, tmp_path / "other.safetensors"], out=tmp_path / "mean.safetensors")
    assert note.startswith("1 of ") and "first: decoder.class_heads.0.weight" in note
    blank = {**state, "decoder.class_heads.0.weight": torch.zeros_like(state["decoder.class_heads.0.weight"])}
    for path in (tuned, tmp_path / "other.safetensors"):
        save_checkpoint(path, state=blank, info=info)
    assert average([tuned, tmp_path / "other.safetensors"], out=tmp_path / "again.safetensors") == []


def test_weights_that_are_as_good_as_random_to_each_other_are_told_of(tmp_path: Path) -> None:
    info, state = load_checkpoint(write(tmp_path / "any.safetensors", seed=1))
    matrices = {name for name, tensor in state.items() if tensor.ndim > 1}
    runs = [state | {name: torch.randn_like(state[name]) for name in matrices} for _ in range(2)]
    runs.append({name: t + 0.5 * torch.randn_like(t) if name in matrices else t for name, t in runs[0].items()})
    first, random, tuned = paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, run in zip(paths, runs, strict=True):
        save_checkpoint(path, state=run, info=info)
    (note,) = average([first, random], out=tmp_path / "mean.safetensors")
    assert note.startswith(f"{len(matrices)} of {len(matrices)} weight matrices")
    assert average([first, tuned], out=tmp_path / "tuned.safetensors") == []


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"names": ("a", "c")}, "class names of .*first.safetensors .is .'a', 'c'., not .'a', 'b'."),
        ({"side": 96}, "preprocessing of .* .image_size is .96, 96., not .64, 64."),
        ({"names": ("a",)}, "model of .* .num_classes is 1, not 2"),
    ],
)
def test_detectors_that_are_not_alike_have_no_mean(tmp_path: Path, other: dict[str, object], says: str) -> None:
    first = write(tmp_path / "first.safetensors", seed=1)
    second = write(tmp_path / "second.safetensors", seed=2, **other)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=rf"second.safetensors: not the {says}"):
        average([first, second], out=tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first.safetensors", seed=1)
    with pytest.raises(UsageError, match="its own average"):
        average([first], out=tmp_path / "mean.safetensors")
    with pytest.raises(OutputError, match="is there already"):
        average([first, first], out=first)
    info, state = load_checkpoint(first)
    name = next(name for name in state if name.endswith("running_var"))
    save_checkpoint(tmp_path / "large.safetensors", state={**state, name: state[name] + 1e6}, info=info)
    with pytest.raises(WeightsError, match=rf"{name}: holds numbers too large for half precision"):
        average([tmp_path / "large.safetensors"], out=tmp_path / "half.safetensors", half=True)
