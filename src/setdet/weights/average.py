"""One detector from several: the mean of the weights of runs that began alike (Wortsman et al. 2022, "Model soups")."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from setdet.errors import OutputError, UsageError, WeightsError
from setdet.weights.files import CheckpointInfo, load_checkpoint, save_checkpoint
from setdet.weights.tensors import check_fits, differences

_ALIKE = 0.5  # least cosine of what two runs made of one matrix


def average(paths: Sequence[Path], *, out: Path, half: bool = False) -> list[str]:
    """Writes a checkpoint whose weights, statistics of norms included, are the means of those in `paths`.

    Runs that were fine-tuned from the same weights end in one valley of the loss, and the mean of what they found is
    often about as good as the best of them, at the cost of one. Runs that began differently have nothing in common to
    average.

    Args:
        paths: checkpoints of one model, for the same classes and the same input.
        out: a new file.
        half: store half precision, which halves the file; it is widened when it is loaded.

    Returns:
        What a user should know, one line each.

    Raises:
        UsageError: there is nothing to average.
        WeightsError: they don't belong together, or one is broken.
        OutputError: the file is there already.
    """
    if not paths:
        raise UsageError("There is nothing to average: name a checkpoint, or several.")
    if len(paths) < 2 and not half:
        raise UsageError("One checkpoint is its own average: name two or more, or ask for half precision (--half).")
    if out.exists():
        raise OutputError(f"{out}: is there already. Choose another with --out, or remove it first.")
    infos: list[CheckpointInfo] = []
    first: dict[str, torch.Tensor] = {}
    total: dict[str, torch.Tensor] = {}
    apart: set[str] = set()
    for path in paths:
        info, state = load_checkpoint(path)
        infos.append(info)
        if not first:
            first = state
            total = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
            continue
        _check_alike(paths[0], infos[0], path, info)
        check_fits(differences(total, state), lead=f"{path}: does not fit {paths[0]}")
        for name, tensor in state.items():
            if tensor.is_floating_point():
                total[name] += tensor
            if tensor.ndim > 1 and not _alike(tensor, first[name]):
                apart.add(name)
    dtype = torch.float16 if half else torch.float32
    mean = {name: (t / len(paths)).to(dtype) if t.is_floating_point() else t for name, t in total.items()}
    if too_large := [name for name, tensor in mean.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{', '.join(too_large[:3])}: holds numbers too large for half precision: leave out --half.")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, state=mean, info=infos[0].model_copy(update={"history": _history(infos, half=half)}))
    if not apart:
        return []
    return [
        f"{len(apart)} of {sum(tensor.ndim > 1 for tensor in first.values())} weight matrices have little in common "
        f"(first: {sorted(apart)[0]}): these runs did not begin alike there. Measure their mean before you use it."
    ]


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    if torch.equal(one, other):  # all zeros, too, which have no direction
        return True
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) >= _ALIKE


def _check_alike(first: Path, ours: CheckpointInfo, path: Path, theirs: CheckpointInfo) -> None:
    for field in ("model", "class_names", "preprocessing"):
        if getattr(ours, field) != getattr(theirs, field):
            what = field.replace("_", " ")
            found = _apart(theirs.to_dict()[field], ours.to_dict()[field])
            raise WeightsError(
                f"{path}: not the {what} of {first} ({found}); only detectors that are alike have a mean."
            )


def _apart(theirs: Any, ours: Any, name: str = "") -> str:
    """The first thing that differs, such as "decoder.rivals is False, not True"."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        key = next(key for key in theirs if theirs[key] != ours[key])
        return _apart(theirs[key], ours[key], f"{name}.{key}".removeprefix("."))
    return f"{name} is {theirs}, not {ours}".removeprefix(" ")


def _history(infos: list[CheckpointInfo], *, half: bool) -> dict[str, Any]:
    rounded = {"precision": "float16, rounded from float32 after training"} if half else {}
    if len(infos) == 1:
        return infos[0].history | rounded
    return {"average_of": [info.history for info in infos], **rounded}
