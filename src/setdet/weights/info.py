"""What a checkpoint says of itself. No torch."""

from typing import Any

from pydantic import Field

from setdet.config import Config
from setdet.images import Preprocessing
from setdet.models.variants import ModelConfig

METADATA_KEY = "setdet"  # where our files keep `CheckpointInfo` as JSON, beside the tensors


class CheckpointInfo(Config):
    """What a checkpoint says of itself; every runtime obeys it."""

    model: ModelConfig
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    history: dict[str, Any] = Field(default_factory=dict, description="how the weights came about, free form")
