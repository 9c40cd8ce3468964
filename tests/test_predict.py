"""The predictor with a made-up engine: sources, order, memory, threads, errors."""

import contextlib
import io
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from setdet.errors import ImageError, SetdetError, UsageError
from setdet.images import Preprocessing
from setdet.predict import Predictor, expand_sources
from setdet.runtime.base import best_candidates


class BrightSquare:
    """An engine that finds what is brighter than grey: one box with the picture's brightest value as score."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        self.batches.append(len(images))
        height, width = images.shape[1:3]
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(images), 2, 1))
        scores = np.zeros((len(images), 2), np.float32)
        for index, image in enumerate(images):
            rows, columns = np.nonzero(image.max(axis=2) > 128)
            if len(rows):
                extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                boxes[index, 0] = np.array(extent) / (width, height, width, height)
                scores[index, 0] = image.max() / 255
        return boxes, scores, np.tile(np.array([1, 0]), (len(images), 1))


def predictor(runtime: object | None = None, *, size: tuple[int, int] = (64, 64), resize: str = "stretch") -> Predictor:
    return Predictor(
        runtime=runtime or BrightSquare(),  # type: ignore[arg-type]
        class_names=("dark", "bright"),
        preprocessing=Preprocessing(image_size=size, resize=resize),  # type: ignore[arg-type]
    )


def picture(value: int = 255, *, height: int = 32, width: int = 128) -> NDArray[np.uint8]:
    """Black, with a square of `value` at x 32 to 64, y 8 to 24."""
    image = np.zeros((height, width, 3), np.uint8)
    image[8:24, 32:64] = value
    return image


def numbered(count: int) -> list[NDArray[np.uint8]]:
    """Pictures whose score says which they are."""
    return [picture(200 + index) for index in range(count)]


def numbers(scores: list[float]) -> list[int]:
    return [round(score * 255) - 200 for score in scores]


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_boxes_come_back_in_the_pictures_pixels(resize: str) -> None:
    (found,) = predictor(resize=resize).predict([picture()])
    np.testing.assert_allclose(found.boxes_xyxy_px, [[32, 8, 64, 24]], atol=2.1 if resize == "letterbox" else 1.1)
    assert found.labels.tolist() == [1] and found.class_names == ("dark", "bright")
    assert found.image_size == (32, 128) and found.source == "picture 1"


def test_a_path_an_array_and_a_pil_picture_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    alpha = np.dstack([picture(), np.full((32, 128), 255, np.uint8)])
    palette = Image.fromarray(picture()).convert("P")
    sources = [path, str(path), picture(), picture()[..., 0], picture()[..., 0].astype(np.uint16) * 257, alpha]
    sources += [Image.open(path), Image.fromarray(picture()).convert("L"), Image.fromarray(alpha), palette]
    sources += [Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)]
    sources += [Image.fromarray(picture()[..., 0].astype(np.int32) * 257), Image.fromarray(picture()[..., 0] > 0)]
    results = predictor().predict(sources)
    assert len(results) == len(sources)
    for found in results:
        assert found.boxes_xyxy_px.tolist() == results[0].boxes_xyxy_px.tolist() and found.scores[0] == 1
    assert [found.source for found in results[:3]] == [str(path), str(path), "picture 3"]


def test_reduced_decoding_keeps_the_pictures_pixels(tmp_path: Path) -> None:
    image = np.full((300, 400, 3), 90, np.uint8)
    image[60:180, 80:240] = 250
    Image.fromarray(image).save(tmp_path / "a.jpg")
    whole = predictor()
    reduced = Predictor(
        runtime=whole.runtime, class_names=whole.class_names, preprocessing=whole.preprocessing, reduced_decoding=True
    )
    (found,) = reduced.predict([tmp_path / "a.jpg"])
    assert found.image_size == (300, 400)
    np.testing.assert_allclose(found.boxes_xyxy_px, [[80, 60, 240, 180]], atol=7)  # a pixel of 64


def test_a_pil_picture_is_turned_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    turned, read, plain = predictor().predict([Image.open(path), path, upright])
    assert turned.image_size == read.image_size == plain.image_size
    assert turned.boxes_xyxy_px.tolist() == read.boxes_xyxy_px.tolist() == plain.boxes_xyxy_px.tolist()


def test_threshold() -> None:
    sources = [picture(150), picture(250)]
    assert [len(found) for found in predictor().predict(sources, threshold=0.9)] == [0, 1]
    assert [len(found) for found in predictor().predict(sources, threshold=0.0)] == [2, 2]


@pytest.mark.parametrize("batch_size", [1, 3, 8, 50])
def test_order_and_batches(batch_size: int) -> None:
    engine = BrightSquare()
    results = predictor(engine).predict(numbered(10), batch_size=batch_size)
    assert numbers([found.scores[0] for found in results]) == list(range(10))
    assert sum(engine.batches) == 10 and max(engine.batches) == min(batch_size, 10)


def test_an_empty_list_gives_an_empty_list() -> None:
    assert predictor().predict([]) == []


def test_one_picture_goes_in_a_list(tmp_path: Path) -> None:
    for lone in ("a.png", tmp_path / "a.png", picture(), Image.fromarray(picture())):
        with pytest.raises(UsageError, match=r"as a list.*predict\(\[picture\]\)"):
            predictor().predict(lone)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="as a list"):
            predictor().stream(lone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor().stream([picture()], **arguments)  # type: ignore[arg-type]


def test_what_is_no_picture_is_named_in_its_turn() -> None:
    with pytest.raises(UsageError, match="found int"):
        predictor().predict(3)  # type: ignore[arg-type]
    stream = predictor().stream([picture(), 3])  # type: ignore[list-item]
    assert len(next(stream)) == 1
    with pytest.raises(UsageError, match="picture 2: expected a path, a numpy array or a PIL picture, found int"):
        next(stream)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_broken_picture_is_raised_after_those_before_it(tmp_path: Path, batch_size: int) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    stream = predictor().stream([picture(), picture(), broken, picture()], batch_size=batch_size)
    assert len(next(stream)) == len(next(stream)) == 1
    with pytest.raises(ImageError, match=r"broken\.png"):
        next(stream)
    with pytest.raises(ImageError, match=r"broken\.png"):
        predictor().predict([picture(), broken], batch_size=batch_size)


def test_on_error_names_each_and_goes_on(tmp_path: Path) -> None:
    first, cut = tmp_path / "missing.png", tmp_path / "cut.png"
    cut.write_bytes(cv2.imencode(".png", picture())[1].tobytes()[:60])
    told: list[tuple[str, int]] = []
    results: list[int] = []

    def on_error(source: str, error: ImageError) -> None:
        assert source in str(error)
        told.append((source, len(results)))

    closed = Image.fromarray(picture())
    closed.close()
    sources = [*numbered(2), first, *numbered(1), cut, np.zeros((4, 4), np.float32), None, closed, *numbered(3)]
    named = []
    for found in predictor().stream(sources, batch_size=4, on_error=on_error):  # type: ignore[arg-type]
        results += numbers([found.scores[0]])
        named.append(found.source)
    assert results == [0, 1, 0, 0, 1, 2]
    assert named == [f"picture {number}" for number in (1, 2, 4, 9, 10, 11)]
    assert told == [(str(first), 2), (str(cut), 3), ("picture 6", 3), ("picture 7", 3), ("picture 8", 3)]


def test_an_error_that_is_kept_keeps_no_picture(tmp_path: Path) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(cv2.imencode(".jpg", picture())[1].tobytes()[:-2])
    errors: list[ImageError] = []
    list(predictor().stream([cut, cut], on_error=lambda _, error: errors.append(error)))
    held = [error.__traceback__ for error in errors if error.__traceback__ is not None]
    frames = [frame for trace in held for frame, _ in traceback.walk_tb(trace)]
    assert len(errors) == 2 and not any(isinstance(value, bytes) for one in frames for value in one.f_locals.values())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_camera_may_write_to_one_array_again_and_again(batch_size: int) -> None:
    frame = np.zeros((64, 64, 3), np.uint8)  # of the network's own size: nothing is resized

    def camera() -> Iterator[NDArray[np.uint8]]:
        for number in range(8):
            frame[:] = 200 + number
            yield frame

    results = predictor().stream(camera(), batch_size=batch_size)
    assert numbers([found.scores[0] for found in results]) == list(range(8))


def test_a_box_in_a_letterbox_s_border_is_none() -> None:
    class Border(BrightSquare):
        def __call__(
            self, images: NDArray[np.uint8]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
            boxes = np.array([[[0.2, 0.01, 0.8, 0.1], [0.2, 0.4, 0.8, 0.6]]], np.float32)
            return boxes, np.array([[0.9, 0.8]], np.float32), np.array([[1, 0]])

    (found,) = predictor(Border(), resize="letterbox").predict([picture()])
    assert found.labels.tolist() == [0]


def test_a_truncated_pil_picture_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:1500])
    with Image.open(path) as cut, pytest.raises(ImageError, match="picture 1: the PIL picture cannot be decoded"):
        predictor().predict([cut])


def test_a_pil_picture_with_a_bad_chunk_is_an_image_error() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".png", noise)[1].tobytes())
    assert data.count(b"IDAT") > 1
    data[data.rindex(b"IDAT") : data.rindex(b"IDAT") + 4] = b"\x00\x01\x02\x03"
    with Image.open(io.BytesIO(data)) as broken, pytest.raises(ImageError, match="picture 1: the PIL picture cannot"):
        predictor().predict([broken])


def test_what_the_callers_generator_raises_comes_in_its_turn() -> None:
    def sources() -> Iterator[NDArray[np.uint8]]:
        yield from numbered(3)
        raise ZeroDivisionError

    stream = predictor().stream(sources(), batch_size=2)
    assert numbers([next(stream).scores[0] for _ in range(3)]) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(stream)


def test_an_endless_stream_is_read_two_batches_ahead_and_no_further() -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield picture()

    stream = predictor().stream(endless(), batch_size=3)
    for count in range(1, 20):
        next(stream)
        assert taken <= count + 2 * 3 + 3
    stream.close()  # type: ignore[attr-defined]


def test_the_reader_works_while_the_network_runs() -> None:
    """The engine waits until a picture of the next batch was taken, which only another thread can do."""
    taken_next = threading.Event()

    class Waiting(BrightSquare):
        def __call__(
            self, images: NDArray[np.uint8]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
            assert taken_next.wait(timeout=10)
            return super().__call__(images)

    def sources() -> Iterator[NDArray[np.uint8]]:
        yield picture()
        taken_next.set()
        yield picture()

    assert len(predictor(Waiting()).predict(sources(), batch_size=1)) == 2


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("setdet-reader")]


@pytest.mark.parametrize("how", ["close", "drop", "engine fails", "on_error fails"])
def test_no_thread_stays_behind(how: str) -> None:
    class Failing(BrightSquare):
        def __call__(
            self, images: NDArray[np.uint8]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
            raise KeyError("engine")

    def refuse(source: str, error: ImageError) -> None:
        raise KeyError(source)

    assert readers() == []
    if how == "engine fails":
        with pytest.raises(KeyError, match="engine"):
            predictor(Failing()).predict(numbered(20))
    elif how == "on_error fails":
        with pytest.raises(KeyError, match="missing"):
            list(predictor().stream([*numbered(3), "missing.png", *numbered(20)], on_error=refuse))
    else:
        stream = predictor().stream(numbered(30), batch_size=2)
        next(stream)
        assert readers() != []
        if how == "close":
            stream.close()  # type: ignore[attr-defined]
        else:
            del stream
    assert readers() == []


def test_a_source_that_waits_for_its_next_picture_doesn_t_hold_up_who_leaves() -> None:
    asked, given = threading.Event(), threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        yield from numbered(2)
        asked.set()
        given.wait(timeout=30)
        yield picture()

    stream = predictor().stream(camera(), batch_size=1)
    assert len(next(stream)) == 1 and asked.wait(timeout=10)
    stream.close()  # type: ignore[attr-defined]
    assert len(readers()) == 1
    given.set()
    for thread in threading.enumerate():
        if thread.name in readers():
            thread.join(timeout=10)
    assert readers() == []


@pytest.mark.parametrize("end", [StopIteration, TimeoutError])
def test_a_source_is_asked_for_nothing_after_its_end(end: type[Exception]) -> None:
    class Camera:
        asked = 0

        def __iter__(self) -> "Camera":
            return self

        def __next__(self) -> NDArray[np.uint8]:
            self.asked += 1
            if self.asked == 3:
                raise end
            return picture()

    camera, found = Camera(), []
    with contextlib.suppress(TimeoutError):
        for one in predictor().stream(camera, batch_size=4):
            found.append(one)
    assert len(found) == 2 and camera.asked == 3


def test_output_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    class Nan(BrightSquare):
        def __call__(
            self, images: NDArray[np.uint8]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
            boxes, scores, labels = super().__call__(images)
            scores[-1] = np.nan
            return boxes, scores, labels

    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture())
    stream = predictor(Nan()).stream([*numbered(2), path])
    assert numbers([next(stream).scores[0] for _ in range(2)]) == [0, 1]
    with pytest.raises(SetdetError, match=r"a\.png: .*not finite.*bf16 or fp32"):
        next(stream)


def test_logits_that_are_no_numbers_are_not_passed_over() -> None:
    logits = np.zeros((1, 6, 2), np.float32)
    logits[0, 3, 1] = np.nan
    _, scores, _ = best_candidates(logits, np.full((1, 6, 4), 0.5, np.float32), top_k=4)
    assert np.isnan(scores).sum() == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.tif", ".hidden/d.png", "sub/.e.png", "odd[1].png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["pictures"], ["a.JPG", "b.png", "odd[1].png", "sub/c.tif"]),
        (["pictures/*"], ["a.JPG", "b.png", "odd[1].png", "sub/c.tif"]),
        (["pictures/*.png"], ["b.png", "odd[1].png"]),
        (["pictures/**/*.tif"], ["sub/c.tif"]),
        (["pictures/odd[1].png"], ["odd[1].png"]),
        (["pictures/notes.txt"], ["notes.txt"]),
        (["pictures/b.png", "pictures/*.png", Path("pictures/a.JPG")], ["a.JPG", "b.png", "odd[1].png"]),
    ],
)
def test_expand_sources(folder: Path, patterns: list[str], expected: list[str]) -> None:
    assert expand_sources(patterns) == [Path("pictures") / name for name in expected]


def test_a_tilde_that_stands_for_nobody_is_a_name(folder: Path) -> None:
    (folder / "~$draft.png").touch()
    assert expand_sources(["~$draft.png"]) == [Path("~$draft.png")]
    with pytest.raises(UsageError, match="there is no such file or folder"):
        expand_sources(["~nobody-is-called-so/a.png"])


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([], "No pictures were given"),
        (["pictures", "missing.png"], r"missing\.png: there is no such file or folder"),
        (["missing/*.png"], r"missing/\*\.png: no file matches"),
        (["empty"], r"empty: there is no picture in the folder.*\.png"),
        (["pictures/*.txt"], "there is no picture in what the pattern matches"),
        ("pictures", r"as a list: expand_sources\(\['pictures'\]\)"),
    ],
)
def test_expand_sources_without_a_match(folder: Path, patterns: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        expand_sources(patterns)
