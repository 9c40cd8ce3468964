"""Names of tensors elsewhere: every one of theirs is one of ours, and back again nothing has changed."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    HGNetV2Config,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

from setdet.errors import WeightsError
from setdet.models.rtdetr import build_model
from setdet.models.variants import MODELS, ModelConfig
from setdet.weights.remap import (
    authors_buffers,
    canonical_transformers_names,
    from_authors_backbone,
    from_authors_v1,
    from_authors_v2,
    from_transformers,
    is_authors_v2,
    to_authors_v1,
    to_authors_v2,
    to_transformers,
    transformers_buffers,
)

SIZES = {"r18": "r18vd", "r34": "r34vd", "r50m": "r50vd_m", "r50": "r50vd", "r101": "r101vd"}
AUTHORS = {f"rtdetr-{ours}": f"v1_{theirs}" for ours, theirs in SIZES.items()} | {
    "rtdetrv2-r18": "v2_rtdetrv2_r18vd_120e_coco",
    "rtdetrv2-r34": "v2_rtdetrv2_r34vd_120e_coco",
    "rtdetrv2-r50m": "v2_rtdetrv2_r50vd_m_7x_coco",
    "rtdetrv2-r50": "v2_rtdetrv2_r50vd_6x_coco",
    "rtdetrv2-r101": "v2_rtdetrv2_r101vd_6x_coco",
    "rtdetrv2-hgnetv2-l": "v2_rtdetrv2_hgnetv2_l_6x_coco",
    "rtdetrv2-hgnetv2-x": "v2_rtdetrv2_hgnetv2_x_6x_coco",
    "rtdetrv2-hgnetv2-h": "v2_rtdetrv2_hgnetv2_h_6x_coco",
}


# Of all names and shapes in the authors' models, batch counts aside: see `digest`.
DIGESTS = {
    "rtdetr-r18": "8b4359450208bbff",
    "rtdetr-r34": "6d1f75237b3bd018",
    "rtdetr-r50m": "8fc46d99f7814f12",
    "rtdetr-r50": "0bcc81572fe5b425",
    "rtdetr-r101": "ee63684bef7a0196",
    "rtdetrv2-r18": "67c74194f3fc08c5",
    "rtdetrv2-r34": "488e4d0318aec67d",
    "rtdetrv2-r50m": "c4f6ec5d35280a77",
    "rtdetrv2-r50": "e47117f38da676fb",
    "rtdetrv2-r101": "36bc14bded6f567a",
    "rtdetrv2-hgnetv2-l": "d7ce8ef32fdb25a7",
    "rtdetrv2-hgnetv2-x": "f79adb1bf7c9f6c0",
    "rtdetrv2-hgnetv2-h": "f1141cd78ccb4c82",
}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def empty(config: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes of a model, without values."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def digest(state: dict[str, Tensor]) -> str:
    """A fingerprint of names and shapes; frozen norms count no batches, so the counts are left aside."""
    lines = [f"{name} {list(shape)}" for name, shape in shapes(state).items() if not name.endswith("_batches_tracked")]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_the_names_and_shapes_are_those_of_the_authors(name: str) -> None:
    config, state = MODELS[name], empty(MODELS[name])
    if name.startswith("rtdetrv2-"):
        written = to_authors_v2(state, config) | authors_buffers(config, image_size=(640, 640))
    else:
        written = to_authors_v1(state, config)
    assert digest(written) == DIGESTS[name]


@pytest.mark.parametrize(("name", "authors"), AUTHORS.items())
def test_every_tensor_of_the_authors_is_one_of_ours(name: str, authors: str) -> None:
    folder = os.environ.get("SETDET_AUTHORS_STATE_DICTS")
    if not folder:
        pytest.skip("SETDET_AUTHORS_STATE_DICTS names no folder with the authors' tensor names")
    listed = json.loads((Path(folder) / f"{authors}.json").read_text())
    theirs = {tensor: torch.zeros(shape, device="meta") for tensor, shape in listed}
    assert is_authors_v2(theirs) == authors.startswith("v2")
    back, there = (from_authors_v2, to_authors_v2) if is_authors_v2(theirs) else (from_authors_v1, to_authors_v1)
    config, state = MODELS[name], empty(MODELS[name])
    assert shapes(back(theirs, config)) == shapes(state)
    written = shapes(there(state, config))
    if is_authors_v2(theirs):
        written |= shapes(authors_buffers(config, image_size=(640, 640)))
    assert set(shapes(theirs).items()) <= set(written.items())
    # Their frozen norms count no batches; nothing else of ours is unknown to them.
    assert all(tensor.endswith("num_batches_tracked") for tensor in written.keys() - theirs.keys())


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("rtdetrv2-")])
def test_names_and_shapes_come_back_in_every_format(name: str) -> None:
    state = empty(MODELS[name])
    for there, back in (
        (to_authors_v1, from_authors_v1),
        (to_authors_v2, from_authors_v2),
        (to_transformers, from_transformers),
    ):
        written = there(state, MODELS[name])
        assert len(written) >= len(state)
        assert shapes(back(written, MODELS[name])) == shapes(state)


@pytest.mark.parametrize("name", ["rtdetr-n", "rtdetr-r18"])
def test_values_come_back_bit_for_bit(name: str) -> None:
    config = MODELS[name]
    state = build_model(name).state_dict()
    for returned in (
        from_authors_v1(to_authors_v1(state, config), config),
        from_authors_v2(
            to_authors_v2(state, config) | authors_buffers(config, image_size=(64, 96)),
            config,
        ),
        from_transformers(to_transformers(state, config) | transformers_buffers(config), config),
    ):
        assert returned.keys() == state.keys()
        assert all(torch.equal(returned[tensor], state[tensor]) for tensor in state)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["rtdetr-n", "rtdetr-hgnetv2-l"])
def test_the_names_of_an_hgnetv2_detector_are_those_of_transformers(name: str, version: int) -> None:
    config = MODELS[name]
    stages = config.backbone.stages  # type: ignore[union-attr]
    backbone = HGNetV2Config(
        stem_channels=[3, *config.backbone.stem],  # type: ignore[union-attr]
        stage_in_channels=[stage.channels_in for stage in stages],
        stage_mid_channels=[stage.channels_mid for stage in stages],
        stage_out_channels=[stage.channels_out for stage in stages],
        stage_num_blocks=[stage.blocks for stage in stages],
        stage_numb_of_layers=[stage.layers for stage in stages],
        hidden_sizes=[stage.channels_out for stage in stages],
        out_features=["stage2", "stage3", "stage4"],
    )
    kinds = ((RTDetrConfig, RTDetrForObjectDetection), (RTDetrV2Config, RTDetrV2ForObjectDetection))
    make_config, make_model = kinds[version - 1]
    with torch.device("meta"):
        theirs = make_model(
            make_config(
                backbone_config=backbone,
                encoder_in_channels=list(config.backbone.channels),
                encoder_hidden_dim=config.encoder.width,
                encoder_ffn_dim=config.encoder.feedforward,
                encoder_attention_heads=config.encoder.heads,
                hidden_expansion=config.encoder.expansion,
                d_model=config.decoder.width,
                decoder_in_channels=[config.encoder.width] * 3,
                decoder_ffn_dim=config.decoder.feedforward,
                decoder_attention_heads=config.decoder.heads,
                decoder_layers=config.decoder.layers,
                num_labels=config.num_classes,
                freeze_backbone_batch_norms=False,
            )
        ).state_dict()
    if version == 2:  # it holds its heads a second time
        theirs = {tensor: value for tensor, value in theirs.items() if not tensor.startswith(("class_", "bbox_"))}
    assert shapes(canonical_transformers_names(theirs)) == shapes(to_transformers(empty(config), config))
    assert shapes(from_transformers(theirs, config)) == shapes(empty(config))


def test_heads_that_are_stored_twice_have_to_be_equal() -> None:
    first, second = torch.zeros(2), torch.ones(2)
    kept = canonical_transformers_names({"class_embed.0.bias": first, "model.decoder.class_embed.0.bias": first})
    assert list(kept) == ["model.decoder.class_embed.0.bias"]
    with pytest.raises(WeightsError, match="stand for one tensor, but their values differ"):
        canonical_transformers_names({"class_embed.0.bias": first, "model.decoder.class_embed.0.bias": second})


@pytest.mark.parametrize("name", ["rtdetr-r18", "rtdetr-hgnetv2-l"])
def test_a_backbone_alone_is_renamed_and_its_classifier_left_out(name: str) -> None:
    config = MODELS[name]
    state = {tensor: value for tensor, value in empty(config).items() if tensor.startswith("backbone.")}
    theirs = {
        tensor.removeprefix("backbone."): value
        for tensor, value in to_authors_v1(state, config).items()
        if not tensor.endswith("num_batches_tracked")
    }
    returned = from_authors_backbone(theirs | {"fc.weight": torch.zeros(1), "last_conv.weight": torch.zeros(1)}, config)
    assert shapes(returned) == shapes(state)


def test_a_tensor_of_no_known_module_is_named() -> None:
    with pytest.raises(
        WeightsError, match="2 tensors belong to no known module, first: neck.weight, decoder.tgt_embed"
    ):
        from_authors_v2(
            {"neck.weight": torch.zeros(1), "decoder.tgt_embed.weight": torch.zeros(1)}, MODELS["rtdetr-r18"]
        )
