"""Every kind of picture becomes the same kind of array, and boxes come back from the network's input."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from setdet.errors import ConfigError, DataError, ImageError
from setdet.images import (
    Preprocessing,
    files_below,
    image_size,
    place,
    preprocess,
    read_image,
    read_reduced,
    resize,
    to_rgb_uint8,
)
from setdet.predict import expand_sources


def random_image(height: int = 9, width: int = 14, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "ppm"])
def test_lossless_files_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    image = random_image()
    Image.fromarray(image).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), image)


def test_greyscale_is_repeated(tmp_path: Path) -> None:
    grey = random_image()[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([grey] * 3, axis=2))


def test_sixteen_bits_are_scaled_by_their_range_not_by_content(tmp_path: Path) -> None:
    dark = np.array([[0, 257, 514], [128, 129, 2570]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), dark)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[:, :, 0], [[0, 1, 2], [0, 1, 10]])
    for order in "<>":
        assert to_rgb_uint8(np.full((1, 1), 2570, dtype=f"{order}u2")).max() == 10


@pytest.mark.parametrize("kind", ["binary", "text"])
@pytest.mark.parametrize(("white", "depth"), [(100, "u1"), (255, "u1"), (4095, ">u2"), (65535, ">u2")])
def test_a_camera_s_raw_grey_is_scaled_by_the_range_that_its_file_declares(
    tmp_path: Path, white: int, depth: str, kind: str
) -> None:
    values = [0, white // 5, white]
    text = "".join(f"{value}\n" for value in values).encode()
    pixels = np.array(values, dtype=depth).tobytes() if kind == "binary" else text
    path = tmp_path / "a.pgm"
    path.write_bytes(f"P{5 if kind == 'binary' else 2} 3 # columns\n1\n{white}\n".encode() + pixels)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 51, 255])
    assert expand_sources([str(tmp_path)]) == [path]


def test_alpha_lies_over_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[200, 100, 50], [0, 0, 0], [100, 50, 25]]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "RGB"), ("png", "RGB"), ("png", "RGBA"), ("webp", "RGB")])
def test_exif_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int, suffix: str, mode: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Blocks of 8 pixels, so that a JPEG's loss stays small.
    pixels = random_image(2, 3).repeat(8, axis=0).repeat(8, axis=1)
    options = {"lossless": True} if suffix == "webp" else {"quality": 98, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(pixels).convert(mode).save(path, exif=exif, **options)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = read_image(path)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 6
    assert image_size(path) == image.shape[:2]


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_smaller_as_long_as_it_covers_what_is_asked_for(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = cv2.resize(random_image(6, 8), (800, 600), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=98, subsampling=0, exif=exif)
    whole = read_image(tmp_path / "a.jpg")
    for asked, factor in ((600, 1), (301, 1), (300, 2), (151, 2), (150, 4), (75, 8), (10, 8)):
        pixels, size = read_reduced(tmp_path / "a.jpg", asked, asked)
        assert size == whole.shape[:2]
        assert pixels.shape[:2] == (size[0] // factor, size[1] // factor)
        expected = resize(whole, *pixels.shape[:2])
        assert np.abs(pixels.astype(int) - expected).mean() < 3
    Image.fromarray(smooth).save(tmp_path / "a.png")
    Image.fromarray(smooth[:-1, :-4]).save(tmp_path / "odd.jpg")
    assert [read_reduced(tmp_path / name, 10, 10)[0].shape[:2] for name in ("a.png", "odd.jpg")] == [
        (600, 800),
        (599, 796),
    ]
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:5000])
    with pytest.raises(ImageError, match="cut short"):
        read_reduced(tmp_path / "b.jpg", 10, 10)


def test_size_of_files_without_a_short_way_is_decoded(tmp_path: Path) -> None:
    Image.fromarray(random_image()).save(tmp_path / "a.bmp")
    assert image_size(tmp_path / "a.bmp") == (9, 14)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_size_is_learnt_without_reading_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    Image.fromarray(random_image()).save(tmp_path / f"a.{suffix}")
    monkeypatch.delattr(Path, "read_bytes")
    assert image_size(tmp_path / f"a.{suffix}") == (9, 14)


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(random_image(200, 200)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(data[: len(data) // 2])
    for name, words in {
        "text.png": "cannot be decoded",
        "short.jpg": "cut short",
        "missing.png": "cannot be read",
    }.items():
        with pytest.raises(ImageError, match=f"{name}.*{words}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_whole_up_to_its_own_end(tmp_path: Path, progressive: bool) -> None:
    thumbnail = b"\xff\xd8 \xff\xda\0\0 \xff\xd9"  # the markers of a picture inside a segment
    picture = Image.fromarray(random_image(99, 140))
    picture.save(tmp_path / "a.jpg", progressive=progressive, restart_marker_rows=1, comment=thumbnail)
    data = (tmp_path / "a.jpg").read_bytes()
    image = read_image(tmp_path / "a.jpg")
    for behind in (b"\0" * 9, b"film \xff\xda and \xff", data[: len(data) // 2]):
        (tmp_path / "b.jpg").write_bytes(data + behind)
        np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), image)
    for length in (3, 30, len(data) // 2, len(data) - 40, len(data) - 2, len(data) - 1):
        (tmp_path / "b.jpg").write_bytes(data[:length])
        with pytest.raises(ImageError, match="cut short"):
            read_image(tmp_path / "b.jpg")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="array: expected"):
        to_rgb_uint8(array)


def test_shrinking_averages_areas_along_each_side() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    assert np.all(resize(stripes, 16, 16) == 100)
    # Shrinks one way and grows the other: still no aliasing.
    assert np.all(resize(stripes, 96, 16) == 100)


@pytest.mark.parametrize("mode", ["stretch", "letterbox"])
@given(height=st.integers(1, 300), width=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_boxes_come_back_from_the_input(mode: str, height: int, width: int) -> None:
    placement = place(height, width, Preprocessing(image_size=(96, 160), resize=mode))
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height / 1.5]], dtype=np.float32)
    inside = placement.to_input(boxes)
    assert inside.min() >= 0 and inside.max() <= 1
    np.testing.assert_allclose(placement.to_original(inside), boxes, atol=1e-3 * max(height, width) / 96 + 1e-3)


def test_letterbox_keeps_the_aspect_on_black() -> None:
    image = np.full((50, 100, 3), 255, dtype=np.uint8)
    result, placement = preprocess(image, Preprocessing(image_size=(64, 64), resize="letterbox"))
    assert (placement.top, placement.left, placement.height, placement.width) == (16, 0, 32, 64)
    assert result.shape == (64, 64, 3)
    assert np.all(result[16:48] == 255) and not result[:16].any() and not result[48:].any()
    # What lies in the border comes back clipped to the picture.
    np.testing.assert_allclose(placement.to_original(np.array([[0.0, 0.0, 1.0, 1.0]])), [[0, 0, 100, 50]])


def test_input_sizes_must_be_multiples_of_32() -> None:
    with pytest.raises(ConfigError, match="multiples of 32"):
        Preprocessing.from_dict({"image_size": [224, 230]})


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.png: the file is empty"):
            read(tmp_path / "a.png")


def test_pictures_are_found_in_linked_folders_but_not_in_hidden_ones(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    for path in (folder / "b.PNG", folder / "z/c.jpg", elsewhere / "d.tif", elsewhere / "deep/e.bmp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for hidden in (folder / ".thumbnails/f.png", folder / "._b.PNG", elsewhere / ".g.png", folder / "notes.txt"):
        hidden.parent.mkdir(exist_ok=True)
        hidden.touch()
    (folder / "m").symlink_to(elsewhere, target_is_directory=True)
    (folder / "a").symlink_to(folder / "z", target_is_directory=True)  # has a path of its own: counts once
    (elsewhere / "back").symlink_to(folder, target_is_directory=True)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")  # named when it is opened
    expected = [folder / name for name in ("b.PNG", "gone.png", "m/d.tif", "m/deep/e.bmp", "z/c.jpg")]
    assert files_below(folder) == expected
    assert expand_sources([folder]) == expected
    assert files_below(folder, {".txt"}) == [folder / "notes.txt"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as somebody who may read everything
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        files_below(tmp_path)
