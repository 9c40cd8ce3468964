"""Bad input through the real command: one clear message, exit code 1 or 2, no traceback, nothing half-written."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from setdet.cli import main
from setdet.models.variants import MODELS
from small_data import SMALL, voc_text, write_voc, write_weights

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command that must be refused; returns its one message. The folder `out` is what it must not touch."""
    monkeypatch.setitem(MODELS, "small", SMALL)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, code: int, says: tuple[str, ...]) -> str:
        before = _files(tmp_path)
        assert main([str(argument) for argument in arguments]) == code
        output = capfd.readouterr()
        assert "Traceback" not in output.err
        assert output.err.count("error: ") == 1, output.err
        message = output.err[output.err.index("error: ") :]
        for part in says:
            assert part in message
        assert _files(tmp_path) == before
        return message

    return run


def _files(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def _train(data: Path | str) -> list[str | Path]:
    return [
        "train",
        data,
        "--model",
        "small",
        "--epochs",
        "1",
        "--image-size",
        "64",
        "--batch-size",
        "2",
        "--out",
        "out",
    ]


def _commands(data: Path, weights: Path) -> list[list[str | Path]]:
    """Every command that reads a data set."""
    return [["data", "check", data], _train(data), ["val", weights, data]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "data")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "weights.safetensors")


def test_folder_of_no_known_format(refused: Refused, tmp_path: Path, weights: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    (folder / "a.txt").write_text("hello")
    for command in _commands(folder, weights):
        refused(*command, code=1, says=("letters", "known format", "VOC", "COCO", "YOLO"))


def test_folder_that_is_not_there(refused: Refused, tmp_path: Path, weights: Path) -> None:
    for command in _commands(tmp_path / "nowhere", weights):
        refused(*command, code=1, says=("nowhere", "does not exist"))


def test_annotation_that_is_not_xml(refused: Refused, data: Path, weights: Path) -> None:
    (data / "val" / "annotations" / "1.xml").write_text("<annotation><object>")
    for command in _commands(data, weights):
        refused(*command, code=1, says=("1.xml", "is not XML"))


def test_entity_bomb(refused: Refused, data: Path, weights: Path) -> None:
    bomb = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>' + voc_text().replace("bright", "&b;")
    (data / "train" / "annotations" / "0.xml").write_text(bomb)
    for command in _commands(data, weights):
        refused(*command, code=1, says=("0.xml", "DOCTYPE"))


@pytest.mark.parametrize(
    ("box", "what"), [((100, 100, 140, 140), "outside"), ((40, 5, 5, 40), "inverted"), ((5, 40, 40, 5), "inverted")]
)
def test_box_outside_or_inverted(
    refused: Refused, data: Path, weights: Path, box: tuple[int, int, int, int], what: str
) -> None:
    (data / "train" / "annotations" / "0.xml").write_text(voc_text(box=box))
    for command in _commands(data, weights):
        refused(*command, code=1, says=("0.xml", what))


def test_class_that_the_data_set_does_not_list(refused: Refused, data: Path) -> None:
    (data / "classes.txt").write_text("bright\ndark\n")
    (data / "train" / "annotations" / "0.xml").write_text(voc_text(name="brigth"))
    for command in (["data", "check", data], _train(data)):
        refused(*command, code=1, says=("0.xml", "brigth", "Did you mean 'bright'"))
    refused(*_train(data), code=1, says=(f"All that is wrong: setdet data check {data}",))


def test_a_run_without_a_whole_epoch(refused: Refused, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: rtdetr-n\n")
    refused("val", tmp_path / "run", data, code=1, says=("no epoch of it is complete", "--resume"))


def test_class_that_the_weights_do_not_know(refused: Refused, data: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "other.safetensors", class_names=("bright", "red"))
    refused("val", weights, data, code=1, says=("dark",))


def test_missing_picture(refused: Refused, data: Path, weights: Path) -> None:
    (data / "train" / "images" / "0.png").unlink()
    for command in _commands(data, weights):
        refused(*command, code=1, says=("0.xml", "0.png", "missing"))


def test_broken_picture_found_in_training_and_repaired(
    data: Path, refused: Refused, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = data / "train" / "images" / "0.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"not a picture")
    command = [str(word) for word in [*_train(data), "--workers", "0"]]
    assert main(command) == 1
    output = capfd.readouterr().err
    assert output.count("error: ") == 1 and str(picture) in output and "Traceback" not in output
    picture.write_bytes(whole)
    assert main([*command, "--resume"]) == 0  # what was written before is whole: the run goes on from there


def test_empty_data_set(refused: Refused, tmp_path: Path, weights: Path) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "bright"}]}))
    for command in _commands(empty, weights):
        refused(*command, code=1, says=("empty.json", "no pictures"))


def test_fewer_pictures_than_a_batch(refused: Refused, data: Path) -> None:
    refused(*_train(data), "--batch-size", "9", code=1, says=("8 pictures", "batch of 9", "(--batch-size) 8"))


def test_unknown_config_key(refused: Refused, data: Path) -> None:
    refused(*_train(data), "--set", "learning_rat=1", code=2, says=("learning_rat", "Did you mean 'learning_rate'"))
    refused(*_train(data), "--set", "los.box=1", code=2, says=("los", "Did you mean 'loss'"))
    refused(*_train(data), "--set", "flip_vertical=0", code=2, says=("Did you mean 'augment.flip_vertical'",))
    refused(*_train(data), "--set", "learning_rate", code=2, says=("section.field=value",))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "rtdetr-r19"], ("rtdetr-r19", "Did you mean")),
        (["--recipe", "papr-v1"], ("papr-v1", "Did you mean 'paper-v1'")),
        (["--image-size", "225"], ("225", "multiples of 32", "224")),
        (["--image-size", "320x481"], ("320x481", "multiples of 32", "320x480")),
        (["--image-size", "big"], ("big", "320x480")),
        (["--device", "gpu"], ("gpu", "cpu")),
        (["--epochs", "0"], ("epochs",)),
        (["--freeze", "backbone"], ("init",)),
    ],
)
def test_flags_out_of_range(refused: Refused, data: Path, arguments: list[str], says: tuple[str, ...]) -> None:
    refused(*_train(data), *arguments, code=2, says=says)


def test_checkpoint_of_another_model(refused: Refused, data: Path, tmp_path: Path) -> None:
    other = SMALL.model_copy(update={"name": "other", "decoder": SMALL.decoder.model_copy(update={"layers": 2})})
    weights = write_weights(tmp_path / "other.safetensors", model=other)
    refused(*_train(data), "--init", weights, code=1, says=("other.safetensors", "does not fit small", "--model other"))


def test_pickle(refused: Refused, data: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    weights = tmp_path / "model.pth"
    weights.write_bytes(pickle.dumps(_Bomb(marker)))
    for command in (
        ["val", weights, data],
        ["predict", weights, data / "val" / "images", "--out", "out"],
        [*_train(data), "--init", weights],
    ):
        refused(*command, code=1, says=("model.pth", "never executed"))
    assert not marker.exists()


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_weights_that_are_not_there(refused: Refused, data: Path) -> None:
    refused("val", "rtdetr-n/surface", data, code=1, says=("rtdetr-n/surface", "rtdetr-n/surfaces"))
    refused("val", "rtdetr-r18", data, code=1, says=("is a model, not weights",))
    refused("predict", data, data / "val" / "images", "--out", "out", code=1, says=("no run folder",))


def test_output_folder_in_use(refused: Refused, data: Path, weights: Path, tmp_path: Path) -> None:
    used = tmp_path / "out"
    used.mkdir()
    (used / "mine.txt").write_text("keep")
    for command in (
        _train(data),
        ["predict", weights, data / "val" / "images", "--out", "out"],
        ["data", "make", "surfaces", "out", "--count", "12"],
    ):
        refused(*command, code=2, says=("out", "in use"))
    file = used / "mine.txt"
    for command in ([*_train(data), "--out", file], ["demo", "--out", file]):
        refused(*command, code=2, says=("mine.txt", "is a file"))


def test_resuming_what_is_not_there(refused: Refused, data: Path) -> None:
    refused(*_train(data), "--resume", code=2, says=("out", "no run to resume"))
    refused("train", data, "--resume", code=2, says=("--out",))


def test_split_that_is_not_there(refused: Refused, data: Path, weights: Path) -> None:
    refused("val", weights, data, "--split", "test", code=2, says=("test", "val"))


def test_nothing_to_predict_on(refused: Refused, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused("predict", weights, "none", "--out", "out", code=2, says=("none", "no picture"))
    refused("predict", weights, "a*.png", "--out", "out", code=2, says=("a*.png",))


def test_predict_flags_out_of_range(refused: Refused, weights: Path, data: Path) -> None:
    pictures = data / "val" / "images"
    refused("predict", weights, pictures, "--save", "cocoo", code=2, says=("cocoo", "Did you mean 'coco'"))
    refused("predict", weights, pictures, "--threshold", "2", code=2, says=("2", "0 to 1"))
    refused("predict", weights, pictures, "--device", "tpu", code=2, says=("tpu",))
    refused("val", weights, data, "--confidence", "-1", code=2, says=("-1", "0 to 1"))


def test_format_that_cannot_be_made(refused: Refused) -> None:
    refused("data", "make", "surfaces", "out", "--format", "vocc", code=2, says=("vocc", "Did you mean 'voc'"))


def test_wrong_words_are_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    for arguments in (["trian"], ["train"], ["val", "--no-such-flag"], ["demo", "too", "much"]):
        assert main(arguments) == 2
        assert "Traceback" not in capfd.readouterr().err
