"""The whole forward pass against `transformers`' RTDetr and RTDetrV2 with random weights, layer by layer.

The quick suite compares small pictures; `pytest -m slow` compares every architecture at 640×640, at 320×480, and in a
batch of three.
"""

import pytest
import torch

from oracle import build_oracle, copy_weights, matched_difference, randomise
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def compare(
    name: str, *, sizes: list[tuple[int, int, int]], dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)
) -> None:
    """Compares every layer of every picture, for batches of (pictures, height, width)."""
    oracle = build_oracle(MODELS[name])
    randomise(oracle, seed=7)
    model = build_model(name).eval()
    copy_weights(oracle, model)
    for dtype in sorted(dtypes, key=lambda dtype: dtype.itemsize):  # widening loses nothing
        oracle, model = oracle.to(dtype), model.to(dtype)
        for batch, height, width in sizes:
            images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height)).to(dtype)
            with torch.no_grad():
                theirs, ours = oracle(images), model(images)
            assert float(ours.logits.max() - ours.logits.min()) > 5, "logits too close to tell a difference"
            differences = {}
            for image in range(batch):
                for layer in range(len(ours.logits)):
                    differences[f"picture {image}, decoder layer {layer}"] = matched_difference(
                        (ours.logits[layer, image], ours.boxes_cxcywh[layer, image]),
                        (theirs.intermediate_logits[image, layer], theirs.intermediate_reference_points[image, layer]),
                    )
                differences[f"picture {image}, encoder"] = matched_difference(
                    (ours.encoder_logits[image], ours.encoder_boxes_cxcywh[image]),
                    (theirs.enc_topk_logits[image], theirs.enc_topk_bboxes[image]),
                )
            print(f"{name} {batch}×{height}×{width} {dtype}: largest difference {max(differences.values()):.1e}")
            wrong = {place: value for place, value in differences.items() if not value <= TOLERANCE[dtype]}
            assert wrong == {}, f"{name} {batch}×{height}×{width} {dtype}"


@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetr-r50", "rtdetr-hgnetv2-l", "rtdetrv2-r18"])
def test_every_layer_matches_transformers(name: str) -> None:
    compare(name, sizes=[(1, 192, 192), (2, 96, 160)])


def test_discrete_sampling_matches_transformers() -> None:
    # In float64 alone: at float32, one point in a hundred thousand lies so near the border of two cells that the two
    # read different ones.
    compare("rtdetrv2-r18-dsp", sizes=[(2, 128, 128), (1, 96, 160)], dtypes=(torch.float64,))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "rtdetr-r18",
        "rtdetr-r34",
        "rtdetr-r50",
        "rtdetr-r101",
        "rtdetr-hgnetv2-l",
        "rtdetr-hgnetv2-x",
        "rtdetr-hgnetv2-h",
        "rtdetrv2-r18",
        "rtdetrv2-r50",
    ],
)
def test_every_layer_matches_transformers_at_full_size(name: str) -> None:
    compare(name, sizes=[(1, 640, 640), (1, 320, 480), (3, 320, 320)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtdetrv2-r18-dsp", "rtdetrv2-r50-dsp"])
def test_discrete_sampling_matches_transformers_at_full_size(name: str) -> None:
    compare(name, sizes=[(1, 640, 640), (1, 320, 480), (3, 320, 320)], dtypes=(torch.float64,))
