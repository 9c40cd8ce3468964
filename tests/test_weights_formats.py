"""Checkpoints that others wrote: the same boxes here, and a reason where there are none."""

import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    HGNetV2Config,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)

import setdet
from oracle import build_oracle, randomise
from setdet.errors import WeightsError
from setdet.images import Preprocessing
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import MODELS
from setdet.weights import authors
from setdet.weights.classes import COCO_CATEGORIES, COCO_CLASSES, default_class_names, with_coco_spelling
from setdet.weights.files import CheckpointInfo, initialize_from, load_backbone, load_model, read_info, save_checkpoint
from setdet.weights.remap import authors_buffers, to_authors_v1, to_authors_v2
from setdet.weights.writing import write_transformers

PUBLISHED = [name for name in MODELS if name != "rtdetr-n"]


@pytest.fixture(scope="module")
def nano() -> RTDETR:
    torch.manual_seed(0)
    model = build_model("rtdetr-n", num_classes=2).eval()
    randomise(model, seed=1)
    return model


@pytest.fixture
def pth(nano: RTDETR, tmp_path: Path) -> Path:
    """A small model as the authors' version 1 saves it during training."""
    return write_v1(tmp_path / "checkpoint0071.pth", nano.state_dict())


def write_v1(path: Path, state: dict[str, Tensor]) -> Path:
    averaged = to_authors_v1(state, MODELS["rtdetr-n"])
    last = {name: torch.zeros_like(tensor) for name, tensor in averaged.items()}
    torch.save({"last_epoch": 71, "model": last, "ema": {"module": averaged, "updates": 5}}, path)
    return path


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """The same checkpoint with its averaged weights edited."""
    content = torch.load(path, weights_only=True)
    edit(content["ema"]["module"])
    torch.save(content, path)
    return path


def assert_same(loaded: RTDETR, expected: RTDETR) -> None:
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class TestAuthors:
    def test_averaged_weights_are_read_and_the_model_recognised(self, nano: RTDETR, pth: Path) -> None:
        info, model = load_model(pth)
        assert_same(model, nano)
        assert not model.training and info == read_info(pth)
        assert info.model == nano.config and info.class_names == ("class_0", "class_1")
        assert info.preprocessing.image_size == (640, 640) and info.preprocessing.resize == "stretch"
        assert info.history == {
            "read_from": "checkpoint0071.pth",
            "format": "RT-DETR authors, version 1",
            "weights": "ema",
        }

    def test_last_weights_and_bare_ones_are_read_where_there_are_no_averaged_ones(
        self, nano: RTDETR, tmp_path: Path
    ) -> None:
        state = to_authors_v1(nano.state_dict(), nano.config)
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        for content in ({"model": state}, {"ema": None, "model": wrapped}, state):
            torch.save(content, tmp_path / "w.pth")
            assert_same(load_model(tmp_path / "w.pth")[1], nano)

    def test_files_of_an_old_pytorch_are_read(self, nano: RTDETR, tmp_path: Path) -> None:
        state = to_authors_v1(nano.state_dict(), nano.config)
        torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        assert_same(load_model(tmp_path / "old.pth")[1], nano)

    def test_a_loaded_model_does_not_need_its_file(self, nano: RTDETR, pth: Path) -> None:
        _, model = load_model(pth)
        with pth.open("r+b") as file:
            file.write(b"\0" * pth.stat().st_size)
        assert_same(model, nano)

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_every_published_model_is_recognised_by_its_tensors(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = MODELS[name]
        with torch.device("meta"):
            ours = build_model(config, num_classes=80).state_dict()
        second = name.startswith("rtdetrv2-")
        state = to_authors_v2(ours, config) if second else to_authors_v1(ours, config)
        if second:
            state |= authors_buffers(config, image_size=(640, 640))
        # Frozen norms are stored without the count of batches.
        state = {n: t for n, t in state.items() if not (n.startswith("backbone.") and n.endswith("_tracked"))}
        monkeypatch.setattr(authors, "load_tensors", lambda _: {"ema": {"module": state}})
        info = authors.read_info(Path(f"x{'_dsp' if name.endswith('-dsp') else ''}_coco.pth"))
        assert info.model == config
        assert info.class_names == COCO_CLASSES

    @pytest.mark.parametrize("points", [1, 2, (2, 4, 6)])
    def test_the_second_version_says_its_input_and_its_sampling_points(
        self, points: int | tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = MODELS["rtdetrv2-r18"]
        config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"points": points})})
        with torch.device("meta"):
            state = to_authors_v2(build_model(config).state_dict(), config)
        state |= authors_buffers(config, image_size=(320, 320))
        monkeypatch.setattr(authors, "load_tensors", lambda _: {"model": state})
        info = authors.read_info(Path("x.pth"))
        assert info.model == config and info.preprocessing.image_size == (320, 320)

    def test_fine_tuning_starts_from_them(self, nano: RTDETR, pth: Path) -> None:
        tuned = build_model("rtdetr-n", num_classes=5)
        report = initialize_from(tuned, pth, ("a", "b", "c", "d", "e"))
        assert any("class heads start anew" in line for line in report)
        assert torch.equal(tuned.memory_proj[0].conv.weight, nano.memory_proj[0].conv.weight)


class TestRefusedPth:
    def test_cut_short(self, pth: Path) -> None:
        for size in (pth.stat().st_size // 2, 100, 1):
            pth.write_bytes(pth.read_bytes()[:size])
            with pytest.raises(WeightsError, match="cut short"):
                load_model(pth)

    def test_differences_are_counted_and_the_first_three_named(self, pth: Path) -> None:
        def edit(state: dict[str, Tensor]) -> None:
            for name in list(state)[:4]:
                del state[name]

        with pytest.raises(
            WeightsError, match=r"nearest, rtdetr-n, 4 differences: (backbone\.stem\S+ is missing[;.] ?){3}$"
        ):
            load_model(change(pth, edit))

    def test_tensors_that_no_model_has(self, pth: Path) -> None:
        with pytest.raises(WeightsError, match="1 differences: decoder.tgt_embed.weight is not part of the model"):
            load_model(change(pth, lambda state: state.update({"decoder.tgt_embed.weight": torch.zeros(1)})))

    def test_shapes_of_another_model(self, pth: Path) -> None:
        def edit(state: dict[str, Tensor]) -> None:
            state["decoder.enc_output.0.bias"] = torch.zeros(7)

        with pytest.raises(WeightsError, match=r"decoder.enc_output.0.bias has shape \(7,\), expected \(128,\)"):
            load_model(change(pth, edit))

    def test_weights_that_are_no_floating_point_numbers(self, pth: Path) -> None:
        def edit(state: dict[str, Tensor]) -> None:
            state["decoder.enc_output.0.bias"] = torch.zeros(128, dtype=torch.int8)

        with pytest.raises(WeightsError, match=r"decoder.enc_output.0.bias holds int8, expected floating point"):
            load_model(change(pth, edit))

    def test_nan(self, pth: Path) -> None:
        with pytest.raises(WeightsError, match="1 tensors hold NaN or infinity, first: decoder.enc_output.0.bias"):
            load_model(change(pth, lambda state: state["decoder.enc_output.0.bias"].fill_(torch.nan)))

    @pytest.mark.parametrize(
        "content",
        [{"epoch": 3}, {"model": {}}, [1, 2], {"model": {1: torch.zeros(1)}}, {"model": {"fc.weight": torch.zeros(1)}}],
    )
    def test_no_detector_in_it(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"holds no weights: expected|is no RT-DETR of its authors: decoder\."):
            load_model(tmp_path / "w.pth")

    @pytest.mark.parametrize("bare", [True, False])
    def test_pickled_code_is_named_and_not_executed(self, bare: bool, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[object, ...]:
                return (exec, (f"open({str(tmp_path / 'executed')!r}, 'w')",))

        path = tmp_path / "w.pth"
        if bare:
            path.write_bytes(pickle.dumps(Bomb()))
        else:
            torch.save({"model": Bomb()}, path)
        with pytest.raises(WeightsError, match="never executed"):
            load_model(path)
        assert not (tmp_path / "executed").exists()

    def test_ultralytics(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("ultralytics.nn.tasks")
        kind = type("RTDETRDetectionModel", (), {"__module__": "ultralytics.nn.tasks"})
        module.RTDETRDetectionModel = kind  # type: ignore[attr-defined]
        for name in ("ultralytics", "ultralytics.nn", "ultralytics.nn.tasks"):
            monkeypatch.setitem(sys.modules, name, module)
        torch.save({"model": kind()}, tmp_path / "rtdetr-l.pt")
        with pytest.raises(WeightsError, match=r"Ultralytics: a pickled Python object \(ultralytics.* of AGPL-3.0"):
            load_model(tmp_path / "rtdetr-l.pt")


def transformers_config(*, version: int = 1, **changes: Any) -> Any:
    """A tiny HGNetV2 detector."""
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 32, 64],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 32, 64, 64],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        hidden_sizes=[16, 32, 64, 64],
        out_features=["stage2", "stage3", "stage4"],
    )
    values = {
        "backbone_config": backbone,
        "encoder_in_channels": [32, 64, 64],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 48,
        "encoder_attention_heads": 4,
        "d_model": 32,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 40,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "num_queries": 20,
        "id2label": {0: "scratch", 1: "dent", 2: "pit"},
        "label2id": {"scratch": 0, "dent": 1, "pit": 2},
    }
    return (RTDetrConfig if version == 1 else RTDetrV2Config)(**values | changes)


def saved(folder: Path, config: Any) -> Any:
    """A model of `transformers` with random weights, written to `folder`."""
    kind = RTDetrForObjectDetection if isinstance(config, RTDetrConfig) else RTDetrV2ForObjectDetection
    model = kind(config).eval()
    randomise(model, seed=3)
    if kind is RTDetrV2ForObjectDetection:  # its heads are there twice
        model.class_embed.load_state_dict(model.model.decoder.class_embed.state_dict())
        model.bbox_embed.load_state_dict(model.model.decoder.bbox_embed.state_dict())
        for layer in model.model.decoder.layers:  # a buffer, not a weight
            layer.encoder_attn.n_points_scale.fill_(1 / config.decoder_n_points)
    model.save_pretrained(folder)
    return model


def last_layer(model: RTDETR, images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        output = model(images)
    return output.logits[-1], output.boxes_cxcywh[-1]


def assert_same_output(model: RTDETR, theirs: Any, *, tolerance: float = 1e-5) -> None:
    images = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(5))
    logits, boxes = last_layer(model, images)
    with torch.no_grad():
        expected = theirs(images)
    assert float(logits.max() - logits.min()) > 1
    # The two may order queries of nearly equal scores differently.
    a = torch.cat([logits, boxes], dim=2)[0]
    b = torch.cat([expected.logits, expected.pred_boxes], dim=2)[0]
    nearest = torch.cdist(a, b).argmin(dim=1)
    assert torch.equal(nearest.sort().values, torch.arange(len(a)))
    assert float((a - b[nearest]).abs().max()) <= tolerance


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


class TestTransformers:
    @pytest.mark.parametrize(
        ("version", "changes"),
        [
            (1, {}),
            (1, {"freeze_backbone_batch_norms": False, "decoder_n_points": 2}),
            (2, {"freeze_backbone_batch_norms": False}),
            (2, {"decoder_method": "discrete"}),
        ],
    )
    def test_a_saved_folder_gives_the_same_output(self, version: int, changes: dict[str, Any], tmp_path: Path) -> None:
        theirs = saved(tmp_path, transformers_config(version=version, **changes))
        (tmp_path / "preprocessor_config.json").write_text(
            '{"do_normalize": false, "size": {"height": 96, "width": 64}}'
        )
        info, model = load_model(tmp_path)
        assert_same_output(model, theirs)
        assert info == read_info(tmp_path) == read_info(tmp_path / "model.safetensors")
        assert info.class_names == ("scratch", "dent", "pit") and info.model.decoder.queries == 20
        assert info.model.name == ("rtdetr-custom" if version == 1 else "rtdetrv2-custom")
        assert info.preprocessing.image_size == (96, 64)

    def test_what_it_is_can_be_read_without_torch(self, tmp_path: Path) -> None:
        transformers_config().save_pretrained(tmp_path / "folder")
        (tmp_path / "w.pth").write_bytes(b"PK")
        code = (
            "import sys; sys.modules['torch'] = None\n"
            "from pathlib import Path; from setdet.weights.files import read_info\n"
            "print(*read_info(Path(sys.argv[1], 'folder')).class_names)\n"
            "sys.modules.pop('torch'); sys.path[:] = []; sys.meta_path[:] = []\n"
            "read_info(Path(sys.argv[1], 'w.pth'))"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
        assert done.stdout == "scratch dent pit\n"
        assert "MissingExtraError: Reading" in done.stderr and "pip install 'setdet[train]'" in done.stderr

    def test_a_published_size_is_named(self, tmp_path: Path) -> None:
        config = MODELS["rtdetr-r18"]  # with fewer queries, which a small picture has enough tokens for
        config = config.model_copy(update={"decoder": config.decoder.model_copy(update={"queries": 50})})
        theirs = build_oracle(config)
        randomise(theirs, seed=2)
        theirs.save_pretrained(tmp_path)
        info, model = load_model(tmp_path)
        assert info.model == config and info.class_names == COCO_CLASSES
        assert info.preprocessing.image_size == (640, 640)
        assert_same_output(model, theirs, tolerance=1e-3)

    @pytest.mark.parametrize(
        ("file", "changes", "message"),
        [
            ("config.json", {"model_type": "d_fine"}, "describes the model 'd_fine'"),
            ("config.json", {"learn_initial_query": True}, "learn_initial_query is True, which no model here"),
            ("config.json", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
            (
                "config.json",
                {"decoder_layers": 3},
                r"the rtdetr-custom that config.json describes, \d+ differences: (\S+ is missing[;.] ?){3}",
            ),
            ("config.json", {"backbone_config": {"model_type": "swin"}}, "has the backbone 'swin'"),
            ("config.json", {"backbone": "resnet50d", "use_timm_backbone": True}, "backbone from another library"),
            ("config.json", {"id2label": {"0": "a", "2": "b"}}, "without gaps"),
            ("config.json", {"d_model": "wide"}, "decoder.width"),
            ("config.json", {"id2label": {"0": "N/A", "1": "N/A"}}, "1 names stand for several labels"),
            ("config.json", {"decoder_method": "other"}, "decoder_method is 'other'"),
            ("config.json", {"backbone_config": {"hidden_sizes": None}}, "a value of another kind"),
            ("preprocessor_config.json", {"resample": 3}, "resample is 3"),
            ("preprocessor_config.json", {"rescale_factor": None}, "a value of another kind"),
            ("preprocessor_config.json", {"do_normalize": True}, "do_normalize is True"),
            ("preprocessor_config.json", {"size": {"shortest_edge": 640}}, "expected a height and a width"),
            ("preprocessor_config.json", {"size": {"height": 100, "width": 100}}, "multiples of 32"),
            ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ],
    )
    def test_what_cannot_be_followed_is_refused_by_name(
        self, file: str, changes: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        config = transformers_config()
        config.save_pretrained(tmp_path)
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        rewrite(tmp_path / file, **changes)
        with pytest.raises(WeightsError, match=message):
            load_model(tmp_path)

    def test_broken_files_are_named(self, tmp_path: Path) -> None:
        saved(tmp_path, transformers_config())
        weights = tmp_path / "model.safetensors"
        state = load_file(weights)
        save_file(state | {"model.enc_output.0.bias": torch.full((32,), torch.nan)}, weights)
        with pytest.raises(WeightsError, match="1 tensors hold NaN or infinity, first: model.enc_output.0.bias"):
            load_model(tmp_path)
        state.pop("model.decoder.layers.1.self_attn.k_proj.weight")
        save_file(state, weights)
        with pytest.raises(
            WeightsError, match="1 differences: model.decoder.layers.1.self_attn.k_proj.weight is missing"
        ):
            load_model(tmp_path)
        weights.write_bytes(weights.read_bytes()[:500])
        with pytest.raises(WeightsError, match="cut short"):
            load_model(tmp_path)
        weights.unlink()
        with pytest.raises(WeightsError, match="no model.safetensors"):
            load_model(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(WeightsError, match=r"config\.json: cannot be read"):
            read_info(tmp_path)


def test_one_call_loads_them_all(nano: RTDETR, pth: Path, tmp_path: Path) -> None:
    info = read_info(pth)
    ours, folder = tmp_path / "w.safetensors", tmp_path / "folder"
    save_checkpoint(ours, state=nano.state_dict(), info=info)
    write_transformers(folder, info=info, state=nano.state_dict())
    picture = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    found = [setdet.load(path, device="cpu").predict([picture], threshold=0)[0] for path in (ours, pth, folder)]
    for other in found[1:]:
        assert np.array_equal(other.boxes_xyxy_px, found[0].boxes_xyxy_px)
        assert np.array_equal(other.scores, found[0].scores) and other.class_names == info.class_names


class TestBackbone:
    @pytest.mark.parametrize("prefix", ["", "module."])
    def test_imagenet_weights_are_taken_over(self, prefix: str, nano: RTDETR, tmp_path: Path) -> None:
        state = to_authors_v1(nano.state_dict(), nano.config)
        state = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
        torch.save(
            {f"{prefix}{n}": t for n, t in state.items()} | {f"{prefix}fc.weight": torch.zeros(3)}, tmp_path / "b.pth"
        )
        model = build_model("rtdetr-n", num_classes=4)
        head = model.query_selection.class_head.weight.clone()
        assert "backbone from" in load_backbone(model, tmp_path / "b.pth")[0]
        assert_same(model.backbone, nano.backbone)  # type: ignore[arg-type]
        assert torch.equal(model.query_selection.class_head.weight, head)

    def test_so_is_the_backbone_of_a_detector(self, nano: RTDETR, pth: Path) -> None:
        model = build_model("rtdetr-n", num_classes=4)
        load_backbone(model, pth)
        assert_same(model.backbone, nano.backbone)  # type: ignore[arg-type]

    def test_another_backbone_is_refused(self, nano: RTDETR, pth: Path, tmp_path: Path) -> None:
        model = build_model("rtdetr-r18", num_classes=4)
        with pytest.raises(
            WeightsError, match="does not fit the backbone of rtdetr-r18, .* differences: backbone.stem"
        ):
            load_backbone(model, pth)
        torch.save({"stem.stem1.conv.weight": torch.zeros(1)}, tmp_path / "b.pth")
        with pytest.raises(WeightsError, match="is no backbone of rtdetr-r18: 1 tensors belong to no known module"):
            load_backbone(model, tmp_path / "b.pth")


def test_coco_has_80_classes_and_ids_up_to_90() -> None:
    assert len(COCO_CLASSES) == 80 and COCO_CLASSES[0] == "person" and COCO_CLASSES[79] == "toothbrush"
    assert sorted(set(range(1, 91)) - COCO_CATEGORIES.keys()) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert list(COCO_CATEGORIES) == sorted(COCO_CATEGORIES)
    assert COCO_CATEGORIES[62] == "chair" and COCO_CATEGORIES[85] == "clock" and COCO_CATEGORIES[44] == "bottle"
    by_id = default_class_names(91)
    assert by_id[90] == "toothbrush" and by_id[12] == "class_12" and len(set(by_id)) == 91
    assert default_class_names(3) == ("class_0", "class_1", "class_2")


def test_coco_in_the_spelling_of_voc_is_brought_to_coco() -> None:
    spelled = tuple({"couch": "sofa", "tv": "tvmonitor"}.get(name, name) for name in COCO_CLASSES)
    assert with_coco_spelling(spelled) == COCO_CLASSES
    assert with_coco_spelling(("sofa", "chair")) == ("sofa", "chair")


_MEASURE = """
import re, sys
from pathlib import Path

import torch
import setdet.weights.authors, setdet.weights.transformers
from setdet.models.rtdetr import build_model
from setdet.weights.files import load_model, read_info

def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

path = Path(sys.argv[1])
with torch.device("meta"):
    build_model("rtdetr-n")  # brings modules of torch into memory, once
read_info(path)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
_, model = load_model(path)
print(memory("VmHWM") - before - sum(t.numel() * t.element_size() for t in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize("kind", ["authors", pytest.param("transformers", marks=pytest.mark.slow)])
def test_loading_takes_little_more_memory_than_the_file_and_the_model(kind: str, tmp_path: Path) -> None:
    config = MODELS["rtdetr-r50"]  # 43 million parameters
    with torch.device("meta"):
        shapes = build_model(config).state_dict()
    state = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()}
    if kind == "authors":
        path = file = tmp_path / "w.pth"
        torch.save({"ema": {"module": to_authors_v1(state, config)}}, path)
    else:
        path, file = tmp_path / "out", tmp_path / "out" / "model.safetensors"
        info = CheckpointInfo(
            model=config, class_names=COCO_CLASSES, preprocessing=Preprocessing(image_size=(640, 640))
        )
        write_transformers(path, info=info, state=state)
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 1.2 * file.stat().st_size
