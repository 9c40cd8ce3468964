"""Ablations as configuration: encoder variants, interactions inside S5, learned queries, points, reading out early."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from oracle import randomise
from setdet.errors import ConfigError, UsageError
from setdet.losses.config import LossConfig
from setdet.losses.criterion import Criterion
from setdet.models.attention import sample_levels
from setdet.models.denoising import make_denoising_queries
from setdet.models.deploy import fold, read_out
from setdet.models.outputs import RTDETROutput
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import MODELS, Sampling
from setdet.targets import Targets

ENCODERS = [
    ["encoder.variant=A"],
    ["encoder.variant=B"],
    ["encoder.variant=C"],
    ["encoder.variant=D"],
    ["encoder.variant=D_S5"],
    ["encoder.variant=E"],
    ["encoder.interaction=none"],
    ["encoder.interaction=cross"],
    ["encoder.variant=D_S5", "encoder.interaction=cross"],
]
DECODERS = [
    ["decoder.query_source=learned"],
    ["decoder.points=[4, 2, 1]"],
    ["decoder.sampling=discrete"],
    ["decoder.rivals=true"],
]
TARGETS = Targets(
    labels=torch.tensor([0, 5, 2]),
    boxes_cxcywh=torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.2, 0.3, 0.1, 0.1], [0.7, 0.6, 0.2, 0.5]]),
    counts=(2, 0, 1),
)


def ablated(*assignments: str, seed: int = 0) -> RTDETR:
    """rtdetr-n with fields set as on the command line, random everywhere."""
    config = MODELS["rtdetr-n"].override(["num_classes=6", "decoder.queries=40", *assignments])
    model = build_model(config)
    randomise(model, seed=seed)
    return model


@pytest.mark.parametrize("assignments", ENCODERS + DECODERS, ids=" ".join)
def test_every_ablation_trains_all_of_its_parameters(assignments: list[str]) -> None:
    model = ablated(*assignments).train()
    denoising = make_denoising_queries(TARGETS, num_classes=6, queries=8, generator=torch.Generator().manual_seed(0))
    output = model(torch.rand(3, 3, 64, 96), denoising)
    terms = Criterion(config=LossConfig(), num_classes=6)(output, TARGETS, denoising)
    parts = [part for part in vars(output).values() if part is not None]
    (torch.stack(list(terms.values())).sum() + sum(part.square().sum() for part in parts)).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert without == []


@pytest.mark.parametrize("assignments", ENCODERS + DECODERS, ids=" ".join)
def test_every_ablation_folds_and_does_not_mind_a_batch(assignments: list[str]) -> None:
    model = ablated(*assignments).double().eval()
    images = torch.rand(2, 3, 96, 64).double()
    with torch.no_grad():
        expected, folded, alone = model(images), fold(model)(images), model(images[1:])
    assert torch.allclose(folded.logits, expected.logits, atol=1e-9)
    assert torch.allclose(folded.boxes_cxcywh, expected.boxes_cxcywh, atol=1e-9)
    assert torch.allclose(alone.logits, expected.logits[:, 1:], atol=1e-9)


def test_the_default_is_the_paper() -> None:
    plain, named = build_model("rtdetr-n").state_dict(), ablated("encoder.variant=E", "encoder.interaction=aifi")
    assert plain.keys() == named.state_dict().keys()


def test_variants_relate_what_the_paper_says_they_relate() -> None:
    def reaches(variant: str) -> list[tuple[bool, bool, bool]]:
        """For each output level: whether a far corner of S3, S4, S5 reaches its first cell."""
        encoder = ablated(f"encoder.variant={variant}").double().eval().encoder
        sizes = [(256, 12, 12), (512, 6, 6), (1024, 3, 3)]
        inputs = [torch.rand(1, *size, dtype=torch.float64).requires_grad_() for size in sizes]
        outputs = encoder(tuple(inputs))
        found = []
        for output in outputs:
            gradients = torch.autograd.grad(output[..., 0, 0].sum(), inputs, retain_graph=True, allow_unused=True)
            found.append(tuple(g is not None and bool(g[..., -1, -1].abs().sum() > 0) for g in gradients))
        return found  # type: ignore[return-value]

    assert reaches("A") == [(False, False, False)] * 3
    assert reaches("B") == [(True, False, False), (False, True, False), (False, False, True)]
    assert reaches("C") == [(True, True, True)] * 3
    assert reaches("D")[0] == (True, True, True)
    assert reaches("D_S5")[0] == (False, False, True)  # S5 by attention; S3 and S4 by convolutions, which end sooner
    assert reaches("E")[0][2]


@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
def test_an_interaction_that_a_variant_has_no_place_for_is_refused(variant: str) -> None:
    with pytest.raises(ConfigError, match=f"variant {variant} has no interaction inside S5 to replace"):
        MODELS["rtdetr-n"].override([f"encoder.variant={variant}", "encoder.interaction=cross"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("decoder.points=0", "every level needs at least one point"),
        ("decoder.points=[4, 0, 4]", "every level needs at least one point"),
        ("decoder.eval_layers=4", "only 3 layers are trained"),
        ("encoder.variant=F", "Input should be 'A', 'B'"),
    ],
)
def test_settings_that_make_no_model_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MODELS["rtdetr-n"].override([assignment])


@pytest.mark.parametrize("sampling", ["bilinear", "discrete"])
@pytest.mark.parametrize("points", [(2, 2, 2), (3, 1, 2)])
def test_samples_are_those_of_plain_loops(sampling: Sampling, points: tuple[int, ...]) -> None:
    shapes, heads, channels, queries = [(4, 6), (2, 3), (1, 2)], 2, 3, 5
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, heads * channels, 32, generator=generator, dtype=torch.float64)
    locations = torch.rand(2, queries, heads, sum(points), 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    weights = torch.rand(2, queries, heads, sum(points), generator=generator, dtype=torch.float64)
    sampled = sample_levels(value, shapes, locations, weights, points=points, sampling=sampling)

    levels = [level for level, count in enumerate(points) for _ in range(count)]
    starts = [0, 24, 30]
    for image in range(2):
        for query in range(queries):
            for head in range(heads):
                expected = torch.zeros(channels, dtype=torch.float64)
                for point, level in enumerate(levels):
                    height, width = shapes[level]
                    start = starts[level]
                    plane = value[image, head * channels : (head + 1) * channels, start : start + height * width]
                    x, y = locations[image, query, head, point].tolist()
                    one = slow_sample(plane.unflatten(1, (height, width)), x * width, y * height, sampling)
                    expected += weights[image, query, head, point] * one
                found = sampled[image, query, head * channels : (head + 1) * channels]
                assert torch.allclose(found, expected, atol=1e-12)


def slow_sample(plane: Tensor, x: float, y: float, sampling: Sampling) -> Tensor:
    """A sample at (x, y), in cells from the plane's upper left corner."""
    _, height, width = plane.shape
    if sampling == "discrete":
        column, row = int((x + 0.5) // 1), int((y + 0.5) // 1)
        return plane[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]
    total = torch.zeros(len(plane), dtype=plane.dtype)
    for row in range(height):
        for column in range(width):
            share = max(0.0, 1 - abs(x - 0.5 - column)) * max(0.0, 1 - abs(y - 0.5 - row))
            total += share * plane[:, row, column]
    return total


@pytest.mark.parametrize("assignment", ["decoder.points=[4, 2, 1]", "decoder.sampling=discrete"])
def test_sampling_is_the_same_in_training_and_in_evaluation(assignment: str) -> None:
    model = ablated(assignment).double().eval()
    images = torch.rand(1, 3, 64, 96).double()
    with torch.no_grad():
        expected = model(images)
    assert torch.allclose(model(images).logits, expected.logits, atol=1e-9)


def test_discrete_sampling_leaves_the_offsets_alone() -> None:
    frozen = {
        name
        for name, parameter in ablated("decoder.sampling=discrete").named_parameters()
        if not parameter.requires_grad
    }
    assert frozen == {
        f"decoder.layers.{layer}.cross_attention.sampling_offsets.{part}"
        for layer in range(3)
        for part in ("weight", "bias")
    }


def test_learned_queries_are_the_same_for_every_picture_and_have_no_encoder_loss() -> None:
    model = ablated("decoder.query_source=learned").eval()
    with torch.no_grad():
        output = model(torch.rand(3, 3, 64, 64))
        selected = model.query_selection(torch.zeros(3, 84, 128), [(8, 8), (4, 4), (2, 2)])
    assert output.encoder_logits is None and output.encoder_boxes_cxcywh is None
    assert output.logits.shape == (3, 3, 40, 6)
    assert torch.equal(selected.content[0], selected.content[2])
    terms = Criterion(config=LossConfig(), num_classes=6)(output, TARGETS, None)
    assert terms.keys() == {f"{term}/decoder.{layer}" for term in ("class", "l1", "giou") for layer in range(3)}


def test_plain_selection_changes_the_encoder_s_class_term_alone() -> None:
    output = ablated().eval()(torch.rand(3, 3, 64, 64))
    output = replace(output, **{name: part.detach() for name, part in vars(output).items() if part is not None})
    aware = Criterion(config=LossConfig(), num_classes=6)(output, TARGETS, None)
    plain = Criterion(config=LossConfig(selection_target="one"), num_classes=6)(output, TARGETS, None)
    assert {name for name in aware if not torch.equal(aware[name], plain[name])} == {"class/encoder"}
    assert plain["class/encoder"] > aware["class/encoder"]


def test_plain_selection_asks_for_a_score_of_one() -> None:
    # One query that hits the box but for a share of its area: certainty is right for one target, too much for another.
    box = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    targets = Targets(labels=torch.tensor([0]), boxes_cxcywh=box, counts=(1,))
    boxes, logits = box * torch.tensor([1, 1, 0.5, 1.0]), torch.tensor([[12.0]])
    output = RTDETROutput(
        logits=logits[None, None],
        boxes_cxcywh=boxes[None, None],
        encoder_logits=logits[None],
        encoder_boxes_cxcywh=boxes[None],
    )
    aware = Criterion(config=LossConfig(), num_classes=1)(output, targets, None)
    plain = Criterion(config=LossConfig(selection_target="one"), num_classes=1)(output, targets, None)
    assert plain["class/encoder"] < 1e-4 < aware["class/encoder"]
    assert torch.equal(plain["class/decoder.0"], aware["class/decoder.0"])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_copy_folded_to_fewer_layers_gives_that_layer_of_the_whole(layers: int) -> None:
    model = ablated().double().eval()
    images = torch.rand(1, 3, 64, 96).double()
    with torch.no_grad():
        whole, cut = model(images), fold(model, decoder_layers=layers)
        output = cut(images)
    assert len(cut.decoder.layers) == len(output.logits) == layers
    assert cut.config.decoder.eval_layers == layers and model.config.decoder.eval_layers is None
    assert torch.allclose(output.logits, whole.logits[:layers], atol=1e-9)
    assert torch.allclose(output.boxes_cxcywh, whole.boxes_cxcywh[:layers], atol=1e-9)


def test_fewer_queries_are_the_best_of_them() -> None:
    model = ablated().double().eval()
    images = torch.rand(1, 3, 64, 96).double()
    with torch.no_grad():
        whole, cut = model(images), fold(model, queries=10)(images)
        fewer = build_model(MODELS["rtdetr-n"].override(["num_classes=6", "decoder.queries=10"])).double().eval()
        fewer.load_state_dict(model.state_dict())
        trained_so = fewer(images)
    assert cut.logits.shape[2] == 10
    assert torch.allclose(cut.encoder_logits, whole.encoder_logits[:, :10], atol=1e-9)
    assert torch.allclose(cut.logits, trained_so.logits, atol=1e-9)


def test_reading_out_goes_up_and_down_and_leaves_training_and_the_configuration_alone() -> None:
    model = ablated().eval()
    config, images = model.config, torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        read_out(model, decoder_layers=1, queries=7)
        assert model(images).logits.shape == (1, 1, 7, 6)
        assert fold(model)(images).logits.shape == (1, 1, 7, 6)
        read_out(model, decoder_layers=3, queries=40)
        assert torch.equal(model(images).logits, before.logits)
        read_out(model, decoder_layers=1)
        assert model.train()(images).logits.shape[0] == 3
    assert model.config == config


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"decoder_layers": 0}, "rtdetr-n has 3; ask for 1 to 3"),
        ({"decoder_layers": 4}, "rtdetr-n has 3; ask for 1 to 3"),
        ({"queries": 0}, "trained to select 40; ask for 1 to 40"),
        ({"queries": 41}, "trained to select 40; ask for 1 to 40"),
    ],
)
def test_more_than_was_trained_cannot_be_read_out(wish: dict[str, int], message: str) -> None:
    model = ablated()
    with pytest.raises(UsageError, match=message):
        read_out(model, **wish)
    with pytest.raises(UsageError, match=message):
        fold(model, **wish)


def test_learned_queries_cannot_be_cut() -> None:
    with pytest.raises(UsageError, match="have no order to cut them by"):
        read_out(ablated("decoder.query_source=learned"), queries=10)
