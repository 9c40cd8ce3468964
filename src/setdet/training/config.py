"""Everything that decides a training run, as one frozen tree."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from setdet.config import Config
from setdet.data.transforms import AugmentConfig
from setdet.losses.config import LossConfig


class TrainConfig(Config):
    """A training run. Steps are optimiser steps; rates are per step; sizes are (height, width) in pixels.

    Where a field of warm-up, average or mixing is None, the value is derived from the length of the run, so that a run
    of ten minutes warms up and averages in proportion as one of ten days does.
    """

    model: str = Field(default="rtdetr-r18", description="which model to build; `setdet models` lists them")
    queries: int = Field(default=100, ge=1, description="encoder features selected as object queries")
    rivals: bool = Field(
        default=False,
        description="every decoder layer tells each query how better-scored ones overlap its box: fewer objects are "
        "found twice; such weights cannot be written for the authors' code or transformers",
    )
    architecture: tuple[str, ...] = Field(
        default=(),
        description="changes to backbone, encoder or decoder of the model, such as 'encoder.interaction=cross'; "
        "docs/model.md tells of them",
    )
    init: str | None = Field(
        default=None,
        description="weights to start from: a checkpoint, a run folder or a catalog name; None: from scratch",
    )
    backbone_weights: str | None = Field(
        default=None,
        description="weights for the backbone alone: a file of ImageNet weights as the authors publish them, or any "
        "detector with that backbone",
    )
    freeze: tuple[str, ...] = Field(
        default=(),
        description="parts that stay as they are: 'norms' (batch norms of the backbone), 'backbone', 'encoder', "
        "or any submodule such as 'backbone.stem'; needs `init`, or `backbone_weights` for parts of the backbone",
    )

    epochs: int = Field(default=72, ge=1, description="passes over the training pictures")
    settle_epochs: int = Field(default=0, ge=0, description="first epochs, without strong augmentation")
    mix_epochs: int | None = Field(
        default=None,
        ge=0,
        description="epochs after `settle_epochs` in which pictures are mixed (mosaic, mixup, copy-blend), where "
        "`augment` says so; None: half of the run",
    )
    plain_epochs: int = Field(default=0, ge=0, description="last epochs, without strong augmentation")
    image_size: tuple[int, int] = Field(default=(640, 640), description="network input, multiples of 32, pixels")
    batch_size: int = Field(default=8, ge=1, description="pictures in a batch, per process")
    accumulate: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="how training pictures are varied")

    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="what moves the weights: AdamW, or Muon for those that are matrices and AdamW for others",
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="peak rate")
    backbone_rate: float | None = Field(
        default=None, gt=0, description="peak rate of the backbone; None: `learning_rate`. Lower it if pretrained only"
    )
    weight_decay: float = Field(
        default=1e-4, ge=0, description="share that a step takes away, times the rate; norms and biases have none"
    )
    clip_norm: float = Field(default=0.1, gt=0, description="largest norm of a step's gradient")
    schedule: Literal["cosine", "flat-cosine", "constant"] = Field(
        default="cosine",
        description="after the warm-up: fall by a cosine; stay for half the run, then fall (to its end by the "
        "`plain_epochs`); or stay",
    )
    final_rate: float = Field(default=0.0, ge=0, le=1, description="rate at the end, as a share of the peak")
    warmup: Literal["linear", "quadratic"] = Field(default="linear", description="how the rate rises at the start")
    warmup_steps: int | None = Field(
        default=None, ge=0, description="steps of warm-up; None: 5 % of the run, at most 2000"
    )

    ema_decay: float | None = Field(
        default=None, ge=0, lt=1, description="of the averaged weights; None: averages over 2 % of the run"
    )
    ema_warmup_steps: int | None = Field(
        default=None, ge=1, description="time constant of the average's own warm-up; None: a fifth of what it averages"
    )

    loss: LossConfig = Field(default=LossConfig(), description="what is minimised")
    denoising_queries: int = Field(default=100, ge=0, description="noised boxes a picture, about; 0: no denoising")
    label_noise: float = Field(default=0.5, ge=0, le=1, description="half of this share of noised labels is redrawn")
    box_noise: float = Field(default=1.0, ge=0, description="noise of boxes, in half-sizes of the box")

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA if there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="of the forward pass; auto: bf16 where the hardware computes it, else fp32"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="decides initial weights, order, augmentation and noise")
    workers: int = Field(default=2, ge=0, description="processes that decode pictures; 0: the training process itself")

    evaluate_every: int = Field(default=1, ge=0, description="epochs between evaluations; 0: none at all")
    select_on: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="share of the training pictures kept aside to choose the best epoch on; "
        "None: no choice is made, the last averaged weights are the result and the val split is only reported on",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="epochs without a higher AP on the `select_on` part after which the run ends; None: it never ends "
        "early. A rate that falls with the schedule has its best epochs at its end: use it with schedule=constant",
    )
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, description="steps between saved states within an epoch; one is saved after each epoch"
    )
    log_every_steps: int = Field(default=20, ge=1, description="steps between lines in metrics.jsonl")

    @field_validator("image_size")
    @classmethod
    def _whole_strides(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(side < 32 or side % 32 for side in size):
            raise ValueError("height and width must be multiples of 32")
        return size

    @field_validator("architecture")
    @classmethod
    def _only_parts(cls, changes: tuple[str, ...]) -> tuple[str, ...]:
        for change in changes:
            place = change.partition("=")[0].strip()
            if place in ("decoder.queries", "decoder.rivals"):
                field = place.partition(".")[2]
                raise ValueError(f"'{place}' is a field of the run itself: --set {field}=…")
            if place.partition(".")[0] not in ("backbone", "encoder", "decoder"):
                raise ValueError(f"'{change}' changes none of backbone, encoder and decoder (as 'encoder.variant=B')")
        return changes

    @model_validator(mode="after")
    def _fits_together(self) -> "TrainConfig":
        if self.init is not None and self.backbone_weights is not None:
            raise ValueError("'init' has weights for the backbone, too: leave out 'backbone_weights'")
        if self.freeze and self.init is None and self.backbone_weights is None:
            raise ValueError("'freeze' needs 'init' or 'backbone_weights': frozen random weights never learn")
        random = [part for part in self.freeze if part != "norms" and part.partition(".")[0] != "backbone"]
        if random and self.init is None:
            raise ValueError(f"'freeze' of '{random[0]}' needs 'init': frozen random weights never learn")
        if self.settle_epochs + self.plain_epochs > self.epochs:
            raise ValueError(
                f"'settle_epochs' ({self.settle_epochs}) and 'plain_epochs' ({self.plain_epochs}) are together more "
                f"than 'epochs' ({self.epochs}): train for longer, or set them to 0"
            )
        if self.batch_size == 1 and self.image_size == (32, 32):
            raise ValueError("one picture of 32×32 leaves a norm one value to learn from: a larger batch or size")
        if self.select_on is not None and self.evaluate_every == 0:
            raise ValueError("'select_on' needs evaluations: set 'evaluate_every' to 1 or more")
        sizes, shorter = self.augment.multi_scale, min(self.image_size)
        if sizes and not min(sizes) <= shorter <= max(sizes):
            raise ValueError(
                f"'augment.multi_scale' trains at {min(sizes)} to {max(sizes)} pixels and 'image_size' predicts at "
                f"{shorter}: with a recipe that has many sizes, say --image-size (image_size=), which scales them"
            )
        if self.patience is not None and self.select_on is None:
            raise ValueError(
                "'patience' needs 'select_on': to stop by the pictures that are reported on would flatter the figure"
            )
        if self.patience is not None and self.patience < self.evaluate_every:
            raise ValueError(
                f"'patience' of {self.patience} would end the run before a second evaluation: set it to "
                f"'evaluate_every' ({self.evaluate_every}) or more"
            )
        return self
