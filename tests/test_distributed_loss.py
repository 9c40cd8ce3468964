"""Two processes share one loss: the normaliser is their mean number of boxes, and none waits for another for ever."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from setdet.losses.config import LossConfig
from setdet.losses.criterion import Criterion
from setdet.models.denoising import make_denoising_queries
from setdet.models.outputs import RTDETROutput
from setdet.targets import Targets

TIMEOUT_S = 120  # a busy machine needs half a minute to start two processes
QUERIES, CLASSES, LAYERS = 4, 3, 2


class Linear(nn.Module):
    """A stand-in for the detector: one linear layer makes every layer's predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(5, CLASSES + 4)
        self.noised = nn.Embedding(CLASSES + 1, 5)

    def forward(self, features: Tensor, noised_labels: Tensor | None) -> RTDETROutput:
        made = self.heads(features)  # (batch, queries, classes + 4)
        layers = torch.stack([made, made * 0.5])
        noised = None
        if noised_labels is not None:
            noised = torch.stack([self.heads(self.noised(noised_labels))] * LAYERS)
        else:  # as the detector does: no parameter is left out of a step, or DDP waits for its gradient
            layers = layers + self.noised.weight.sum() * 0
        return RTDETROutput(
            logits=layers[..., :CLASSES],
            boxes_cxcywh=layers[..., CLASSES:].sigmoid(),
            encoder_logits=made[..., :CLASSES],
            encoder_boxes_cxcywh=made[..., CLASSES:].sigmoid(),
            denoising_logits=None if noised is None else noised[..., :CLASSES],
            denoising_boxes_cxcywh=None if noised is None else noised[..., CLASSES:].sigmoid(),
        )


@dataclass(frozen=True)
class Batch:
    features: Tensor
    targets: Targets


def batch_of(rank: int, step: int) -> Batch:
    """Process 0 has 3 boxes, then 1; process 1 has none, then 4."""
    counts = [[(2, 1), (1, 0)], [(0, 0), (1, 3)]][rank][step]
    generator = torch.Generator().manual_seed(10 * rank + step)
    boxes = torch.rand(sum(counts), 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1
    labels = torch.randint(CLASSES, (sum(counts),), generator=generator)
    features = torch.randn(2, QUERIES, 5, generator=generator, dtype=torch.float64)
    return Batch(features=features, targets=Targets(labels=labels, boxes_cxcywh=boxes, counts=counts))


def new_model() -> Linear:
    torch.manual_seed(7)
    return Linear().double()


def terms_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(3)
    denoising = make_denoising_queries(batch.targets, num_classes=CLASSES, queries=6, generator=noise)
    output = model(batch.features, None if denoising is None else denoising.labels)
    return Criterion(config=LossConfig(), num_classes=CLASSES)(output, batch.targets, denoising)


def train_two_steps(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(new_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    record: list[dict[str, Any]] = []
    for step in range(2):
        terms = terms_of(model, batch_of(rank, step))
        optimizer.zero_grad()
        sum(terms.values()).backward()
        record.append(
            {
                "terms": {name: float(term.detach()) for name, term in terms.items()},
                "gradients": [parameter.grad.clone() for parameter in model.parameters()],
            }
        )
        optimizer.step()
    torch.save(record, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What each of two processes saw in each of two steps."""
    folder: Path = tmp_path_factory.mktemp("two")
    processes = torch.multiprocessing.spawn(train_two_steps, args=(str(folder),), nprocs=2, join=False)
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while not processes.join(timeout=1):
            if time.monotonic() > deadline:
                pytest.fail(f"The two processes had not finished after {TIMEOUT_S} s: one waits for the other.")
    finally:
        for process in processes.processes:
            process.kill()
            process.join()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_normaliser_is_the_mean_number_of_boxes(records: list[list[dict[str, Any]]]) -> None:
    """A process alone divides by its own boxes: the ratio of the two is the ratio of the normalisers."""
    for rank, own in ((0, 3), (1, 1)):  # process 1 has no box: at least 1
        alone = terms_of(new_model(), batch_of(rank, 0))
        for name, term in alone.items():
            assert records[rank][0]["terms"][name] == pytest.approx(float(term.detach()) * own / 1.5, rel=1e-9), name


def test_a_process_without_boxes_has_only_class_terms(records: list[list[dict[str, Any]]]) -> None:
    terms = records[1][0]["terms"]
    assert not any(name.split("/")[1].startswith("denoising") for name in terms)
    assert all((value > 0) == name.startswith("class") for name, value in terms.items())
    assert any(name.startswith("l1/denoising") for name in records[1][1]["terms"])  # the next step has boxes again


def test_gradients_are_those_of_one_process_with_both_batches(records: list[list[dict[str, Any]]]) -> None:
    for step in range(2):
        for first, second in zip(records[0][step]["gradients"], records[1][step]["gradients"], strict=True):
            assert torch.equal(first, second)
    # DDP takes the mean of the processes' gradients; each term was divided by 1.5 boxes, not by its own 3 and 1.
    model = new_model()
    total = sum(sum(terms_of(model, batch_of(rank, 0)).values()) * own / 1.5 for rank, own in ((0, 3), (1, 1)))
    (total / 2).backward()
    for parameter, found in zip(model.parameters(), records[0][0]["gradients"], strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-12)
