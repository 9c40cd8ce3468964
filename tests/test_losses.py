"""The criterion: against the slow oracle in value and gradient, at the edges of precision, and without boxes."""

import itertools
import math
import warnings
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setdet.errors import ConfigError, TrainingError
from setdet.losses.config import LossConfig
from setdet.losses.criterion import Criterion
from setdet.losses.matcher import Matches
from setdet.losses.terms import box_losses, edge_distillation, edge_loss, matched_iou
from setdet.models.denoising import DenoisingQueries
from setdet.models.distributions import BINS, bin_shifts
from setdet.models.outputs import EdgeDistributions, RTDETROutput
from setdet.targets import Targets
from slow_losses import slow_loss


def make_targets(counts: tuple[int, ...], *, classes: int = 3, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts)
    size = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 0.4 + 0.05
    center = torch.rand(n, 2, generator=generator, dtype=torch.float64) * (1 - size) + size / 2
    return Targets(
        labels=torch.randint(classes, (n,), generator=generator),
        boxes_cxcywh=torch.cat([center, size], dim=1),
        counts=counts,
    )


def make_denoising(targets: Targets, *, groups: int, classes: int = 3) -> DenoisingQueries | None:
    """By hand, as the contract says: in each group first every slot's positive, then every slot's negative."""
    most = max(targets.counts, default=0)
    if not most:
        return None
    batch, total = len(targets.counts), groups * 2 * most
    labels, boxes = torch.full((batch, total), classes), torch.zeros(batch, total, 4, dtype=torch.float64)
    images, queries, indices = [], [], []
    first = 0
    for image, count in enumerate(targets.counts):
        for group in range(groups):
            for slot in range(count):
                place = group * 2 * most + slot
                images.append(image), queries.append(place), indices.append(first + slot)
                for copy in (place, place + most):
                    labels[image, copy] = targets.labels[first + slot]
                    boxes[image, copy] = targets.boxes_cxcywh[first + slot]
        first += count
    return DenoisingQueries(
        labels=labels,
        boxes_cxcywh=boxes,
        groups=groups,
        positive_index=(torch.tensor(images), torch.tensor(queries)),
        target_index=torch.tensor(indices),
    )


def make_output(
    *, layers: int, batch: int, queries: int, classes: int = 3, denoising: int = 0, seed: int = 0
) -> RTDETROutput:
    """Random predictions in float64 that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        return (torch.randn(*shape, classes, generator=generator, dtype=torch.float64) * 2).requires_grad_()

    def boxes(*shape: int) -> Tensor:
        return torch.randn(*shape, 4, generator=generator, dtype=torch.float64).sigmoid().requires_grad_()

    return RTDETROutput(
        logits=logits(layers, batch, queries),
        boxes_cxcywh=boxes(layers, batch, queries),
        encoder_logits=logits(batch, queries),
        encoder_boxes_cxcywh=boxes(batch, queries),
        denoising_logits=logits(layers, batch, denoising) if denoising else None,
        denoising_boxes_cxcywh=boxes(layers, batch, denoising) if denoising else None,
    )


def case(
    counts: tuple[int, ...], *, layers: int = 2, queries: int = 5, groups: int = 2, seed: int = 0
) -> tuple[RTDETROutput, Targets, DenoisingQueries | None]:
    targets = make_targets(counts, seed=seed)
    denoising = make_denoising(targets, groups=groups) if groups else None
    noised = denoising.labels.shape[1] if denoising else 0
    output = make_output(layers=layers, batch=len(counts), queries=queries, denoising=noised, seed=seed + 1)
    return output, targets, denoising


def make_edges(*, layers: int, batch: int, queries: int) -> EdgeDistributions:
    """Random ones in float64."""
    generator = torch.Generator().manual_seed(5)
    return EdgeDistributions(
        logits=torch.randn(layers, batch, queries, 4, BINS + 1, generator=generator, dtype=torch.float64),
        reference_cxcywh=torch.rand(batch, queries, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.2,
    )


def tensors(output: RTDETROutput) -> dict[str, Tensor]:
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    return {name: value for name, value in values.items() if value is not None}


def convert(output: RTDETROutput, dtype: torch.dtype) -> RTDETROutput:
    return replace(output, **{k: v.detach().to(dtype).requires_grad_() for k, v in tensors(output).items()})


def criterion(**config: Any) -> Criterion:
    return Criterion(config=LossConfig(**config), num_classes=3)


@settings(max_examples=12)
@given(
    counts=st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    layers=st.integers(1, 2),
    queries=st.integers(1, 4),
    groups=st.integers(0, 2),
    classification=st.sampled_from(["varifocal", "matchability"]),
    seed=st.integers(0, 1000),
)
def test_terms_and_gradients_equal_the_slow_version(
    counts: tuple[int, ...], layers: int, queries: int, groups: int, classification: str, seed: int
) -> None:
    output, targets, denoising = case(counts, layers=layers, queries=queries, groups=groups, seed=seed)
    assert_slow_version_agrees(output, targets, denoising, classification=classification)


@pytest.mark.parametrize(
    "config", [{"selection_copies": 2}, {"classification": "matchability", "matchability_gamma": 2.5}]
)
def test_options_equal_the_slow_version(config: dict[str, Any]) -> None:
    output, targets, denoising = case((2, 0, 1), queries=5)
    assert_slow_version_agrees(output, targets, denoising, **config)


@pytest.mark.parametrize("config", [{}, {"selection_copies": 2}, {"selection_target": "one"}])
def test_groups_of_queries_are_judged_by_themselves_and_averaged(config: dict[str, Any]) -> None:
    output, targets, denoising = case((2, 0, 1), queries=8)
    grouped = Criterion(config=LossConfig(**config), num_classes=3, queries=4)(output, targets, denoising)
    parts = [
        criterion(**config)(
            replace(
                output,
                logits=output.logits[:, :, part],
                boxes_cxcywh=output.boxes_cxcywh[:, :, part],
                encoder_logits=output.encoder_logits[:, part],  # type: ignore[index]
                encoder_boxes_cxcywh=output.encoder_boxes_cxcywh[:, part],  # type: ignore[index]
            ),
            targets,
            denoising,
        )
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert grouped.keys() == parts[0].keys()
    for name, value in grouped.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)


def assert_slow_version_agrees(
    output: RTDETROutput, targets: Targets, denoising: DenoisingQueries | None, **config: Any
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more boxes than queries: test_matcher.py
        terms = criterion(**config)(output, targets, denoising)
    normaliser = max(1, sum(targets.counts))
    expected = slow_loss(output, targets, denoising, config=LossConfig(**config), normaliser=normaliser)

    assert terms.keys() == expected.keys()
    for name in terms:
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-10, atol=1e-10)
    inputs = list(tensors(output).values())
    gradients = torch.autograd.grad(sum(terms.values()), inputs)
    slow_gradients = torch.autograd.grad(sum(expected.values()), inputs, allow_unused=True, materialize_grads=True)
    for found, wanted in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_every_weight_and_exponent_is_obeyed() -> None:
    config = LossConfig(
        class_weight=1.5,
        l1_weight=4.0,
        giou_weight=3.0,
        varifocal_alpha=0.6,
        varifocal_gamma=1.5,
        match_class=1.0,
        match_l1=2.0,
        match_giou=4.0,
        match_alpha=0.4,
        match_gamma=1.0,
    )
    output, targets, denoising = case((3, 1), seed=5)
    terms = Criterion(config=config, num_classes=3)(output, targets, denoising)
    expected = slow_loss(output, targets, denoising, config=config, normaliser=4)
    torch.testing.assert_close(terms, expected, rtol=1e-10, atol=1e-10)
    assert not torch.isclose(sum(terms.values()), sum(criterion()(output, targets, denoising).values()))


def test_names_say_what_and_where() -> None:
    terms = criterion()(*case((2, 1), layers=2))
    places = ["decoder.0", "decoder.1", "encoder", "denoising.0", "denoising.1"]
    assert set(terms) == {f"{term}/{place}" for term in ("class", "l1", "giou") for place in places}
    assert all(value.shape == () and value.dtype == torch.float64 for value in terms.values())


def test_box_terms_are_right_by_finite_differences() -> None:
    output, targets, denoising = case((2,), layers=1, queries=2, groups=1)

    # Only the boxes: the class terms hold the IoU constant, which finite differences can't know.
    def box_terms(boxes: Tensor, encoder: Tensor, noised: Tensor) -> Tensor:
        moved = replace(output, boxes_cxcywh=boxes, encoder_boxes_cxcywh=encoder, denoising_boxes_cxcywh=noised)
        return sum(value for name, value in criterion()(moved, targets, denoising).items() if "class" not in name)

    inputs = (output.boxes_cxcywh, output.encoder_boxes_cxcywh, output.denoising_boxes_cxcywh)
    assert torch.autograd.gradcheck(box_terms, inputs, eps=1e-7)


def test_class_terms_give_boxes_no_gradient() -> None:
    output, targets, denoising = case((2, 3))
    terms = criterion()(output, targets, denoising)
    classes = sum(value for name, value in terms.items() if name.startswith("class"))
    assert torch.autograd.grad(classes, output.boxes_cxcywh, allow_unused=True) == (None,)


def test_order_of_queries_does_not_matter() -> None:
    output, targets, denoising = case((3, 0, 2), queries=9)
    order = torch.randperm(9)
    shuffled = replace(
        output,
        logits=output.logits[:, :, order],
        boxes_cxcywh=output.boxes_cxcywh[:, :, order],
        encoder_logits=output.encoder_logits[:, order],
        encoder_boxes_cxcywh=output.encoder_boxes_cxcywh[:, order],
    )
    torch.testing.assert_close(criterion()(shuffled, targets, denoising), criterion()(output, targets, denoising))


def test_a_perfect_prediction_costs_nothing() -> None:
    targets = make_targets((2,))
    logits = torch.full((1, 1, 3, 3), -50.0, dtype=torch.float64)
    logits[0, 0, torch.tensor([2, 0]), targets.labels] = 50.0
    boxes = torch.full((1, 1, 3, 4), 0.5, dtype=torch.float64)
    boxes[0, 0, torch.tensor([2, 0])] = targets.boxes_cxcywh
    terms = criterion()(RTDETROutput(logits, boxes, logits[0], boxes[0]), targets, None)
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("extreme", [60000.0, -60000.0])
def test_finite_at_extreme_logits(dtype: torch.dtype, extreme: float) -> None:
    output, targets, denoising = case((3, 0, 2), queries=6)
    output = convert(output, dtype)
    with torch.no_grad():
        for name, value in tensors(output).items():
            value.copy_(torch.full_like(value, extreme) if "logits" in name else value)
            if "boxes" in name:
                value[..., ::2, 2:] = 0  # what a sigmoid rounds to: boxes without area
    targets = replace(targets, boxes_cxcywh=targets.boxes_cxcywh.float())
    loss = sum(criterion()(output, targets, denoising).values())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(value.grad.isfinite().all() for value in tensors(output).values())


def test_half_precision_inputs_are_computed_in_float32() -> None:
    output, targets, denoising = case((3, 1))
    half = convert(output, torch.bfloat16)
    terms = criterion()(half, targets, denoising)
    torch.testing.assert_close(terms, criterion()(convert(half, torch.float32), targets, denoising), rtol=0, atol=0)


@pytest.mark.parametrize("counts", [(0,), (0, 0, 0)])
def test_a_batch_without_boxes_still_reaches_every_prediction(counts: tuple[int, ...]) -> None:
    output, targets, denoising = case(counts)
    assert denoising is None
    terms = criterion()(output, targets, denoising)
    sum(terms.values()).backward()
    assert all(terms[name] == 0 for name in terms if not name.startswith("class"))
    assert all(terms[name] > 0 for name in terms if name.startswith("class"))
    assert (output.logits.grad != 0).all() and (output.encoder_logits.grad != 0).all()
    assert (output.boxes_cxcywh.grad == 0).all() and (output.encoder_boxes_cxcywh.grad == 0).all()


def test_a_picture_without_boxes_pushes_its_scores_down() -> None:
    output, targets, _ = case((2, 0), groups=0)
    sum(criterion()(output, targets, None).values()).backward()
    assert (output.logits.grad[:, 1] > 0).all()
    assert (output.boxes_cxcywh.grad[:, 1] == 0).all()


def test_denoising_is_normalised_by_its_groups() -> None:
    """The same predictions in three groups instead of one cost the same."""
    output, targets, one = case((2, 1), groups=1)
    three = make_denoising(targets, groups=3)
    repeated = replace(
        output,
        denoising_logits=output.denoising_logits.repeat(1, 1, 3, 1),
        denoising_boxes_cxcywh=output.denoising_boxes_cxcywh.repeat(1, 1, 3, 1),
    )
    torch.testing.assert_close(criterion()(repeated, targets, three), criterion()(output, targets, one))


def test_what_does_not_belong_together_is_refused() -> None:
    output, targets, denoising = case((2, 1))
    with pytest.raises(TrainingError, match="predicts 3 classes, the loss is for 7"):
        Criterion(config=LossConfig(), num_classes=7)(output, targets, denoising)
    with pytest.raises(TrainingError, match="saw 2 pictures, the targets are of 1"):
        criterion()(output, replace(targets, counts=(3,)), denoising)
    with pytest.raises(TrainingError, match="4 boxes by count, 3 labels"):
        criterion()(output, replace(targets, counts=(2, 2)), denoising)
    with pytest.raises(TrainingError, match="from 3 to 3.*number the classes from 0 to 2"):
        criterion()(output, replace(targets, labels=torch.full_like(targets.labels, 3)), denoising)
    with pytest.raises(TrainingError, match="given no denoising queries, but the output has predictions"):
        criterion()(output, targets, None)
    with pytest.raises(TrainingError, match="given denoising queries, but the output has no predictions"):
        criterion()(replace(output, denoising_logits=None, denoising_boxes_cxcywh=None), targets, denoising)


def test_a_misspelled_weight_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'giou_weight'"):
        LossConfig.from_dict({"giou_wieght": 1.0})


def test_losses_of_edges_equal_the_slow_version() -> None:
    output, targets, _ = case((2, 1), layers=3, queries=4, groups=0)
    edges = make_edges(layers=3, batch=2, queries=4)
    # Two pairs in each of the three layers, and one of the encoder's, which has no edges.
    matches = Matches(
        layer=torch.tensor([0, 0, 1, 1, 2, 2, 3]),
        image=torch.tensor([0, 1, 0, 1, 0, 1, 0]),
        query=torch.tensor([1, 3, 2, 3, 2, 0, 1]),
        target=torch.tensor([0, 2, 1, 2, 0, 2, 0]),
    )
    quality = torch.linspace(0.2, 0.9, 7, dtype=torch.float64)
    pairs = list(zip(*(x.tolist() for x in (matches.layer, matches.image, matches.query, matches.target)), strict=True))
    shifts = bin_shifts(like=quality).tolist()

    by_truth, good = [0.0] * 3, {}
    for (layer, image, query, target), worth in zip(pairs, quality.tolist(), strict=True):
        if layer == 3:
            continue
        good[layer, image, query] = worth
        cx, cy, w, h = edges.reference_cxcywh[image, query].tolist()
        tx, ty, tw, th = targets.boxes_cxcywh[target].tolist()
        out = [(cx - tx + tw / 2) / w, (cy - ty + th / 2) / h, (tx + tw / 2 - cx) / w, (ty + th / 2 - cy) / h]
        for edge, share in enumerate(out):
            wanted = min(max(4 * share - 2, shifts[0]), shifts[-1])
            below = max(index for index in range(BINS) if shifts[index] <= wanted)
            part = (wanted - shifts[below]) / (shifts[below + 1] - shifts[below])
            logs = edges.logits[layer, image, query, edge].log_softmax(dim=0).tolist()
            by_truth[layer] -= worth * ((1 - part) * logs[below] + part * logs[below + 1])
    torch.testing.assert_close(edge_loss(edges, quality, targets, matches), torch.tensor(by_truth, dtype=torch.float64))

    by_last = []
    for layer in range(3):
        kinds: dict[bool, list[float]] = {True: [], False: []}
        for image, query in itertools.product(range(2), range(4)):
            apart = 0.0
            for edge in range(4):
                teacher = (edges.logits[2, image, query, edge] / 5).softmax(dim=0).tolist()
                student = (edges.logits[layer, image, query, edge] / 5).softmax(dim=0).tolist()
                apart += sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True)) / 4
            sure = float(output.logits[2, image, query].detach().sigmoid().max())
            matched = (layer, image, query) in good
            kinds[matched].append(25 * apart * good.get((layer, image, query), sure))
        # Batches of eight are what the square roots are taken for.
        share = {kind: math.sqrt(len(values) * 8 / 2) for kind, values in kinds.items()}
        mean = {kind: sum(values) / len(values) for kind, values in kinds.items()}
        by_last.append(sum(share[kind] * mean[kind] for kind in kinds) / sum(share.values()))
    found = edge_distillation(edges, torch.cat([output.logits, output.logits[:1]]), quality, matches)
    torch.testing.assert_close(found.detach(), torch.tensor(by_last, dtype=torch.float64))
    assert by_last[2] == pytest.approx(0, abs=1e-12)


def test_terms_of_edges_are_weighted_and_normalised_and_teach_the_students_alone() -> None:
    output, targets, _ = case((2, 1), layers=3, queries=4, groups=0)
    edges = make_edges(layers=3, batch=2, queries=4)
    edges.logits.requires_grad_()
    edges.reference_cxcywh.requires_grad_()
    judge = criterion(edge_weight=0.3, distill_weight=0.7, l1_weight=4.0, giou_weight=3.0)
    terms = judge(replace(output, edges=edges), targets, None)

    logits = torch.cat([output.logits, output.encoder_logits[None]])
    boxes = torch.cat([output.boxes_cxcywh, output.encoder_boxes_cxcywh[None]])
    matches = judge.matcher(logits, boxes, targets)
    quality = matched_iou(boxes, targets, matches)
    by_truth = edge_loss(edges, quality, targets, matches)
    by_last = edge_distillation(edges, logits, quality, matches)
    l1, giou = box_losses(edges.reference_cxcywh.expand_as(boxes), targets, matches)
    expected = {f"edge/decoder.{layer}": 0.3 * by_truth[layer] / 3 for layer in range(3)}
    expected |= {f"distill/decoder.{layer}": 0.7 * by_last[layer] for layer in range(2)}
    expected |= {"l1-guess/decoder.0": 4 * l1[0] / 3, "giou-guess/decoder.0": 3 * giou[0] / 3}
    assert {name for name in terms if "edge" in name or "distill" in name or "guess" in name} == expected.keys()
    torch.testing.assert_close({name: terms[name] for name in expected}, expected)

    inputs = (edges.logits, edges.reference_cxcywh, output.logits)
    distilled = torch.autograd.grad(
        terms["distill/decoder.0"] + terms["distill/decoder.1"], inputs, retain_graph=True, allow_unused=True
    )
    assert distilled[0][:2].any() and not distilled[0][2].any() and distilled[1:] == (None, None)
    assert torch.autograd.grad(terms["edge/decoder.0"], inputs, allow_unused=True)[1:] == (None, None)
