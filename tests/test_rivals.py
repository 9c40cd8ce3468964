"""What queries are told of their rivals: the numbers against slow loops, who is told, and that it starts as nothing."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from oracle import randomise
from setdet.images import Preprocessing
from setdet.models.denoising import make_denoising_queries
from setdet.models.rivals import rivalry
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import ModelConfig
from setdet.targets import Targets
from setdet.weights.files import CheckpointInfo, initialize_from, save_checkpoint
from slow_losses import iou_and_giou
from small_data import SMALL

TOLD: ModelConfig = SMALL.override(["decoder.layers=2", "decoder.rivals=true", "num_classes=3"])


def slow_rivalry(boxes: Tensor, logits: Tensor) -> list[list[float]]:
    """Of one picture, query by query."""
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in boxes.tolist()]
    told = []
    for i, own in enumerate(corners):
        best, within, around, better, worse = 0.0, 0.0, 0.0, 0.0, 0.0
        for j, other in enumerate(corners):
            if i == j:
                continue
            ahead = 1 / (1 + math.exp(-10 * (logits[j].max() - logits[i].max()).item()))
            alike = torch.cosine_similarity(logits[i].sigmoid(), logits[j].sigmoid(), dim=0).item()
            width = max(0.0, min(own[2], other[2]) - max(own[0], other[0]))
            height = max(0.0, min(own[3], other[3]) - max(own[1], other[1]))
            iou, _ = iou_and_giou(boxes[i].tolist(), boxes[j].tolist())
            best = max(best, ahead * alike * float(iou))
            within = max(within, ahead * alike * width * height / float(boxes[i, 2] * boxes[i, 3]))
            around = max(around, ahead * alike * width * height / float(boxes[j, 2] * boxes[j, 3]))
            better += ahead * alike * float(iou)
            worse += (1 - ahead) * alike * float(iou)
        told.append([best, within, around, math.log1p(better), math.log1p(worse)])
    return told


def test_the_numbers_are_those_of_slow_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(3, 12, 4, dtype=torch.float64, generator=generator) * 0.4 + 0.1
    logits = torch.randn(3, 12, 5, dtype=torch.float64, generator=generator)
    boxes[0, 5] = boxes[0, 4]  # a duplicate
    expected = torch.tensor([slow_rivalry(*picture) for picture in zip(boxes, logits, strict=True)])
    torch.testing.assert_close(rivalry(boxes, logits).float(), expected.float(), rtol=1e-5, atol=1e-6)


def test_of_two_alike_the_better_one_stands_alone_and_the_other_is_covered() -> None:
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]])
    other_class = torch.tensor([[[2.0, -9.0], [-9.0, 1.0], [0.0, -9.0]]])
    same_class = torch.tensor([[[2.0, -9.0], [1.0, -9.0], [0.0, -9.0]]])
    better, covered, apart = rivalry(boxes, same_class)[0]
    assert better[0] < 0.01 and covered[0] > 0.99 and covered[1] > 0.99 and not apart.any()
    assert better[4] == pytest.approx(math.log(2), abs=0.01)  # one behind it
    assert rivalry(boxes, other_class)[0, 1, :4].max() < 0.01  # on one place, but of different kinds


def test_a_fresh_embedding_changes_nothing_and_a_trained_one_does() -> None:
    models = []
    for rivals in (True, False):
        torch.manual_seed(0)  # gives all other parts the same weights
        models.append(build_model(TOLD.override([f"decoder.rivals={rivals}"])).eval())
    told, plain = models
    images = torch.rand(2, 3, 64, 96)
    torch.testing.assert_close(told(images).logits, plain(images).logits, rtol=0, atol=0)
    randomise(told, seed=0)
    plain.load_state_dict({name: tensor for name, tensor in told.state_dict().items() if "rivals" not in name})
    assert (told(images).logits != plain(images).logits).any()


def test_every_layer_is_told_what_the_one_before_it_found() -> None:
    model = build_model(TOLD).eval()
    randomise(model, seed=0)
    told: list[tuple[Tensor, Tensor]] = []
    for embedding in model.decoder.rivals:
        embedding.register_forward_pre_hook(lambda _, given: told.append(given))
    output = model(torch.rand(1, 3, 64, 96))
    found = [(output.encoder_boxes_cxcywh, output.encoder_logits), (output.boxes_cxcywh[0], output.logits[0])]
    torch.testing.assert_close(told, found, rtol=0, atol=0)


def test_every_parameter_learns_and_boxes_and_scores_get_no_gradient_through_it() -> None:
    model = build_model(TOLD)
    randomise(model, seed=0)
    model.train()(torch.rand(2, 3, 64, 96)).logits.sum().backward()
    idle = [n for n, p in model.decoder.rivals.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert model.query_selection.class_head.weight.grad is None  # its scores are read by rivals alone here


def in_training(model: RTDETR, images: Tensor, *, noise: int) -> tuple[Tensor, Tensor]:
    """Logits of the queries and of the denoising queries, with the norms as in evaluation."""
    model.double().eval()
    model.query_selection.training = model.decoder.training = True
    targets = Targets(
        labels=torch.tensor([0, 2]), boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.3, 0.3]] * 2).double(), counts=(1, 1)
    )
    generator = torch.Generator().manual_seed(0)
    queries = make_denoising_queries(targets, num_classes=3, queries=noise, generator=generator)
    output = model(images, queries)
    assert output.denoising_logits is not None
    return output.logits, output.denoising_logits


def test_neither_denoising_queries_nor_other_groups_are_rivals() -> None:
    one = build_model(TOLD)
    randomise(one, seed=0)
    two = build_model(TOLD.override(["decoder.training_groups=2"]))
    two.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 96, 96, dtype=torch.float64)
    alone, noised = in_training(one, images, noise=4)
    with_more_noise, _ = in_training(one, images, noise=12)
    torch.testing.assert_close(with_more_noise, alone, rtol=1e-9, atol=1e-9)
    grouped, noised_too = in_training(two, images, noise=4)
    torch.testing.assert_close(grouped[:, :, : alone.shape[2]], alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noised_too, noised, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("known", "wanted", "says"), [(False, True, "starts anew"), (True, False, "is left out")])
def test_training_may_start_from_weights_with_or_without(known: bool, wanted: bool, says: str, tmp_path: Path) -> None:
    source, model = (build_model(TOLD.override([f"decoder.rivals={rivals}"])) for rivals in (known, wanted))
    names = ("a", "b", "c")
    info = CheckpointInfo(model=source.config, class_names=names, preprocessing=Preprocessing(image_size=(64, 64)))
    save_checkpoint(tmp_path / "source.safetensors", state=source.state_dict(), info=info)
    report = initialize_from(model, tmp_path / "source.safetensors", names)
    assert any(f"what queries are told of their rivals {says}" in line for line in report)
    started, given = (
        {name: tensor for name, tensor in one.state_dict().items() if "rivals" not in name} for one in (model, source)
    )
    assert started.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(started[name], tensor), name
