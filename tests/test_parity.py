"""The whole forward pass against `transformers`' RTDetr with random weights, layer by layer."""

import pytest
import torch
from torch import Tensor

from oracle import build_oracle, copy_weights, randomise
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS

SIZES = [(192, 192), (128, 256)]


def matched_difference(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> float:
    """Largest difference of logits and boxes between two sets of queries, whatever their order."""
    a, b = torch.cat(ours, dim=-1), torch.cat(theirs, dim=-1)
    nearest = torch.cdist(a, b).argmin(dim=-1)
    assert torch.equal(nearest.sort().values, torch.arange(a.shape[0])), "the two sets do not match one to one"
    return float((a - b[nearest]).abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetr-r50"])
def test_every_layer_matches_transformers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    oracle = build_oracle(MODELS[name])
    randomise(oracle, seed=7)
    model = build_model(name).eval()
    copy_weights(oracle, model)
    oracle, model = oracle.to(dtype), model.to(dtype)

    for height, width in SIZES:
        images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height)).to(dtype)
        with torch.no_grad():
            theirs = oracle(images)
            ours = model(images)
        assert float(ours.logits.max() - ours.logits.min()) > 5, "logits too close to tell a difference"
        for image in range(len(images)):
            for layer in range(len(ours.logits)):
                difference = matched_difference(
                    (ours.logits[layer, image], ours.boxes_cxcywh[layer, image]),
                    (theirs.intermediate_logits[image, layer], theirs.intermediate_reference_points[image, layer]),
                )
                assert difference <= tolerance, f"decoder layer {layer} at {height}×{width}"
            difference = matched_difference(
                (ours.encoder_logits[image], ours.encoder_boxes_cxcywh[image]),
                (theirs.enc_topk_logits[image], theirs.enc_topk_bboxes[image]),
            )
            assert difference <= tolerance, f"encoder at {height}×{width}"
