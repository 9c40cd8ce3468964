"""Recipes: functions that return a `TrainConfig`. Change a field with `model_copy(update=…)` or `--set`."""

from collections.abc import Callable
from typing import Any

from setdet.config import suggest
from setdet.data.transforms import AugmentConfig, published_scales
from setdet.errors import ConfigError
from setdet.training.config import TrainConfig

# Published learning rates of pretrained backbones (authors' configurations of the first version).
_PRETRAINED_BACKBONE_RATE = {"rtdetr-r101": 1e-6}
_FROZEN_IN_PAPER = {
    "rtdetr-r50m": ("backbone.stem", "norms"),
    "rtdetr-r50": ("backbone.stem", "norms"),
    "rtdetr-r101": ("backbone.stem", "norms"),
}


def default(
    *,
    model: str = "rtdetr-r18",
    init: str | None = None,
    backbone_weights: str | None = None,
    image_size: tuple[int, int] = (640, 640),
) -> TrainConfig:
    """For industrial data sets of hundreds to thousands of pictures, from scratch or fine-tuned.

    Fewer queries than the paper's (such pictures hold few objects, and queries are what a small input spends its
    time on), both flips, light augmentation, a cosine to zero.
    """
    return TrainConfig(
        model=model,
        init=init,
        backbone_weights=backbone_weights,
        image_size=image_size,
        queries=100,
        denoising_queries=100,
        learning_rate=2e-4,
        batch_size=8,
        schedule="cosine",
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
        backbone_rate=_PRETRAINED_BACKBONE_RATE.get(model, 1e-5) if pretrained else None,
        freeze=_FROZEN_IN_PAPER.get(model, ()) if pretrained else (),
        schedule="constant",
        warmup_steps=2000,
        ema_decay=0.9999,
        ema_warmup_steps=2000,
        augment=AugmentConfig(multi_scale=published_scales(min(image_size))),
    )


RECIPES: dict[str, Callable[..., TrainConfig]] = {"default": default, "paper-v1": paper_v1}


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
