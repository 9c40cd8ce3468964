"""Weights on their way out: what is written is what their code loads, and what comes back is bit for bit the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, RTDetrForObjectDetection, RTDetrV2ForObjectDetection
from typer.testing import CliRunner

from oracle import randomise
from setdet.cli import app, main
from setdet.errors import OutputError, UsageError
from setdet.images import Preprocessing
from setdet.models.deploy import read_out
from setdet.models.rtdetr import RTDETR, build_model
from setdet.models.variants import MODELS, ModelConfig
from setdet.weights.files import CheckpointInfo, load_model, save_checkpoint
from setdet.weights.remap import from_authors_v1, from_authors_v2
from setdet.weights.writing import write_authors, write_transformers

NAMES = ("scratch", "dent")


def tiny(name: str = "rtdetr-n", **decoder: Any) -> ModelConfig:
    """The backbone of rtdetr-n in front of something narrow."""
    base = MODELS["rtdetr-n"]
    values = {"width": 32, "feedforward": 48, "heads": 4, "layers": 2, "queries": 20} | decoder
    return base.model_copy(
        update={
            "name": name,
            "num_classes": 2,
            "encoder": base.encoder.model_copy(update={"width": 32, "feedforward": 48, "heads": 4}),
            "decoder": type(base.decoder).from_dict(values),
        }
    )


def made(config: ModelConfig, **preprocessing: Any) -> tuple[CheckpointInfo, RTDETR]:
    model = build_model(config).eval()
    randomise(model, seed=4)
    info = CheckpointInfo(
        model=config,
        class_names=NAMES,
        preprocessing=Preprocessing(image_size=(96, 64), **preprocessing),
        history={"epochs": 3},
    )
    return info, model


def assert_same(loaded: RTDETR, expected: RTDETR) -> None:
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class TestAuthors:
    @pytest.mark.parametrize(
        "config", [tiny(), tiny("rtdetrv2-custom", points=(1, 2, 4), sampling="discrete")], ids=lambda c: c.name
    )
    def test_everything_comes_back(self, config: ModelConfig, tmp_path: Path) -> None:
        info, model = made(config)
        notes = write_authors(tmp_path / "w.pth", info=info, state=model.state_dict())
        settings = "num_classes: 2, num_queries: 20, eval_idx: 1 and eval_spatial_size: [96, 64]"
        assert notes == [f"for version 2 of the authors' code, with {settings}"]
        read, loaded = load_model(tmp_path / "w.pth")
        assert read == info
        assert_same(loaded, model)
        assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]

    def test_the_file_holds_what_their_strict_loading_asks_for(self, tmp_path: Path) -> None:
        info, model = made(tiny())
        write_authors(tmp_path / "w.pth", info=info, state=model.state_dict())
        content = torch.load(tmp_path / "w.pth", weights_only=True)
        state = content["ema"]["module"]
        assert state.keys() == content["model"].keys()
        tokens = 12 * 8 + 6 * 4 + 3 * 2
        assert state["decoder.anchors"].shape == (1, tokens, 4) and state["decoder.valid_mask"].dtype == torch.bool
        assert state["decoder.decoder.layers.1.cross_attn.num_points_scale"].tolist() == [0.25] * 12
        assert from_authors_v2(state, info.model).keys() == model.state_dict().keys()
        assert (tmp_path / "w.pth").stat().st_size < 1.2 * sum(t.nbytes for t in model.state_dict().values())

    def test_anchors_are_of_the_input_size_and_the_notes_say_which_layer_is_read(self, tmp_path: Path) -> None:
        info, model = made(tiny(layers=3, eval_layers=2))
        (note,) = write_authors(tmp_path / "w.pth", info=info, state=model.state_dict())
        assert "eval_idx: 1 and eval_spatial_size: [96, 64]" in note
        boxes = torch.load(tmp_path / "w.pth", weights_only=True)["model"]["decoder.anchors"][0].sigmoid()
        # P3 has 12 rows of 8 cells.
        expected = torch.tensor([[0.5 / 8, 0.5 / 12, 0.05, 0.05], [0.5 / 8, 1.5 / 12, 0.05, 0.05]])
        torch.testing.assert_close(boxes[[0, 8]], expected)

    def test_resnets_get_the_names_of_version_1(self, tmp_path: Path) -> None:
        config = MODELS["rtdetr-r18"].model_copy(update={"num_classes": 2})
        info, model = made(config, resize="letterbox")
        notes = write_authors(tmp_path / "w.pth", info=info, state=model.state_dict())
        assert notes[0].startswith("for version 1") and "letterboxed" in notes[1]
        state = torch.load(tmp_path / "w.pth", weights_only=True, mmap=True)["model"]
        assert from_authors_v1(state, config).keys() == model.state_dict().keys()

    def test_a_file_that_is_there_stays(self, tmp_path: Path) -> None:
        info, model = made(tiny())
        (tmp_path / "w.pth").write_text("mine")
        with pytest.raises(OutputError, match="is there already"):
            write_authors(tmp_path / "w.pth", info=info, state=model.state_dict())
        assert (tmp_path / "w.pth").read_text() == "mine"


class TestTransformers:
    @pytest.mark.parametrize(
        "config",
        [tiny(), tiny("rtdetrv2-custom", points=2), tiny("rtdetrv2-custom", sampling="discrete")],
        ids=["v1", "v2", "discrete"],
    )
    def test_from_pretrained_gives_the_same_output(self, config: ModelConfig, tmp_path: Path) -> None:
        info, model = made(config)
        folder = tmp_path / "out"
        assert write_transformers(folder, info=info, state=model.state_dict()) == []
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert all(path.stat().st_mode & 0o044 for path in folder.iterdir()), "others may read it"
        kind = RTDetrV2ForObjectDetection if "v2" in config.name else RTDetrForObjectDetection
        theirs, report = kind.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values()), report
        assert theirs.config.id2label == {0: "scratch", 1: "dent"}

        images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected, found = theirs.eval()(images), model(images)
        assert float(found.logits[-1].max() - found.logits[-1].min()) > 1
        assert (found.logits[-1] - expected.logits).abs().max() <= 1e-5
        assert (found.boxes_cxcywh[-1] - expected.pred_boxes).abs().max() <= 1e-5

        read, loaded = load_model(folder)
        assert_same(loaded, model)
        assert read.class_names == NAMES and read.preprocessing == info.preprocessing
        assert read.model.decoder.sampling == config.decoder.sampling

    def test_names_are_written_in_utf_8_whatever_the_machine_likes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        info, model = made(tiny())
        info = info.model_copy(update={"class_names": ("Kratzer-ä", "凹痕")})
        as_it_was = Path.write_text
        monkeypatch.setattr(
            Path, "write_text", lambda path, text, encoding="ascii": as_it_was(path, text, encoding=encoding)
        )
        write_transformers(tmp_path / "out", info=info, state=model.state_dict())
        assert load_model(tmp_path / "out")[0].class_names == ("Kratzer-ä", "凹痕")

    def test_their_processor_reads_the_input_size(self, tmp_path: Path) -> None:
        info, model = made(tiny())
        write_transformers(tmp_path / "out", info=info, state=model.state_dict())
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        image = torch.full((3, 50, 40), 255, dtype=torch.uint8)
        pixels = processor(images=image.numpy(), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 96, 64) and pixels.min() == pixels.max() == 1

    def test_layers_that_only_train_are_left_out(self, tmp_path: Path) -> None:
        info, model = made(tiny(layers=3, eval_layers=2))
        notes = write_transformers(tmp_path / "out", info=info, state=model.state_dict())
        assert notes == ["the last 1 decoder layers, which only train, are left out"]
        _, loaded = load_model(tmp_path / "out")
        images = torch.rand(1, 3, 96, 64)
        with torch.no_grad():
            assert torch.equal(loaded(images).logits, model(images).logits)

    @pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("rtdetrv2-")])
    def test_every_model_can_be_described(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved: list[str] = []

        def save(state: dict[str, torch.Tensor], name: str, **_: object) -> None:
            saved.extend(state)
            Path(name).touch()

        monkeypatch.setattr("setdet.weights.writing.save_file", save)
        monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
        info = CheckpointInfo(
            model=MODELS[name], class_names=("a",) * 80, preprocessing=Preprocessing(image_size=(64, 64))
        )
        with torch.device("meta"):
            state = build_model(name).state_dict()
        write_transformers(tmp_path / "out", info=info, state=state)
        assert len(saved) > 500

    def test_the_folder_that_one_stands_in_is_filled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        info, model = made(tiny())
        write_transformers(Path(), info=info, state=model.state_dict())
        assert {path.name for path in Path().iterdir()} == {
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        }
        assert [path.name for path in tmp_path.iterdir()] == ["here"]

    def test_a_folder_in_use_stays(self, tmp_path: Path) -> None:
        info, model = made(tiny())
        (tmp_path / "mine").touch()
        with pytest.raises(OutputError, match="is in use"):
            write_transformers(tmp_path, info=info, state=model.state_dict())
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    def test_what_the_library_lacks_is_refused(self, tmp_path: Path) -> None:
        info, model = made(tiny(points=(1, 2, 4)))
        with pytest.raises(UsageError, match="cannot be written for transformers: the library fixes"):
            write_transformers(tmp_path / "out", info=info, state=model.state_dict())
        ablated = tiny()
        ablated = ablated.model_copy(update={"encoder": ablated.encoder.model_copy(update={"variant": "B"})})
        for write in (write_transformers, write_authors):
            with pytest.raises(UsageError, match=r"has nothing like encoder\.variant=B"):
                write(tmp_path / "out", info=info.model_copy(update={"model": ablated}), state={})
        info, model = made(tiny(rivals=True))
        with pytest.raises(UsageError, match=r"nothing like decoder\.rivals=True\. Train without .*rivals=false"):
            write_authors(tmp_path / "out", info=info, state=model.state_dict())
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    @pytest.mark.parametrize(("format_name", "out"), [("authors", "w.pth"), ("transformers", "w")])
    def test_there_and_back(self, format_name: str, out: str, tmp_path: Path) -> None:
        info, model = made(tiny())
        ours, out = tmp_path / "w.safetensors", str(tmp_path / "new" / out)
        save_checkpoint(ours, state=model.state_dict(), info=info)
        done = CliRunner().invoke(app, ["export", str(ours), "--format", format_name, "--out", out])
        assert done.exit_code == 0, done.output
        assert f"rtdetr-n, 2 classes → {out}" in done.output
        assert_same(load_model(Path(out))[1], model)

    def test_read_out_early(self, tmp_path: Path) -> None:
        info, model = made(tiny())
        ours, out = tmp_path / "w.safetensors", tmp_path / "early"
        save_checkpoint(ours, state=model.state_dict(), info=info)
        cut = ["--decoder-layers", "1", "--queries", "7"]
        done = CliRunner().invoke(app, ["export", str(ours), "--format", "transformers", "--out", str(out), *cut])
        assert done.exit_code == 0, done.output
        images = torch.rand(1, 3, 96, 64)
        with torch.no_grad():
            theirs = RTDetrForObjectDetection.from_pretrained(out).eval()(images)
        read_out(model, decoder_layers=1, queries=7)
        with torch.no_grad():
            output = model(images)
        assert theirs.logits.shape == (1, 7, 2)
        torch.testing.assert_close(theirs.logits, output.logits[-1], rtol=0, atol=1e-5)

    def test_a_wrong_format_gets_a_suggestion(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["export", "w", "--format", "transformer", "--out", "x"]) == 2
        assert "Did you mean 'transformers'?" in capsys.readouterr().err
