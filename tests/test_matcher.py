"""Hungarian matching: the cheapest assignment, whatever the batch looks like, with errors that name the picture."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setdet.losses.config import LossConfig
from setdet.losses.matcher import HungarianMatcher, Matches
from setdet.targets import Targets
from slow_losses import boxes_by_picture, slow_match
from test_losses import make_output, make_targets


def predictions(batch: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    output = make_output(layers=2, batch=batch, queries=queries, seed=seed)
    return output.logits.detach(), output.boxes_cxcywh.detach()


def match(logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
    return HungarianMatcher(config=LossConfig())(logits, boxes, targets)


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    queries=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_is_the_cheapest_of_all_assignments(counts: tuple[int, ...], queries: int, seed: int) -> None:
    targets = make_targets(counts, seed=seed)
    logits, boxes = predictions(len(counts), queries, seed + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matches = match(logits, boxes, targets)
    found = set(zip(*(x.tolist() for x in (matches.layer, matches.image, matches.query, matches.target)), strict=True))
    expected = {
        (layer, image, query, box)
        for layer in range(2)
        for image, truth in enumerate(boxes_by_picture(targets))
        for query, box in slow_match(
            logits[layer, image].tolist(), boxes[layer, image].tolist(), truth, config=LossConfig()
        )
    }
    assert found == expected
    assert len(matches.layer) == len(found)


@pytest.mark.parametrize("counts", [(0,), (0, 0)])
def test_nothing_to_match(counts: tuple[int, ...]) -> None:
    matches = match(*predictions(len(counts), 3), make_targets(counts))
    assert [len(x) for x in (matches.layer, matches.image, matches.query, matches.target)] == [0, 0, 0, 0]
    assert matches.query.dtype == torch.int64


def test_layers_and_pictures_are_matched_by_themselves() -> None:
    targets = make_targets((2, 3))
    logits, boxes = predictions(2, 6)
    alone = replace(targets, labels=targets.labels[2:], boxes_cxcywh=targets.boxes_cxcywh[2:], counts=(3,))
    together, single = match(logits, boxes, targets), match(logits[:, 1:], boxes[:, 1:], alone)
    of_second = together.image == 1
    assert torch.equal(together.query[of_second], single.query)
    assert torch.equal(together.target[of_second] - 2, single.target)


def test_float64_decides_what_float32_cannot() -> None:
    """Two queries whose boxes differ by 1e-12: the nearer one is taken."""
    targets = make_targets((1,))
    boxes = targets.boxes_cxcywh.expand(2, 1, 2, 4).clone()
    boxes[:, :, 0, 0] += 2e-12
    boxes[:, :, 1, 0] += 1e-12
    logits = torch.zeros(2, 1, 2, 3, dtype=torch.float64)
    assert match(logits, boxes, targets).query.tolist() == [1, 1]
    assert match(logits, boxes.flip(2), targets).query.tolist() == [0, 0]


def test_more_boxes_than_queries_warns_once_and_names_the_picture() -> None:
    targets = replace(make_targets((1, 4, 0)), names=("a.jpg", "crowd.jpg", "c.jpg"))
    logits, boxes = predictions(3, 2)
    matcher = HungarianMatcher(config=LossConfig())
    with pytest.warns(UserWarning, match=r"More boxes than the 2 queries: crowd\.jpg \(4 boxes\)\."):
        matches = matcher(logits, boxes, targets)
    assert (matches.image == 1).sum() == 2 * 2  # both queries of both layers; two boxes stay unmatched
    assert len(set(matches.target[matches.image == 1].tolist())) >= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matcher(logits, boxes, targets)  # the next epoch says nothing
    other = replace(targets, names=("a.jpg", "other.jpg", "c.jpg"))
    with pytest.warns(UserWarning, match="other.jpg"):
        matcher(logits, boxes, other)


def test_as_many_boxes_as_queries_is_no_reason_to_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matches = match(*predictions(1, 3), make_targets((3,)))
    assert sorted(matches.query.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_a_prediction_that_is_not_finite_is_the_last_choice(value: float, where: str) -> None:
    logits, boxes = predictions(2, 4)
    (logits if where == "logits" else boxes)[1, 0, 3] = value
    matches = match(logits, boxes, make_targets((2, 0)))
    chosen = matches.query[(matches.layer == 1) & (matches.image == 0)].tolist()
    assert len(set(chosen)) == 2
    assert 3 not in chosen or value in (math.inf, -math.inf)  # an infinite logit has a finite cost


def test_copies_give_every_box_queries_of_its_own_as_far_as_they_reach() -> None:
    targets = make_targets((2, 0, 3))
    matches = HungarianMatcher(config=LossConfig())(*predictions(3, 7), targets, copies=[1, 3])
    for layer, image, box, expected in ((0, 0, 0, 1), (1, 0, 0, 3), (1, 0, 1, 3), (1, 2, 2, 2), (1, 2, 4, 2)):
        here = (matches.layer == layer) & (matches.image == image)
        queries = matches.query[here & (matches.target == box)].tolist()
        assert len(queries) == expected
        assert len(set(matches.query[here].tolist())) == int(here.sum())


def test_extreme_finite_predictions_are_matched() -> None:
    logits, boxes = predictions(1, 4)
    logits = logits.sign() * torch.finfo(torch.float32).max / 100
    assert len(match(logits.float(), boxes.float(), make_targets((2,))).query) == 4


def test_needs_no_gradient_and_keeps_no_graph() -> None:
    output = make_output(layers=2, batch=1, queries=3)
    assert torch.is_grad_enabled()
    match(output.logits, output.boxes_cxcywh, make_targets((2,)))
    assert output.logits.grad is None
