"""The parts of training, each alone: schedule, average, parameter groups, loss checks, logs, configuration."""

import itertools
import json
import math
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from cases import record
from setdet.data.loader import Batch
from setdet.data.schema import Dataset, Record
from setdet.data.sources import make_splits
from setdet.data.transforms import AugmentConfig
from setdet.errors import ConfigError, OutputError, TrainingError
from setdet.models.rtdetr import build_model
from setdet.targets import Targets
from setdet.training.config import TrainConfig
from setdet.training.devices import choose_device, choose_precision
from setdet.training.ema import Ema, decay_for, warmup_for
from setdet.training.interrupt import stop_on_signal
from setdet.training.logs import MOST_SKIPPED_IN_A_ROW, LossWatch, RunLog, SkippedStep, mean_terms, total
from setdet.training.optim import (
    build_optimizer,
    frozen_modules,
    parameter_groups,
    set_rate,
    set_training_mode,
    summary,
)
from setdet.training.recipes import paper_v1, recipe
from setdet.training.schedule import rate_factor, warmup_steps_for
from setdet.training.setup import augment_in, choose_pictures, configured_model
from setdet.training.state import Progress, fingerprint, save_state
from setdet.training.step import SoundStatistics, backward, noise_generator, optimizer_step


def factors(schedule: str, *, total: int = 100, warmup: int = 10, final_rate: float = 0.0) -> list[float]:
    return [
        rate_factor(step, total_steps=total, warmup_steps=warmup, schedule=schedule, final_rate=final_rate)  # type: ignore[arg-type]
        for step in range(total)
    ]


def test_schedules() -> None:
    cosine = factors("cosine")
    assert cosine[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert 0 < cosine[-1] < 0.001
    assert all(later <= earlier for earlier, later in itertools.pairwise(cosine[10:]))
    assert set(factors("constant")[10:]) == {1.0}
    flat = factors("flat-cosine", final_rate=0.5)
    assert set(flat[10:51]) == {1.0} and flat[75] == pytest.approx(0.75) and 0.5 < flat[-1] < 0.501
    assert rate_factor(0, total_steps=1, warmup_steps=0, schedule="cosine") == 1.0
    quadratic = [
        rate_factor(step, total_steps=100, warmup_steps=10, schedule="constant", warmup="quadratic")
        for step in range(11)
    ]
    assert quadratic == pytest.approx([(step / 10) ** 2 for step in range(1, 11)] + [1.0])
    settled = [
        rate_factor(step, total_steps=100, warmup_steps=1, schedule="flat-cosine", final_rate=0.5, plain_steps=20)
        for step in range(100)
    ]
    assert settled[50] == 1.0 and settled[65] == pytest.approx(0.75) and set(settled[80:]) == {0.5}


def test_warm_up_and_average_scale_with_the_run() -> None:
    assert warmup_steps_for(527_000) == 2000
    assert warmup_steps_for(1000) == 50
    assert warmup_steps_for(1) == 1
    assert decay_for(527_000) == 0.9999 and warmup_for(0.9999) == 2000  # the published run
    assert decay_for(1000) == pytest.approx(0.95)
    assert decay_for(10) == pytest.approx(0.9)


def test_ema_follows_its_formula_and_keeps_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = Ema(model=model, decay=0.9, warmup_steps=5)
    expected = {name: value.clone().double() for name, value in model.state_dict().items()}
    for step in range(1, 8):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1) if value.dtype == torch.int64 else value.mul_(1.5).add_(0.1)
        ema.update(step=step)
        decay = 0.9 * (1 - math.exp(-step / 5))
        for name, value in model.state_dict().items():
            expected[name] = (
                value.double() if value.dtype == torch.int64 else decay * expected[name] + (1 - decay) * value
            )
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert not ema.module.training
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())


def test_parameter_groups_hold_every_parameter_once() -> None:
    model = build_model("rtdetr-n", num_classes=2)
    config = TrainConfig(learning_rate=1e-3, backbone_rate=1e-4, weight_decay=0.05)
    groups = parameter_groups(model, config)
    assert {group.title: (group.learning_rate, group.weight_decay) for group in groups} == {
        "backbone: weights": (1e-4, 0.05),
        "backbone: norms and biases": (1e-4, 0.0),
        "rest: weights": (1e-3, 0.05),
        "rest: norms and biases": (1e-3, 0.0),
    }
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    assert all(parameter.ndim == 1 for group in groups if group.weight_decay == 0 for parameter in group.parameters)

    optimizer = build_optimizer(groups, precision="fp32")
    set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 5e-5, 5e-4, 5e-4]
    table = summary(groups, model)
    assert table.row_count == 4


def test_frozen_parts_neither_train_nor_gather_statistics() -> None:
    model = build_model("rtdetr-n", num_classes=2)
    frozen = frozen_modules(model, ("norms", "encoder"))
    set_training_mode(model, frozen)
    groups = parameter_groups(model, TrainConfig(init="x", freeze=("norms", "encoder")))
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    assert not trained & {id(parameter) for parameter in model.encoder.parameters()}
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.training or id(norm.weight) in trained for norm in norms)
    assert model.decoder.training and model.backbone.training and not model.encoder.training
    assert summary(groups, model).row_count == len(groups) + 1

    with pytest.raises(ConfigError, match="no part 'bakbone'.*Known: norms, backbone, encoder"):
        frozen_modules(model, ("bakbone",))
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="Nothing to train"):
        parameter_groups(model, TrainConfig())


def test_noise_depends_on_its_place_in_the_run_alone() -> None:
    def draw(**place: int) -> float:
        generator = noise_generator(**{"seed": 0, "epoch": 0, "batch": 0, "rank": 0, **place})
        return float(torch.rand((), generator=generator))

    assert draw() == draw()
    assert len({draw(), draw(seed=1), draw(epoch=1), draw(batch=1), draw(rank=1)}) == 5


def test_pictures_go_in_from_0_to_1_and_a_gradient_counts_by_its_share() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, images: Tensor, denoising: None) -> Tensor:
            return self.scale * images.mean()

    model = Mean()
    targets = Targets(labels=torch.zeros(0, dtype=torch.int64), boxes_cxcywh=torch.zeros(0, 4), counts=(0,))
    terms = backward(
        Batch(images=torch.full((1, 3, 32, 32), 204, dtype=torch.uint8), targets=targets, indices=(0,)),
        fabric=Fabric(accelerator="cpu", devices=1),
        model=model,
        criterion=lambda output, *_: {"class": 2 * output, "box": output},  # type: ignore[dict-item, operator]
        config=TrainConfig(),
        num_classes=2,
        generator=torch.Generator(),
        share=0.25,
    )
    assert terms == {"class": pytest.approx(3.2), "box": pytest.approx(1.6)}
    assert model.scale.grad == pytest.approx(0.25 * 3 * 0.8)


def test_a_gradient_is_clipped_moves_the_weights_and_is_cleared() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = fabric.setup_optimizers(torch.optim.SGD(layer.parameters(), lr=1.0))
    layer.weight.grad = torch.tensor([[30.0, 40.0]])
    norm = optimizer_step(
        fabric=fabric,
        model=layer,
        optimizer=optimizer,  # type: ignore[arg-type]
        clip_norm=0.1,
        statistics=SoundStatistics(layer),
    )
    assert norm == 50 and layer.weight.grad is None
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[-0.06, -0.08]]))


def test_a_second_ctrl_c_acts_as_it_always_does() -> None:
    shells = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background have it ignored
    try:
        with stop_on_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.wanted
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, shells)


def test_a_fingerprint_tells_apart_all_that_is_learned_from() -> None:
    one, names = record(np.array([[1, 1, 9, 9]], dtype=np.float32), np.array([0])), ("a", "b")
    others = (
        replace(one, image=Path("other.png")),
        replace(one, boxes_xyxy_px=one.boxes_xyxy_px + 1),
        replace(one, labels=np.array([1])),
        replace(one, crowd=np.array([True])),
    )
    prints = [fingerprint((each,), names) for each in (one, *others)]
    assert len({*prints, fingerprint((one,), ("a", "c"))}) == 6
    assert fingerprint((replace(one, image=Path("moved") / one.image),), names) == prints[0]


def test_loss_watch_reads_each_batch_and_names_the_broken_one() -> None:
    watch = LossWatch()
    watch.add({"class": torch.tensor(1.0), "box": torch.tensor(2.0)}, pictures=["a.png"])
    watch.add({"class": torch.tensor(3.0)}, pictures=["b.png"])
    watch.add_step(torch.tensor(0.1))
    batches, skipped = watch.read(step=2)
    assert batches == [{"class": 1.0, "box": 2.0}, {"class": 3.0}] and skipped == []
    assert mean_terms(batches) == {"class": 2.0, "box": 1.0}
    assert watch.read(step=2) == ([], [])

    watch.add({"class": torch.tensor(1.0)}, pictures=["c.png"])
    watch.add({"class": torch.tensor(1.0), "box": torch.tensor(math.inf)}, pictures=["d.png", "e.png"])
    watch.add_step(torch.tensor(math.nan))
    batches, skipped = watch.read(step=7)
    assert batches == [{"class": 1.0}]
    assert skipped == [SkippedStep("loss (box = inf)", ("d.png", "e.png"))]


def test_loss_watch_names_the_batches_behind_a_gradient_that_is_not_finite() -> None:
    watch = LossWatch()
    for name, norm in (("a", None), ("b", 1.0), ("c", None), ("d", math.inf), ("e", 1.0)):
        watch.add({"class": torch.tensor(1.0)}, pictures=[f"{name}.png"])
        if norm is not None:
            watch.add_step(torch.tensor(norm))
    assert watch.read(step=3)[1] == [SkippedStep("gradient (norm inf)", ("c.png", "d.png"))]


def test_loss_watch_passes_over_everyday_infinities_but_not_over_nothing_else() -> None:
    watch = LossWatch()

    def step(norm: float, loss: float = 1.0) -> None:
        watch.add({"class": torch.tensor(loss)}, pictures=["a.png"])
        watch.add_step(torch.tensor(norm), everyday=True)

    step(math.inf)
    step(1.0)
    step(math.inf, loss=math.nan)
    batches, skipped = watch.read(step=3)
    assert len(batches) == 2 and skipped == [SkippedStep("loss (class = nan)", ("a.png",))]
    for _ in range(MOST_SKIPPED_IN_A_ROW - 1):
        step(math.inf)
    with pytest.raises(TrainingError, match="had to be skipped"):
        watch.read(step=22)


def test_loss_watch_gives_up_on_a_run_that_skips_every_step() -> None:
    watch = LossWatch()

    def steps(count: int, norm: float) -> None:
        for _ in range(count):
            watch.add({"class": torch.tensor(1.0)}, pictures=["a.png"])
            watch.add_step(torch.tensor(norm))
        watch.read(step=9)

    steps(MOST_SKIPPED_IN_A_ROW - 1, math.nan)
    steps(1, 1.0)
    steps(MOST_SKIPPED_IN_A_ROW - 1, math.nan)
    with pytest.raises(TrainingError, match=r"20 steps in a row up to step 9 .* gradient \(norm nan\).*a\.png"):
        steps(1, math.nan)


@pytest.mark.parametrize("room", [200, 20_000])  # PyTorch's writer hides the second's error behind one of its own
def test_a_full_disk_is_said_and_leaves_the_state_before(room: int, tmp_path: Path) -> None:
    model = nn.Linear(200, 200)
    fabric = Fabric(accelerator="cpu", devices=1)
    state = tmp_path / "state" / "state.pt"

    def save() -> None:
        save_state(
            state,
            model=model,
            ema=Ema(model=model, decay=0.9, warmup_steps=5),
            optimizer=torch.optim.AdamW(model.parameters()),
            fabric=fabric,
            progress=Progress(),
            config=TrainConfig(),
            data="",
        )

    save()
    before = state.read_bytes()

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # bytes of a file: beyond, writing fails
    try:
        with pytest.raises(OutputError, match=r"state\.pt: cannot be written \(.*File too large\).*--resume"):
            save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state.read_bytes() == before and list(state.parent.iterdir()) == [state]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    log = RunLog(folder=tmp_path, total_batches=1, done_batches=0, step=0, epoch=0, active=True)
    log._file.close()
    log._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with log, pytest.raises(OutputError, match=r"/dev/full: cannot be written \(No space left on device\)"):
        log.write({"kind": "step", "step": 1, "epoch": 1})


def test_where_every_step_was_skipped_there_is_no_loss() -> None:
    assert total({}) is None and total({"class": 1.0, "box": 0.5}) == 1.5


def test_log_drops_lines_of_lost_work_and_a_line_cut_short(tmp_path: Path) -> None:
    kept = [{"kind": "step", "step": 2, "epoch": 1}, {"kind": "epoch", "step": 3, "epoch": 1}]
    lost = [{"kind": "step", "step": 4, "epoch": 2}]
    text = "".join(json.dumps(line) + "\n" for line in [*kept, *lost])
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "st')
    with RunLog(folder=tmp_path, total_batches=9, done_batches=3, step=3, epoch=1, active=True) as log:
        log.write(
            {"kind": "step", "step": 4, "epoch": 2, "loss": 1.5, "terms": {"class": 1.5}, "images_per_second": 2.0}
        )
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[:2] == kept
    assert lines[2]["loss"] == 1.5, "a line is on disk before the log is closed"


def test_silent_log_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with RunLog(folder=tmp_path, total_batches=1, done_batches=0, step=0, epoch=0, active=False) as log:
        log.say("hello")
        log.write({"kind": "step", "step": 1, "epoch": 1})
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_precision_and_device() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_precision("bf16", "cpu") == "bf16"
    assert choose_precision("auto", "cpu") in ("bf16", "fp32")
    with pytest.raises(ConfigError, match="fp16 needs device=cuda"):
        choose_precision("fp16", "cpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="no CUDA device"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'. Did you mean 'epochs'?"),
        ({"image_size": [224, 230]}, "multiples of 32"),
        ({"image_size": [0, 224]}, "multiples of 32"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"freeze": ["backbone"]}, "'freeze' needs 'init'"),
        ({"freeze": ["backbone.stem", "encoder"], "backbone_weights": "x"}, "'freeze' of 'encoder' needs 'init'"),
        ({"architecture": ["decoder.queries=40"]}, "is a field of the run itself: --set queries=…"),
        ({"architecture": ["num_classes=7"]}, "'num_classes=7' changes none of backbone, encoder and decoder"),
        ({"batch_size": 1, "image_size": [32, 32]}, "one value to learn from"),
        ({"select_on": 0.2, "evaluate_every": 0}, "'select_on' needs evaluations"),
        ({"schedule": "linear"}, "'cosine'"),
    ],
)
def test_configuration_says_what_is_wrong(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?").replace(".", r"\.")):
        TrainConfig.from_dict(values)


def test_configuration_survives_its_file_and_documents_every_field(tmp_path: Path) -> None:
    config = recipe("default", model="rtdetr-n")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.from_yaml(tmp_path / "config.yaml") == config
    assert config.override(["learning_rate=0.001", "image_size=[224, 256]"]).image_size == (224, 256)
    assert not [name for name, field in TrainConfig.model_fields.items() if not field.description]


def test_more_plain_epochs_than_epochs() -> None:
    with pytest.raises(ConfigError, match=r"'plain_epochs' \(3\) are together more than 'epochs' \(2\)"):
        TrainConfig.from_dict({"epochs": 2, "plain_epochs": 3})


def test_pictures_are_mixed_after_the_first_epochs_for_half_of_the_run() -> None:
    mixed = AugmentConfig(mosaic=0.5, mixup=0.4, copy_blend=0.3)
    config = TrainConfig(epochs=8, settle_epochs=2, plain_epochs=1, augment=mixed)
    mixing = [augment_in(epoch, config).mosaic for epoch in range(8)]
    assert mixing == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0]
    assert [augment_in(epoch, config).iou_crop > 0 for epoch in range(8)] == [False] * 2 + [True] * 5 + [False]
    always = config.model_copy(update={"mix_epochs": 8})
    assert [augment_in(epoch, always).copy_blend for epoch in range(8)] == [0, 0, 0.3, 0.3, 0.3, 0.3, 0.3, 0]


def test_last_epochs_are_plain() -> None:
    config = recipe("paper-v1").model_copy(update={"epochs": 5, "plain_epochs": 2})
    assert augment_in(2, config) == config.augment
    plain = augment_in(3, config)
    assert (plain.photometric, plain.zoom_out, plain.iou_crop, plain.multi_scale) == (0, 0, 0, ())
    assert plain.flip_horizontal == 0.5


def test_recipes() -> None:
    ours = configured_model(recipe("default", model="rtdetr-n").override(["architecture=[encoder.variant=B]"]), 6)
    assert (ours.decoder.queries, ours.decoder.rivals, ours.encoder.variant) == (100, True, "B")
    own = configured_model(recipe("default").override(["queries=40", "rivals=false"]), 6).decoder
    assert (own.queries, own.rivals) == (40, False)
    assert not configured_model(recipe("deim"), 6).decoder.rivals
    assert (recipe("default").learning_rate, recipe("default", init="weights").learning_rate) == (6e-4, 2e-4)
    scratch, tuned = paper_v1(model="rtdetr-r50"), paper_v1(model="rtdetr-r50", init="weights")
    assert scratch.backbone_rate is None and scratch.freeze == ()
    assert tuned.backbone_rate == 1e-5 and tuned.freeze == ("backbone.stem", "norms")
    with torch.device("meta"):
        frozen_modules(build_model("rtdetr-r50", num_classes=2), tuned.freeze)
    assert recipe("paper-v1").model == "rtdetr-r50"
    assert set(paper_v1().augment.multi_scale) == set(range(480, 801, 32))
    assert set(recipe("paper-v1", image_size=(320, 320)).augment.multi_scale) == set(range(256, 385, 32))
    for name in ("paper-v1", "deim"):
        with pytest.raises(ConfigError, match="trains at 480 to 800 pixels and 'image_size' predicts at 224"):
            recipe(name).override(["image_size=[224, 224]"])
    deep = recipe("paper-v2", model="rtdetrv2-hgnetv2-l-dsp", backbone_weights="weights")
    assert deep.backbone_rate == 5e-6 and deep.freeze == ("backbone.stem", "norms")
    small = recipe("paper-v2", model="rtdetrv2-r18", backbone_weights="weights")
    assert (small.backbone_rate, small.freeze, small.epochs, small.plain_epochs) == (1e-4, (), 120, 2)
    assert recipe("paper-v2").backbone_rate is None
    assert recipe("deim", model="rtdetr-r50", init="weights").backbone_rate == 2e-5
    mixing = [augment_in(epoch, recipe("deim")).mosaic > 0 for epoch in range(120)]
    assert mixing.index(True) == 4 and sum(mixing) == 60
    with pytest.raises(ConfigError, match="multiples of 32"):
        recipe("paper-v1", image_size=(100, 100))
    with pytest.raises(ConfigError, match="Did you mean 'default'"):
        recipe("defualt", model="rtdetr-n")


@pytest.mark.parametrize("settings", [{"seed": 7}, {"select_on": 0.1}, {"evaluate_every": 0}])
def test_pictures_that_are_measured_on_later_are_never_trained_on(settings: dict[str, float]) -> None:
    records = tuple(
        Record(
            image=Path(f"{number:03}.png"),
            height=10,
            width=10,
            boxes_xyxy_px=np.array([[1, 1, 5, 5]], dtype=np.float32),
            labels=np.array([number % 3]),
            crowd=np.zeros(1, dtype=np.bool_),
        )
        for number in range(100)
    )
    dataset = Dataset(root=Path("set"), format="voc", class_names=("a", "b", "c"), splits={"train": records})
    measured_on = {record.image for record in make_splits(dataset).splits["val"]}
    pictures = choose_pictures(dataset, TrainConfig(**settings))  # type: ignore[arg-type]
    assert len(measured_on) == 20
    assert not measured_on & {record.image for record in pictures.training}
