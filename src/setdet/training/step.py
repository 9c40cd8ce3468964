"""One training step: pictures → loss → gradient → weights."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from setdet.data.loader import Batch
from setdet.models.denoising import DenoisingQueries, make_denoising_queries
from setdet.models.outputs import RTDETROutput
from setdet.targets import Targets
from setdet.training.config import TrainConfig

Criterion = Callable[[RTDETROutput, Targets, DenoisingQueries | None], dict[str, Tensor]]


def noise_generator(*, seed: int, epoch: int, batch: int, rank: int) -> torch.Generator:
    """The source of one batch's denoising noise: a function of its place in the run, so that resuming repeats it."""
    state = np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def backward(
    batch: Batch,
    *,
    fabric: Fabric,
    model: nn.Module,
    criterion: Criterion,
    config: TrainConfig,
    num_classes: int,
    generator: torch.Generator,
    share: float = 1.0,
    is_last: bool = True,
) -> dict[str, Tensor]:
    """Adds the gradient of one batch's loss to the parameters.

    Args:
        batch: pictures as uint8 RGB, and their truth.
        fabric: device and precision.
        model: what `Fabric`'s strategy made of the detector (it may be wrapped for many processes).
        criterion: weighted terms of the loss; their sum is the loss.
        config: of the run.
        num_classes: of the model.
        generator: source of the denoising noise.
        share: of this batch in the step, where several are accumulated.
        is_last: whether the step follows: only then do processes exchange gradients.

    Returns:
        The terms, detached, on the device: reading them waits for it.
    """
    denoising = make_denoising_queries(
        batch.targets,
        num_classes=num_classes,
        queries=config.denoising_queries,
        label_noise=config.label_noise,
        box_noise=config.box_noise,
        generator=generator,
    )
    if denoising is not None:
        denoising = _denoising_to(denoising, fabric.device)
    targets = batch.targets.to(fabric.device)
    images = batch.images.to(fabric.device, non_blocking=True)
    images = images.to(torch.float32, memory_format=torch.channels_last).div_(255)

    with _exchange_gradients(model, is_last):
        with fabric.autocast():
            output: RTDETROutput = model(images, denoising)
        terms = criterion(output, targets, denoising)  # outside of autocast: it computes in float32
        loss = torch.stack(list(terms.values())).sum()
        fabric.backward(loss * share)
    return {name: term.detach() for name, term in terms.items()}


class SoundStatistics:
    """The running statistics of a model's norms, which a forward that overflows would spoil for good."""

    def __init__(self, model: nn.Module) -> None:
        # Buffers of a type are copied as one: hundreds of them would be as many calls of an accelerator.
        alike: dict[torch.dtype, list[Tensor]] = defaultdict(list)
        for buffer in model.buffers():
            alike[buffer.dtype].append(buffer)
        self._current = list(alike.values())
        self._sound = [_as_one(buffers) for buffers in self._current]

    def settle(self, finite: Tensor) -> None:
        """After a step: keeps what the forward has gathered if the step was `finite`, else puts back what was there."""
        for buffers, sound in zip(self._current, self._sound, strict=True):
            sound.copy_(torch.where(finite, _as_one(buffers), sound))
            parts = sound.split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(one) for part, one in zip(parts, buffers, strict=True)])


def optimizer_step(
    *,
    fabric: Fabric,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float,
    statistics: SoundStatistics,
) -> Tensor:
    """Clips the gradient, moves the weights and clears the gradient.

    A gradient that is not finite moves nothing: weights, the optimiser's moments and the norms' statistics stay as they
    were before. Nothing here waits for the device.

    Returns:
        The gradient's norm before clipping, on the device: reading it waits for it.
    """
    norm = fabric.clip_gradients(model, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    assert norm is not None  # only clipping by value has none
    finite = norm.isfinite()
    if optimizer.defaults["fused"]:
        # What PyTorch's loss scaling tells the fused kernel, on the device; fp16's own tells the others.
        optimizer.optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()
    statistics.settle(finite)
    optimizer.zero_grad(set_to_none=True)
    return norm


def _as_one(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _exchange_gradients(model: nn.Module, exchange: bool) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not exchange:
        return model.no_sync()
    return nullcontext()


def _denoising_to(denoising: DenoisingQueries, device: torch.device) -> DenoisingQueries:
    batch_index, query_index = denoising.positive_index
    return replace(
        denoising,
        labels=denoising.labels.to(device, non_blocking=True),
        boxes_cxcywh=denoising.boxes_cxcywh.to(device, non_blocking=True),
        positive_index=(batch_index.to(device, non_blocking=True), query_index.to(device, non_blocking=True)),
        target_index=denoising.target_index.to(device, non_blocking=True),
    )
