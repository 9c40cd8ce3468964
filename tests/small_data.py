"""Small data sets and weights for tests of the commands."""

from pathlib import Path

import cv2
import numpy as np
import torch

from setdet.images import Preprocessing
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS, DecoderConfig, EncoderConfig, ModelConfig
from setdet.weights.files import CheckpointInfo, save_checkpoint

CLASS_NAMES = ("bright", "dark")

# rtdetr-n behind its backbone, several times narrower.
SMALL: ModelConfig = MODELS["rtdetr-n"].model_copy(
    update={
        "name": "small",
        "encoder": EncoderConfig(width=32, feedforward=64, heads=2, expansion=0.5, fusion_blocks=1),
        "decoder": DecoderConfig(width=32, feedforward=64, heads=2, layers=1, queries=20),
    }
)


def voc_text(*, name: str = "bright", box: tuple[int, int, int, int] = (5, 5, 40, 40), picture: str = "0.png") -> str:
    """One VOC annotation of a picture of 64 x 64 pixels; `box` is xmin, ymin, xmax, ymax, from 1, inclusive."""
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return (
        f"<annotation><filename>{picture}</filename>"
        "<size><width>64</width><height>64</height><depth>3</depth></size>"
        f"<object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
    )


def write_voc(folder: Path, *, train: int = 8, val: int = 2) -> Path:
    """A VOC data set of grey pictures with one bright or dark square each, by split."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "annotations").mkdir()
        for index in range(count):
            image = rng.integers(100, 150, (64, 64, 3), dtype=np.uint8)
            image[4:40, 4:40] = 255 * (1 - index % 2)
            cv2.imwrite(str(folder / split / "images" / f"{index}.png"), image)
            text = voc_text(name=CLASS_NAMES[index % 2], picture=f"{index}.png")
            (folder / split / "annotations" / f"{index}.xml").write_text(text, encoding="utf-8")
    return folder


def write_weights(path: Path, *, class_names: tuple[str, ...] = CLASS_NAMES, model: ModelConfig = SMALL) -> Path:
    """Untrained weights, always the same."""
    torch.manual_seed(0)
    config = model.model_copy(update={"num_classes": len(class_names)})
    info = CheckpointInfo(
        model=config, class_names=class_names, preprocessing=Preprocessing(image_size=(64, 64)), history={}
    )
    save_checkpoint(path, state=build_model(config).state_dict(), info=info)
    return path
