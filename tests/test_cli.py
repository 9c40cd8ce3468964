"""The command line: help without torch, verbs end to end on tiny pictures, errors and exit codes."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from setdet.cli import app, demo, main, predict
from setdet.cli.console import show, show_table
from setdet.cli.predict import output_names
from setdet.cli.train import parse_image_size
from setdet.detections import Detections
from setdet.errors import OutputError, SetdetError, UsageError
from setdet.folders import claim, next_unused, unused
from setdet.models.facts import FACTS
from setdet.models.variants import MODELS
from setdet.weights.catalog import CATALOG, Entry, resolve
from setdet.weights.classes import COCO_CLASSES
from setdet.weights.files import read_info
from small_data import CLASS_NAMES, SMALL, write_voc, write_weights

VERBS = (
    "",
    "demo",
    "train",
    "val",
    "predict",
    "data",
    "data make",
    "data make surfaces",
    "data check",
    "export",
    "average",
    "report",
    "models",
)


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "small", SMALL)
    monkeypatch.chdir(tmp_path)


def test_help_imports_nothing_heavy_and_covers_every_verb() -> None:
    code = (
        "import sys\n"
        "from setdet.cli import main\n"
        f"for verb in {VERBS!r}:\n"
        "    assert main([*verb.split(), '--help']) == 0, verb\n"
        "heavy = {'torch', 'numpy', 'cv2', 'scipy', 'matplotlib', 'jinja2', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"Usage: {' '.join(['setdet', *verb.split()])} " in done.stdout


def test_all_verbs_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    names = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert names == {
        "analyze",
        "average",
        "benchmark",
        "demo",
        "export",
        "report",
        "train",
        "val",
        "predict",
        "data",
        "models",
    }
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("setdet ")


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("320x480", (320, 480)), ("64X32", (64, 32))])
def test_image_size_is_height_x_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "224x", "-32", "0", "1x2x3", "32.0", "31", "640x641", "²²⁴"])
def test_other_image_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--image-size"):
        parse_image_size(text)


def test_failures_become_one_message_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases: list[tuple[BaseException, int, str]] = [
        (SetdetError("no [luck]"), 1, "error: no [luck]\n"),
        (UsageError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "/a/b"), 1, "error: /a/b: Permission denied.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: Output: the disk is full. Make room"),
        (ModuleNotFoundError("x", name="torch"), 2, "pip install 'setdet[train]'"),
        (ModuleNotFoundError("x", name="scipy.optimize"), 2, "pip install 'setdet[train]'"),
    ]
    for error, code, text in cases:

        def fail(_: object, error: BaseException = error) -> object:
            raise error

        monkeypatch.setattr("setdet.cli.models._shown", fail)
        assert main(["models"]) == code
        assert text in capsys.readouterr().err


def test_what_a_stream_cannot_write_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def fail(_: object) -> object:
        show("a → b")
        raise SetdetError("b\udcfcro → c")

    monkeypatch.setattr("setdet.cli.models._shown", fail)
    assert main(["models"]) == 1
    written = []
    for stream in streams.values():
        stream.flush()
        written.append(stream.buffer.getvalue())  # type: ignore[attr-defined]
    assert written == [b"a \\u2192 b\n", b"error: b\\udcfcro \\u2192 c\n"]


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> object:
        raise ModuleNotFoundError("no setdet.typo", name="setdet.typo")

    monkeypatch.setattr("setdet.cli.models._shown", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["models"])


def test_models_lists_names_sizes_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    output = capsys.readouterr().out
    for name in (*FACTS, *CATALOG):
        assert f"{name} " in output
    assert FACTS.keys() == MODELS.keys() - {"small"}
    assert "rtdetr-n/surfaces" in output
    assert "20.2 M" in next(line for line in output.splitlines() if line.startswith("rtdetr-r18"))


def test_folders_are_never_shared(tmp_path: Path) -> None:
    assert next_unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert next_unused(tmp_path / "run") == tmp_path / "run-3"
    assert unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run" / "a").touch()
    with pytest.raises(OutputError, match="in use"):
        unused(tmp_path / "run")


def test_drawings_keep_their_folders_and_never_collide() -> None:
    paths = [Path("p/a.jpg"), Path("p/a.png"), Path("p/q/a.tif"), Path("p/b.JPEG")]
    names = output_names(paths)
    assert names == {
        Path("p/a.jpg"): Path("a.jpg.jpg"),
        Path("p/a.png"): Path("a.png.png"),
        Path("p/q/a.tif"): Path("q/a.png"),
        Path("p/b.JPEG"): Path("b.jpg"),
    }


def test_data_check_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data", train=5, val=2)
    assert main(["data", "check", str(data)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pictures", "5", "2"] in lines
    assert ["bright", "3", "1"] in lines and ["dark", "2", "1"] in lines
    assert ["boxes", "5", "2"] in lines
    (data / "val" / "images" / "1.png").write_bytes(b"broken")
    annotation = data / "train" / "annotations" / "0.xml"
    annotation.write_text(annotation.read_text().replace("<width>64", "<width>640"))
    assert main(["data", "check", str(data)]) == 1
    told = capsys.readouterr().err
    assert "1.png" in told and "declare 640×64 pixels" in told and "2 problems, named above" in " ".join(told.split())


def test_surfaces_are_made_checked_and_repeatable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert main(["data", "make", "surfaces", name, "--count", "4", "--seed", "3", "--format", "coco"]) == 0
        assert main(["data", "check", name]) == 0
    files = [sorted(path.relative_to(name) for path in Path(name).rglob("*") if path.is_file()) for name in ("a", "b")]
    assert files[0] == files[1]
    assert all((Path("a") / file).read_bytes() == (Path("b") / file).read_bytes() for file in files[0])
    assert Path("images/train/crazing_3_000000.png") in files[0]  # named after the seed
    assert "COCO" in capsys.readouterr().out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def test_predict_draws_saves_and_goes_on_after_a_broken_file(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = write_voc(tmp_path / "data") / "train" / "images"
    (pictures / "broken.png").write_bytes(b"\x89PNG nothing")
    formats = [word for name in ("json", "coco", "yolo", "csv") for word in ("--save", name)]
    code = main(["predict", str(weights), str(pictures), "--out", "found", "--threshold", "0", *formats])
    output = capsys.readouterr()
    assert code == 1
    assert output.err.count("broken.png") == 1 and "1 of 9 pictures" in output.err
    found = Path("found")
    assert {path.name for path in found.glob("*.png")} == {f"{index}.png" for index in range(8)}
    document = json.loads((found / "detections.json").read_text())
    assert len(document) == 8 and len(document[0]["detections"]) == 20
    coco = json.loads((found / "coco.json").read_text())
    assert len(coco["images"]) == 8 and len(coco["annotations"]) == 160
    with (found / "detections.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 160
    assert len((found / "labels" / "3.txt").read_text().splitlines()) == 20
    drawn = cv2.imread(str(found / "0.png"))
    assert drawn is not None and drawn.shape[0] % 64 == 0
    factor = drawn.shape[0] // 64
    assert not np.array_equal(drawn[::factor, ::factor], cv2.imread(str(pictures / "0.png")))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_that_is_no_unicode_is_written_as_an_escape(tmp_path: Path, weights: Path) -> None:
    name = os.fsdecode(b"b\xfcro.png")
    cv2.imwrite("buero.png", np.zeros((64, 64, 3), np.uint8))
    Path("buero.png").rename(name)
    formats = [word for kind in ("json", "coco", "yolo", "csv") for word in ("--save", kind)]
    assert main(["predict", str(weights), name, "--out", "found", "--threshold", "0", *formats]) == 0
    found = Path("found")
    assert json.loads((found / "detections.json").read_text(encoding="utf-8"))[0]["source"] == name
    assert "b\\udcfcro.png" in (found / "detections.csv").read_text(encoding="utf-8")
    assert {path.name for path in found.iterdir()} == {name, "detections.json", "coco.json", "detections.csv", "labels"}


@pytest.mark.parametrize("change", ["gone", "other"])
def test_predict_goes_on_after_a_picture_that_changes_under_it(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    pictures = write_voc(tmp_path / "data") / "train" / "images"
    draw = predict._draw

    def change_first(detections: Detections, target: Path) -> None:
        if target.name == "3.png" and change == "gone":
            (pictures / "3.png").unlink()
        elif target.name == "3.png":
            cv2.imwrite(str(pictures / "3.png"), np.zeros((8, 9, 3), np.uint8))
        draw(detections, target)

    monkeypatch.setattr(predict, "_draw", change_first)
    assert main(["predict", str(weights), str(pictures), "--out", "found", "--save", "json"]) == 1
    output = capsys.readouterr()
    assert "3.png" in output.err and "1 of 8 pictures could not be read" in output.err
    assert len(json.loads(Path("found/detections.json").read_text())) == 8, "it was looked at before"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (SetdetError("no"), 1), (signal.SIGTERM, 143)])
def test_predict_that_is_stopped_leaves_what_it_found(
    tmp_path: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | signal.Signals,
    code: int,
) -> None:
    pictures = write_voc(tmp_path / "data") / "train" / "images"
    draw = predict._draw
    before = signal.getsignal(signal.SIGTERM)

    def stop_at_third(detections: Detections, target: Path) -> None:
        if target.name == "2.png" and isinstance(error, signal.Signals):
            os.kill(os.getpid(), error)
        elif target.name == "2.png":
            raise error
        draw(detections, target)

    monkeypatch.setattr(predict, "_draw", stop_at_third)
    formats = [word for name in ("json", "coco", "yolo", "csv") for word in ("--save", name)]
    assert main(["predict", str(weights), str(pictures), "--out", "found", *formats]) == code
    found = Path("found")
    assert len(json.loads((found / "detections.json").read_text())) == 3
    assert len(json.loads((found / "coco.json").read_text())["images"]) == 3
    assert {path.name for path in (found / "labels").iterdir()} == {"0.txt", "1.txt", "2.txt"}
    assert len((found / "detections.csv").read_text().splitlines()) >= 4
    assert "3 of 8 pictures" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before


def test_predict_writes_what_it_can(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = write_voc(tmp_path / "data") / "val" / "images"
    monkeypatch.setattr(
        predict, "_draw", lambda *_: Path("found/coco.json/in the way").mkdir(parents=True, exist_ok=True)
    )
    assert main(["predict", str(weights), str(pictures), "--out", "found", "--save", "coco", "--save", "csv"]) == 1
    assert "coco.json: cannot be written" in capsys.readouterr().err
    assert Path("found/detections.csv").is_file()


def test_predict_without_drawings(tmp_path: Path, weights: Path) -> None:
    pictures = write_voc(tmp_path / "data") / "val" / "images"
    assert main(["predict", str(weights), str(pictures), "--out", "found", "--no-draw", "--save", "csv"]) == 0
    assert [path.name for path in Path("found").iterdir()] == ["detections.csv"]


def test_detections_of_cocos_classes_are_saved_under_cocos_ids() -> None:
    found = Detections.from_arrays(
        boxes_xyxy_px=[[0, 0, 1, 1]], scores=[0.9], labels=[79], class_names=COCO_CLASSES, image_size=(4, 4)
    )
    (text,) = predict._documents("coco", [found], {}).values()
    (annotation,) = json.loads(text)["annotations"]
    assert annotation["category_id"] == 90


def test_predict_prints_json_lines(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = write_voc(tmp_path / "data") / "val" / "images"
    assert main(["predict", str(weights), str(pictures), "--threshold", "0", "--json"]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(one["source"]).name for one in objects] == ["0.png", "1.png"]
    assert len(objects[0]["detections"]) == 20


def test_predict_shows_its_sources_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    usage = next(line for line in capsys.readouterr().out.splitlines() if "Usage" in line)
    assert "SOURCE" in usage and usage.count("...") == 1


def test_a_table_without_names_has_no_line_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("", ""), [("a", 1)])
    assert capsys.readouterr().out.split() == ["a", "1"]
    show_table(("", ""), [("a", 1), ("b", 2)])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_predict_takes_a_new_folder_each_time(tmp_path: Path, weights: Path) -> None:
    picture = write_voc(tmp_path / "data") / "train" / "images" / "0.png"
    for _ in range(2):
        assert main(["predict", str(weights), str(picture)]) == 0
    assert (tmp_path / "predictions" / "0.png").is_file() and (tmp_path / "predictions-2" / "0.png").is_file()


def test_two_runs_at_once_never_share_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as runs:
        made = list(runs.map(lambda _: claim(None, default=tmp_path / "predictions"), range(64)))
    assert len(set(made)) == 64 and all(folder.is_dir() for folder in made)


def test_val_prints_the_same_as_table_and_json(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_voc(tmp_path / "data")
    assert main(["val", str(weights), str(data), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    promised = "ap ap50 ap75 ap_small ap_medium ap_large ar100 precision recall f1 confidence per_class".split()
    assert set(promised) <= set(values)
    assert [row["name"] for row in values["per_class"]] == list(CLASS_NAMES)
    assert main(["val", str(weights), str(data), "--split", "train", "--confidence", "0.3"]) == 0
    table = capsys.readouterr().out
    assert "8 pictures, 8 boxes (train)" in table and "score of 0.300" in table


@pytest.mark.parametrize("verb", ["predict", "val"])
def test_every_option_of_an_engine_reaches_it(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def load(weights: str, **named: Any) -> None:
        given.update(named, weights=weights)
        raise SetdetError("that is all")

    monkeypatch.setattr("setdet.api.load", load)
    options = "--device cuda:1 --decoder-layers 2 --queries 50 --precision bf16 --threads 3 --hint throughput"
    command = [verb, "w.onnx", str(write_voc(tmp_path / "data") / "val" / "images"), *options.split()]
    assert main([*command, "--reduced-decoding"]) == 1
    assert given == {
        "weights": "w.onnx",
        "device": "cuda:1",
        "decoder_layers": 2,
        "queries": 50,
        "precision": "bf16",
        "threads": 3,
        "hint": "throughput",
        "reduced_decoding": True,
    }


def test_every_option_of_training_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def train(data: str, **named: Any) -> None:
        given.update(named, data=data)
        raise SetdetError("that is all")

    monkeypatch.setattr("setdet.api.train", train)
    options = (
        "--model m --init i --backbone-weights b --freeze norms --freeze backbone --recipe deim --epochs 3 "
        "--image-size 64x96 --batch-size 5 --device cuda --precision bf16 --workers 6 --out o --seed 7 "
        "--select-on 0.25 --resume --set queries=8 --set ema.decay=0.9"
    )
    assert main(["train", "steel", *options.split()]) == 1
    assert given == {
        "data": "steel",
        "model": "m",
        "init": "i",
        "backbone_weights": Path("b"),
        "freeze": ["norms", "backbone"],
        "recipe": "deim",
        "epochs": 3,
        "image_size": (64, 96),
        "batch_size": 5,
        "device": "cuda",
        "precision": "bf16",
        "workers": 6,
        "out": Path("o"),
        "seed": 7,
        "select_on": 0.25,
        "resume": True,
        "overrides": ["queries=8", "ema.decay=0.9"],
    }


def test_train_then_val_then_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_voc(tmp_path / "data")
    flags = "--model small --epochs 1 --image-size 64x96 --batch-size 4 --workers 0 --seed 7 --device cpu".split()
    assert main(["train", str(data), *flags, "--precision", "fp32", "--set", "queries=10"]) == 0
    run = tmp_path / "runs" / "small"
    info = read_info(resolve(run))
    assert info.preprocessing.image_size == (64, 96)
    assert info.model.decoder.queries == 10
    assert info.class_names == CLASS_NAMES
    html = (run / "report.html").read_text(encoding="utf-8")
    assert "2 pictures (val)" in html and "<svg" in html
    assert (
        "What the mistakes cost" in html and "there is nothing." in html and "Whether scores mean what they say" in html
    )
    assert "report.html" in capsys.readouterr().out
    assert main(["val", str(run), str(data)]) == 0
    # A finished run resumes to nothing more to do; what was given before is remembered.
    assert main(["train", str(data), "--out", str(run), "--resume"]) == 0
    assert main(["train", str(data), "--out", str(run), "--resume", "--seed", "8"]) == 2
    assert "seed" in capsys.readouterr().err


def test_val_compares_with_the_published_accuracy(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_voc(tmp_path / "data")
    assert main(["val", str(weights), str(data), "--json"]) == 0
    measured = 100 * json.loads(capsys.readouterr().out)["ap"]
    for ap, code, verdict in ((measured + 0.1, 0, ": as published"), (measured + 1, 1, "NOT as published")):
        entry = Entry(name="small/steel", file=weights.name, trained_on="steel", coco_ap=ap, source="a paper")
        monkeypatch.setitem(CATALOG, entry.name, entry)
        monkeypatch.setattr(Entry, "path", lambda self: weights)
        assert main(["val", "small/steel", str(data), "--expect"]) == code
        assert verdict in capsys.readouterr().err
    assert main(["val", str(weights), str(data), "--expect"]) == 2
    assert "rtdetr-r50/coco" in capsys.readouterr().err


def test_demo_writes_sheet_and_report_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from setdet.data.surfaces import CLASS_NAMES as KINDS

    monkeypatch.setattr(demo, "WEIGHTS", str(write_weights(tmp_path / "w.safetensors", class_names=KINDS)))
    monkeypatch.setattr(demo, "PICTURES", 6)
    for _ in range(2):
        assert main(["demo", "--out", "shown"]) == 0
    assert {path.name for path in Path("shown").iterdir()} == {"sheet.png", "report.html"}
    told = capsys.readouterr().out
    assert "AP50" in told and "defects that are there were found" in told and "boxes drawn are right" in told


def test_demo_finds_defects_with_the_packaged_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("AP50"))
    assert float(line.split()[1].rstrip(",")) >= 0.7
    assert Path("demo-output/sheet.png").is_file()
