"""What all tables of names share."""

from collections.abc import Iterator

import torch
from torch import Tensor

from setdet.errors import WeightsError
from setdet.models.variants import EncoderConfig

State = dict[str, Tensor]
Pairs = Iterator[tuple[str, str]]


def rename(state: State, modules: dict[str, str]) -> State:
    """The state with every tensor's module path replaced; the inverse table undoes it.

    Raises:
        WeightsError: a tensor lies in a module that the table does not know.
    """
    renamed: State = {}
    unknown = []
    for name, tensor in state.items():
        path = name
        while path and path not in modules:
            path = path.rpartition(".")[0]
        if path:
            renamed[modules[path] + name[len(path) :]] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(f"{len(unknown)} tensors belong to no known module, first: {', '.join(unknown[:3])}.")
    return renamed


def inverse(modules: dict[str, str]) -> dict[str, str]:
    """The table in the other direction."""
    return {theirs: ours for ours, theirs in modules.items()}


def with_batch_counts(state: State) -> State:
    """The state with a zero wherever a norm has no `num_batches_tracked`: frozen norms elsewhere don't keep one."""
    norms = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
    counts = {f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64) for norm in norms}
    return counts | state


def points_scales(points: tuple[int, ...]) -> Tensor:
    """1 / points of its level for every sampling point: what RT-DETRv2 stores in each decoder layer."""
    return torch.tensor([1 / count for count in points for _ in range(count)], dtype=torch.float32)


def fusion(config: EncoderConfig, *, theirs_root: str) -> Pairs:
    """CCFF, which is called alike everywhere."""
    for index in range(2):
        yield f"encoder.lateral.{index}", f"{theirs_root}.lateral_convs.{index}"
        yield f"encoder.downsample.{index}", f"{theirs_root}.downsample_convs.{index}"
        for ours, theirs in (("top_down", "fpn_blocks"), ("bottom_up", "pan_blocks")):
            for part in ("conv1", "conv2", "conv3"):
                yield f"encoder.{ours}.{index}.{part}", f"{theirs_root}.{theirs}.{index}.{part}"
            for block in range(config.fusion_blocks):
                branch = f"{theirs_root}.{theirs}.{index}.bottlenecks.{block}"
                yield f"encoder.{ours}.{index}.blocks.{block}.conv3x3", f"{branch}.conv1"
                yield f"encoder.{ours}.{index}.blocks.{block}.conv1x1", f"{branch}.conv2"
