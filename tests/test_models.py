"""Properties of the models by themselves: sizes, gradients, folding, names, small pictures."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from oracle import matched_difference, randomise
from setdet.boxes import cxcywh_to_xyxy
from setdet.errors import ConfigError, WeightsError
from setdet.losses.config import LossConfig
from setdet.losses.criterion import Criterion
from setdet.models.denoising import make_denoising_queries
from setdet.models.deploy import fold
from setdet.models.distributions import BINS, boxes_from_edges, edge_targets
from setdet.models.layers import GroupedConv2d
from setdet.models.queries import PRIOR_PROBABILITY, make_box_head, make_class_head, make_edge_head
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.self_attention import QueryGroups, attend
from setdet.models.variants import MODELS, model_config
from setdet.targets import Targets
from setdet.weights.remap import from_authors_v1
from small_data import SMALL

DISCRETE = ("r18", "r34", "r50m", "r50")
PUBLISHED_PARAMETERS = {
    "rtdetr-r18": 20_184_464,
    "rtdetr-r34": 31_441_668,
    "rtdetr-r50m": 36_593_772,
    "rtdetr-r50": 42_891_372,
    "rtdetr-r101": 76_556_268,
    "rtdetr-hgnetv2-l": 32_925_036,
    "rtdetr-hgnetv2-x": 67_374_188,
    "rtdetr-hgnetv2-h": 125_584_348,
}
# The second version and its discrete sampling add no parameters.
PUBLISHED_PARAMETERS |= {name.replace("rtdetr-", "rtdetrv2-"): count for name, count in PUBLISHED_PARAMETERS.items()}
PUBLISHED_PARAMETERS |= {f"rtdetrv2-{size}-dsp": PUBLISHED_PARAMETERS[f"rtdetr-{size}"] for size in DISCRETE}
# The authors freeze the norms of the larger backbones, and their code then counts them as buffers.
FROZEN_NORMS = {name for name in PUBLISHED_PARAMETERS if "-r18" not in name and "-r34" not in name}

TARGETS = Targets(
    labels=torch.tensor([0, 5, 2]),
    boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1], [0.7, 0.6, 0.2, 0.5]]),
    counts=(2, 0, 1),
)


def small(name: str = "rtdetr-n", *, num_classes: int = 6, seed: int = 0) -> RTDETR:
    torch.manual_seed(seed)
    return build_model(name, num_classes=num_classes)


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_equal_the_published_count(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name)
    count = sum(parameter.numel() for parameter in model.parameters())
    if name in FROZEN_NORMS:
        norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
        count -= sum(parameter.numel() for norm in norms for parameter in norm.parameters())
    assert count == PUBLISHED_PARAMETERS[name]


def test_every_model_but_our_own_has_a_published_count() -> None:
    assert MODELS.keys() - PUBLISHED_PARAMETERS.keys() == {"rtdetr-n"}


def test_the_small_model_has_about_four_million_parameters() -> None:
    assert 3.5e6 < sum(parameter.numel() for parameter in small().parameters()) < 4.5e6


def test_a_tensor_of_no_known_module_is_refused() -> None:
    with pytest.raises(WeightsError, match="no known module, first: neck.weight"):
        from_authors_v1({"neck.weight": torch.zeros(1)}, MODELS["rtdetr-r18"])


@pytest.mark.parametrize("name", ["rtdetr-n", "rtdetr-r18", "rtdetr-r50m"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 5e-4)])
def test_the_folded_copy_gives_the_same_output(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model = build_model(name, num_classes=6)
    randomise(model, seed=3)
    model = model.to(dtype).eval()
    images = torch.rand(2, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        expected, folded = model(images), fold(model)(images)
    if dtype == torch.float64:
        assert (folded.logits - expected.logits).abs().max() <= tolerance
        assert (folded.boxes_cxcywh - expected.boxes_cxcywh).abs().max() <= tolerance
    # Two queries of nearly the same score change places where rounding decides.
    assert folded.logits.shape == expected.logits.shape
    for at in itertools.product(range(len(expected.logits)), range(len(images))):
        ours, theirs = ((found.logits[at], found.boxes_cxcywh[at]) for found in (folded, expected))
        assert matched_difference(ours, theirs) <= tolerance


def test_folding_leaves_the_model_alone() -> None:
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fold(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["rtdetr-n", "rtdetr-r18"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build_model(name, num_classes=6).train()
    randomise(model, seed=1)
    denoising = make_denoising_queries(TARGETS, num_classes=6, queries=8, generator=torch.Generator().manual_seed(0))
    output = model(torch.rand(3, 3, 64, 64), denoising)
    assert output.denoising_logits is not None and output.denoising_boxes_cxcywh is not None
    parts = (
        output.logits,
        output.boxes_cxcywh,
        output.encoder_logits,
        output.encoder_boxes_cxcywh,
        output.denoising_logits,
        output.denoising_boxes_cxcywh,
    )
    sum(part.square().sum() for part in parts).backward()
    without = [
        tensor for tensor, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def reaches(output: Tensor, module: nn.Module) -> bool:
    """Whether the module learns from it."""
    parameters = list(module.parameters())
    gradients = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.any()) for gradient in gradients)


def test_boxes_learn_from_their_own_layer_and_the_next() -> None:
    """As in DINO's "look forward twice"; boxes further back, and the selection, learn from their own losses alone."""
    model = build_model(SMALL.override(["decoder.layers=3"])).train()
    randomise(model, seed=0)
    output = model(torch.rand(2, 3, 64, 96))
    heads = model.decoder.box_heads
    learns = [[reaches(boxes, head) for head in heads] for boxes in output.boxes_cxcywh]
    assert learns == [[True, False, False], [True, True, False], [False, True, True]]
    assert not any(reaches(output.logits, head) for head in heads)
    assert not reaches(output.logits, model.query_selection)
    assert not reaches(output.boxes_cxcywh, model.query_selection)


def test_the_guess_that_edges_are_shifts_of_learns_from_itself_alone() -> None:
    model = build_model(SMALL.override(["decoder.layers=2", "decoder.box_refinement=distribution"])).train()
    randomise(model, seed=0)
    output = model(torch.rand(2, 3, 64, 96))
    guess = model.decoder.first_box_head
    assert reaches(output.edges.reference_cxcywh, guess)
    assert not reaches(output.boxes_cxcywh, guess) and not reaches(output.logits, guess)
    assert not reaches(output.boxes_cxcywh, model.query_selection)
    assert reaches(output.boxes_cxcywh[1], model.decoder.box_heads[0])  # shifts add up


def test_heads_start_at_their_prior_and_without_a_shift() -> None:
    features = torch.randn(5, 8)
    scores = make_class_head(8, 3)(torch.zeros(8)).sigmoid()
    torch.testing.assert_close(scores, torch.full((3,), PRIOR_PROBABILITY))
    assert not make_box_head(8)(features).any() and not make_edge_head(8)(features).any()


@pytest.mark.parametrize(("height", "width"), [(96, 96), (32, 32), (64, 160)])
def test_a_small_picture_gives_as_many_queries_as_it_has_tokens(height: int, width: int) -> None:
    tokens = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    with torch.no_grad():
        output = small().eval()(torch.rand(1, 3, height, width))
    assert output.logits.shape == (3, 1, min(300, tokens), 6)
    assert output.boxes_cxcywh.isfinite().all()


def test_a_picture_gives_the_same_result_alone_and_in_a_batch() -> None:
    model = small().eval().double()
    images = torch.rand(3, 3, 64, 96).double()
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    assert torch.allclose(together.logits[:, 1:2], alone.logits, atol=1e-10)


def test_denoising_queries_do_not_change_what_the_other_queries_see() -> None:
    model = small().double().eval()
    randomise(model, seed=5)
    targets = Targets(labels=TARGETS.labels, boxes_cxcywh=TARGETS.boxes_cxcywh.double(), counts=TARGETS.counts)
    denoising = make_denoising_queries(targets, num_classes=6, queries=8, generator=torch.Generator().manual_seed(0))
    images = torch.rand(3, 3, 64, 64).double()
    with torch.no_grad():
        with_them, without = model(images, denoising), model(images)
    assert torch.allclose(with_them.logits, without.logits, atol=1e-9)
    assert torch.allclose(with_them.boxes_cxcywh, without.boxes_cxcywh, atol=1e-9)


def test_attention_is_the_same_in_training_and_in_evaluation() -> None:
    model = small().double().eval()
    randomise(model, seed=5)
    images = torch.rand(1, 3, 64, 64).double()
    with torch.no_grad():
        fused = model(images)
    explicit = model(images)  # with gradients, attention takes the training path
    assert torch.allclose(fused.logits, explicit.logits, atol=1e-10)


@pytest.mark.parametrize(("denoising", "more_groups"), [(0, 1), (3, 0), (3, 1)])
def test_attention_within_groups_is_attention_under_their_mask(denoising: int, more_groups: int) -> None:
    torch.manual_seed(0)
    chosen, copies = 5, 4
    noised, total = denoising * copies, denoising * copies + (1 + more_groups) * chosen
    groups = QueryGroups(denoising=denoising, copies=copies, chosen=chosen, total=total, device=torch.device("cpu"))
    group = [n // copies for n in range(noised)] + [100 + n // chosen for n in range(total - noised)]
    expected = [[a == b or (a < 100 and b == 100) for b in group] for a in group]
    assert torch.equal(groups.mask, torch.tensor(expected))

    inputs = [torch.randn(2, 3, total, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    within = attend(*inputs, groups)
    masked = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=groups.mask)
    torch.testing.assert_close(within, masked, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(within)
    gradients = [torch.autograd.grad(out, inputs, upstream) for out in (within, masked)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_attention_of_many_tokens_keeps_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """8400 tokens (variant C at 640 pixels) would take gigabytes."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    largest: list[int] = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        largest[-1] = max(largest[-1], tensor.numel())
        return tensor

    results = []
    for limit in (9, 8):  # as many as are let through; one more
        monkeypatch.setattr("setdet.models.self_attention.MANY_TOKENS", limit)
        largest.append(0)
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
            attended = attend(*inputs)
        results.append((attended, *torch.autograd.grad(attended.square().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
    assert largest == [2 * 3 * 9 * 9, 2 * 3 * 9 * 8], "all weights; queries, keys and values alone"


def test_positives_are_near_the_box_that_they_are_copies_of() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = make_denoising_queries(TARGETS, num_classes=6, queries=40, label_noise=0.0, generator=generator)
    assert queries is not None
    assert queries.groups == 20 and queries.labels.shape == (3, 20 * 2 * 2)
    batch, query = queries.positive_index
    assert torch.equal(queries.labels[batch, query], TARGETS.labels[queries.target_index])
    assert torch.equal(TARGETS.image_index[queries.target_index], batch)
    truth = TARGETS.boxes_cxcywh[queries.target_index]
    moved = (queries.boxes_cxcywh[batch, query, :2] - truth[:, :2]).abs()
    assert (moved <= truth[:, 2:] / 2 + 1e-6).all(), "a positive's corners move by less than half its size"
    assert (queries.labels[1] == 6).all(), "a picture without boxes holds padding alone"
    assert queries.copies == 2 * 2


def test_corners_and_labels_are_as_noisy_as_asked() -> None:
    truth = Targets(labels=torch.tensor([2]), boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.1, 0.2]]), counts=(1,))
    generator = torch.Generator().manual_seed(0)
    queries = make_denoising_queries(
        truth, num_classes=6, queries=500, label_noise=0.5, box_noise=0.5, generator=generator
    )
    assert queries is not None
    moved = (cxcywh_to_xyxy(queries.boxes_cxcywh[0]) - cxcywh_to_xyxy(truth.boxes_cxcywh)).abs()
    reach = moved / (0.5 * torch.tensor([0.05, 0.1, 0.05, 0.1]))  # a noise of 0.5, in half-sizes
    is_positive = torch.zeros(len(reach), dtype=torch.bool)
    is_positive[queries.positive_index[1]] = True
    positives, negatives = reach[is_positive], reach[~is_positive]
    assert len(positives) == len(negatives) == 500
    assert positives.min() < 0.1 and 0.9 < positives.max() < 1 + 1e-5
    assert 1 - 1e-5 < negatives.min() < 1.1 and 1.9 < negatives.max() < 2 + 1e-5
    # Half of the noise is applied, and one in six of the labels drawn anew is the old one.
    assert (queries.labels != 2).float().mean().item() == pytest.approx(0.25 * 5 / 6, abs=0.04)


def test_no_boxes_no_denoising() -> None:
    empty = Targets(labels=torch.zeros(0, dtype=torch.int64), boxes_cxcywh=torch.zeros(0, 4), counts=(0, 0))
    assert make_denoising_queries(empty, num_classes=6, generator=torch.Generator()) is None


def test_an_unknown_model_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rtdetr-r18'"):
        model_config("rtdetr_r18")


@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_convolutions_train_in_half_precision_as_in_single(stride: int) -> None:
    """On a CPU they take a way of their own: in and out in half precision, computed in float32."""
    torch.manual_seed(0)
    conv = GroupedConv2d(8, 8, 3, stride, padding=1, groups=8, bias=False)
    x = torch.randn(2, 8, 12, 12).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    gradient = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, conv.weight], gradient)
    exact_x = x.detach().double().requires_grad_()
    weight = conv.weight.detach().double().requires_grad_()
    exact = torch.nn.functional.conv2d(exact_x, weight, stride=stride, padding=1, groups=8)
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-6)
    expected = torch.autograd.grad(exact, [exact_x, weight], gradient.double())
    torch.testing.assert_close(found[0].double(), expected[0], rtol=2**-8, atol=1e-6)  # rounded once, at the end
    torch.testing.assert_close(found[1].double(), expected[1], rtol=1e-5, atol=1e-5)


def test_groups_of_queries_do_not_see_each_other_and_one_runs_in_evaluation() -> None:
    config = model_config("rtdetr-n", num_classes=3)
    one, three = (
        build_model(config.override(["decoder.queries=20", f"decoder.training_groups={groups}"])) for groups in (1, 3)
    )
    randomise(one, seed=0)
    three.load_state_dict(one.state_dict())
    for model in (one, three):  # the statistics of the norms stay
        model.double().eval()
    images = torch.rand(2, 3, 96, 128, dtype=torch.float64)
    torch.testing.assert_close(one(images).logits, three(images).logits, rtol=0, atol=0)
    for model in (one, three):
        model.query_selection.training = model.decoder.training = True
    targets = Targets(
        labels=torch.tensor([0]), boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.2, 0.2]]).double(), counts=(1, 0)
    )
    noise = make_denoising_queries(targets, num_classes=3, queries=4, generator=torch.Generator().manual_seed(0))
    alone, grouped = one(images, noise), three(images, noise)
    assert alone.logits.shape[2] == 20 and grouped.logits.shape[2] == 60
    torch.testing.assert_close(grouped.logits[:, :, :20], alone.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grouped.denoising_logits, alone.denoising_logits, rtol=1e-9, atol=1e-9)
    assert three(images[:, :, :32, :32]).logits.shape[2] == 20  # 21 tokens: too few for a second group


def test_edges_as_distributions_describe_any_box_within_reach() -> None:
    torch.manual_seed(0)
    reference = torch.rand(200, 4, dtype=torch.float64) * 0.3 + 0.2
    shift = (torch.rand(200, 4, dtype=torch.float64) - 0.5) * 0.5 * reference[:, 2:].repeat(1, 2)
    boxes = reference + shift
    below, share = edge_targets(boxes, reference)
    assert below.min() >= 0 and below.max() < BINS and share.min() >= 0 and share.max() <= 1
    logits = torch.full((200, 4, BINS + 1), -math.inf, dtype=torch.float64)
    logits.scatter_(2, below[..., None] + 1, share.log()[..., None])
    logits.scatter_(2, below[..., None], (1 - share).log()[..., None])
    torch.testing.assert_close(boxes_from_edges(logits, reference), boxes, rtol=1e-12, atol=1e-12)
    alike = torch.zeros(200, 4, BINS + 1, dtype=torch.float64)
    torch.testing.assert_close(boxes_from_edges(alike, reference), reference, rtol=1e-12, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        found = boxes_from_edges(logits.float(), reference.float())
    torch.testing.assert_close(found.double(), boxes, rtol=1e-6, atol=1e-6)  # mixed precision rounds no box
    inverted = torch.zeros(1, 4, BINS + 1, dtype=torch.float64)
    inverted[..., 0] = 99.0  # every edge a whole side inwards
    assert (boxes_from_edges(inverted, reference[:1])[:, 2:] > 0).all()


def test_a_model_whose_boxes_are_distributions_trains_every_parameter_and_folds() -> None:
    config = model_config("rtdetr-n", num_classes=3).override(["decoder.box_refinement=distribution"])
    model = build_model(config)
    randomise(model, seed=0)
    model.train()
    targets = Targets(
        labels=torch.tensor([0, 2]),
        boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.3, 0.2, 0.2]]),
        counts=(2, 0),
    )
    noise = make_denoising_queries(targets, num_classes=3, queries=4, generator=torch.Generator().manual_seed(0))
    output = model(torch.rand(2, 3, 64, 96), noise)
    terms = Criterion(config=LossConfig(), num_classes=3)(output, targets, noise)
    assert {"edge/decoder.2", "distill/decoder.0", "l1-guess/decoder.0", "edge/denoising.1"} <= terms.keys()
    torch.stack(list(terms.values())).sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert idle == []
    model.eval().double()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(fold(model)(images).boxes_cxcywh[-1], model(images).boxes_cxcywh[-1])
    with pytest.raises(ConfigError, match="choose one"):
        config.override(["decoder.training_groups=2"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["decoder.heads=3"], "3 heads cannot share 128 channels"),
        (["encoder.heads=3"], "3 heads cannot share 128 channels"),
        (["encoder.width=130"], "multiple of 4"),
        (["decoder.width=0"], "greater than or equal to 1"),
        (["encoder.fusion_blocks=-3"], "greater than or equal to 0"),
        (["decoder.query_source=learned", "decoder.training_groups=3"], "leave out training_groups"),
        (["decoder.query_source=learned", "decoder.rivals=true"], "leave out rivals"),
    ],
)
def test_a_model_that_no_forward_would_survive_is_not_built(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config("rtdetr-n").override(changes)


@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetr-n"])
def test_norms_are_given_dense_gradients(name: str) -> None:
    """A part of a larger tensor would take them fifty times as long on a CPU."""
    model = build_model(name, num_classes=2).train().to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    loss = model(images).logits.sum()
    nodes, waiting, seen = set(), [loss.grad_fn], []
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        waiting += [before for before, _ in node.next_functions]
        if node.name() == "NativeBatchNormBackward0":
            node.register_prehook(lambda gradients: seen.append(gradients[0]))
    loss.backward()
    assert len(seen) == sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in seen)
