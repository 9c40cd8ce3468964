"""Recipes: functions that return a `TrainConfig`. Change a field with `model_copy(update=…)` or `--set`."""

from collections.abc import Callable
from typing import Any

from setdet.config import suggest
from setdet.data.transforms import AugmentConfig, published_scales
from setdet.errors import ConfigError
from setdet.losses.config import LossConfig
from setdet.training.config import TrainConfig

# Published learning rates of pretrained backbones (authors' configurations), where they are not 1e-5.
_V1_BACKBONE_RATE = {"r101": 1e-6, "hgnetv2-l": 5e-6, "hgnetv2-x": 1e-6, "hgnetv2-h": 5e-6}
_V2_BACKBONE_RATE = _V1_BACKBONE_RATE | {"r18": 1e-4, "r34": 5e-5}
# The deeper backbones keep their stem and the statistics of their norms.
_FROZEN = ("backbone.stem", "norms")
_NOT_FROZEN = {"n", "r18", "r34"}


def _backbone_of(model: str) -> str:
    """'r50' of 'rtdetrv2-r50-dsp'."""
    return model.partition("-")[2].removesuffix("-dsp")


def default(
    *,
    model: str = "rtdetr-r18",
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] = (640, 640),
) -> TrainConfig:
    """For industrial data sets of hundreds to thousands of pictures, from scratch or fine-tuned.

    Queries are told of their rivals (`decoder.rivals`), since so few pictures don't teach a decoder to find every
    object once (rtdetr-n pretrained on surfaces, 160 pixels, 12 epochs on four fifths of NEU-DET's training split,
    measured on the rest, one seed: AP 0.378 and AP50 0.695, without 0.367 and 0.666).

    Muon in place of AdamW and the matchability-aware loss, which learn faster from scratch (rtdetr-n, 160 pixels, 12
    epochs on four fifths of NEU-DET's training split, AP on the rest, one seed: 0.135 with AdamW and the published
    loss, 0.159 with the other loss, 0.258 with both, 0.313 with rivals besides). A third of the rate for weights that
    know something already (from earlier weights of rtdetr-n/surfaces, 8 epochs: 0.300, and 0.288 at the full rate;
    AdamW 0.283). Fewer queries than the paper's (such pictures hold few objects, and queries are what a small input
    spends its time on), both flips, light augmentation, a cosine to zero.

    `setdet train NEU-DET --model rtdetr-n --image-size 224 --epochs 24 --select-on 0.2 --workers 0`, from scratch,
    takes 43 minutes of one core (AMD EPYC, Zen 4); on the part kept aside AP is 0.370, 0.384 and 0.399, AP50 0.672,
    0.705 and 0.696 (three seeds). `paper-v1` has an AP of 0.174 and 0.159 there after 72 epochs (two of the seeds), and
    0.270, 0.272 and 0.260 with rate, warm-up and average chosen for so short a run: `default` has passed these after
    9, 9 and 6 epochs.
    """
    from_scratch = init is None and backbone_weights is None
    return TrainConfig(
        model=model,
        init=init,
        backbone_weights=backbone_weights,
        image_size=image_size,
        rivals=True,
        queries=100,
        denoising_queries=100,
        optimizer="muon",
        learning_rate=6e-4 if from_scratch else 2e-4,
        batch_size=8,
        schedule="cosine",
        loss=LossConfig(classification="matchability"),
        augment=AugmentConfig(
            photometric=0.2, zoom_out=0.0, iou_crop=0.3, flip_horizontal=0.5, flip_vertical=0.5, multi_scale=()
        ),
    )


def paper_v1(
    *,
    model: str = "rtdetr-r50",
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] = (640, 640),
) -> TrainConfig:
    """The published recipe of RT-DETR's first version (CVPR 2024): COCO, 72 epochs, batches of 16, 640 pixels.

    Pictures of 480 to 800 pixels, or of 3/4 to 5/4 of another `image_size`.

    The low backbone rate and the frozen norms presume a pretrained backbone: without `init` and `backbone_weights`
    everything trains, at one rate. Published results with ImageNet backbones on COCO val2017: r18 46.5 AP, r50 53.1 AP.
    """
    pretrained = init is not None or backbone_weights is not None
    backbone = _backbone_of(model)
    return TrainConfig(
        model=model,
        init=init,
        backbone_weights=backbone_weights,
        queries=300,
        denoising_queries=100,
        epochs=72,
        image_size=image_size,
        batch_size=16,
        learning_rate=1e-4,
        backbone_rate=_V1_BACKBONE_RATE.get(backbone, 1e-5) if pretrained else None,
        freeze=_FROZEN if pretrained and backbone not in _NOT_FROZEN else (),
        schedule="constant",
        warmup_steps=2000,
        ema_decay=0.9999,
        ema_warmup_steps=2000,
        augment=AugmentConfig(multi_scale=published_scales(min(image_size))),
    )


def paper_v2(
    *,
    model: str = "rtdetrv2-r18",
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] = (640, 640),
) -> TrainConfig:
    """The published recipe of RT-DETRv2 (arXiv 2407.17140): the first version's, with a plain end and its own rates.

    R18 and R34 train for 120 epochs with a backbone that learns as fast as the rest, or half as fast, R50-m for 84,
    others for 72; the last two epochs are without strong augmentation, and R18 has no multi-scale. Published results
    with ImageNet backbones on COCO val2017: r18 48.1 AP, r50 53.4 AP.
    """
    first = paper_v1(model=model, init=init, backbone_weights=backbone_weights, image_size=image_size)
    backbone = _backbone_of(model)
    return first.model_copy(
        update={
            "epochs": {"r18": 120, "r34": 120, "r50m": 84}.get(backbone, 72),
            "plain_epochs": 2,
            "backbone_rate": first.backbone_rate and _V2_BACKBONE_RATE.get(backbone, first.backbone_rate),
            "augment": AugmentConfig() if backbone == "r18" else first.augment,
        }
    )


def deim(
    *,
    model: str = "rtdetrv2-r18",
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] = (640, 640),
) -> TrainConfig:
    """DEIM on RT-DETRv2 (Huang et al. 2025, "DEIM: DETR with Improved Matching"): the best published for this network.

    More objects a picture (mosaic and mixup, from the fifth epoch on for half of the run), the matchability-aware loss,
    a quadratic warm-up, and a rate that stays for half the run and falls to half. The mosaic is an upright one here
    (theirs turns by up to 10 degrees), and the decoder keeps its ReLU (theirs has SiLU). Published, with ImageNet
    backbones on COCO val2017: r18 49.0 AP and r34 50.9 AP after 120 epochs, r50 54.3 AP after 60.
    """
    pretrained = init is not None or backbone_weights is not None
    small = _backbone_of(model) in ("n", "r18", "r34")
    return TrainConfig(
        model=model,
        init=init,
        backbone_weights=backbone_weights,
        queries=300,
        denoising_queries=100,
        epochs=120 if small else 60,
        settle_epochs=4,
        plain_epochs=2,
        image_size=image_size,
        batch_size=16,
        learning_rate=2e-4,
        backbone_rate=2e-5 if pretrained and not small else None,
        schedule="flat-cosine",
        final_rate=0.5,
        warmup="quadratic",
        warmup_steps=2000,
        ema_decay=0.9999,
        ema_warmup_steps=2000,
        loss=LossConfig(classification="matchability"),
        augment=AugmentConfig(mosaic=0.5, mixup=0.5, multi_scale=published_scales(min(image_size))),
    )


RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "default": default,
    "paper-v1": paper_v1,
    "paper-v2": paper_v2,
    "deim": deim,
}


def recipe(
    name: str,
    *,
    model: str | None = None,
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> TrainConfig:
    """The recipe of that name, for its usual model and (height, width) or others.

    Raises:
        ConfigError: there is no recipe of that name, or a side is no multiple of 32.
    """
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe '{name}'.{suggest(name, RECIPES)}")
    if image_size is not None:
        TrainConfig.from_dict({"image_size": image_size}, source="recipe")  # an impossible size is named at once
    usual: dict[str, Any] = {"model": model, "image_size": image_size}
    weights = {"init": init, "backbone_weights": backbone_weights}
    return RECIPES[name](**weights, **{key: value for key, value in usual.items() if value is not None})
