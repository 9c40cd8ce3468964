"""Pictures as arrays: decoding, orientation, bit depth, and one way to the network's input size. No torch."""

import mmap
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from setdet.config import Config
from setdet.errors import DataError, ImageError
from setdet.headers import JPEG_START, exif_orientation, jpeg_is_whole, jpeg_size, largest_value, stated_size

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)

# How a JPEG can be decoded smaller than it is.
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}


class Preprocessing(Config):
    """How a picture becomes the network's input. Travels in every checkpoint, obeyed by every runtime."""

    image_size: tuple[int, int] = Field(description="(height, width) of the network's input in pixels.")
    resize: Literal["stretch", "letterbox"] = Field(
        default="stretch", description="stretch: fill the input; letterbox: keep the aspect, centred, black borders."
    )
    filter: Literal["area-linear"] = Field(
        default="area-linear", description="Resampling: pixel areas when shrinking, linear when enlarging."
    )

    @field_validator("image_size")
    @classmethod
    def _multiples_of_32(cls, size: tuple[int, int]) -> tuple[int, int]:
        if any(side < 32 or side % 32 for side in size):
            raise ValueError("height and width must be positive multiples of 32")
        return size


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input, in whole pixels.

    Attributes:
        original_size: (height, width) of the picture.
        input_size: (height, width) of the network's input.
        top, left: first row and column of the picture in the input.
        height, width: size of the picture in the input.
    """

    original_size: tuple[int, int]
    input_size: tuple[int, int]
    top: int
    left: int
    height: int
    width: int

    def to_original(self, boxes_xyxy: NDArray[np.floating[Any]], *, clip: bool = True) -> NDArray[np.float32]:
        """Corners as shares of the network's input (0 to 1) → pixels of the picture, clipped to it. Shape (n, 4)."""
        height, width = self.original_size
        input_height, input_width = self.input_size
        pixels = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 2, 2) * (input_width, input_height)
        pixels = (pixels - (self.left, self.top)) * (width / self.width, height / self.height)
        if clip:
            pixels = pixels.clip(0, (width, height))
        return pixels.astype(np.float32).reshape(-1, 4)

    def to_input(self, boxes_xyxy_px: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Corners in pixels of the picture → shares of the network's input (0 to 1). Shape (n, 4)."""
        height, width = self.original_size
        input_height, input_width = self.input_size
        pixels = np.asarray(boxes_xyxy_px, dtype=np.float64).reshape(-1, 2, 2)
        pixels = pixels * (self.width / width, self.height / height) + (self.left, self.top)
        return (pixels / (input_width, input_height)).astype(np.float32).reshape(-1, 4)


def place(height: int, width: int, preprocessing: Preprocessing) -> Placement:
    """Where a picture of this size lies in the network's input."""
    input_height, input_width = preprocessing.image_size
    placed_height, placed_width = input_height, input_width
    if preprocessing.resize == "letterbox":
        scale = min(input_height / height, input_width / width)
        placed_height, placed_width = max(1, round(height * scale)), max(1, round(width * scale))
    return Placement(
        original_size=(height, width),
        input_size=preprocessing.image_size,
        top=(input_height - placed_height) // 2,
        left=(input_width - placed_width) // 2,
        height=placed_height,
        width=placed_width,
    )


def preprocess(
    image: NDArray[np.uint8], preprocessing: Preprocessing, *, original_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], Placement]:
    """The network's input, uint8 (height, width, 3) RGB, and where the picture lies in it.

    Args:
        image: uint8 (height, width, 3) RGB.
        preprocessing: the input's size and how to fill it.
        original_size: (height, width) of the picture where `image` is a reduced one; None: the image's.
    """
    height, width = image.shape[:2] if original_size is None else original_size
    placement = place(height, width, preprocessing)
    resized = resize(image, placement.height, placement.width)
    if (placement.height, placement.width) == placement.input_size:
        return resized, placement
    canvas = np.zeros((*placement.input_size, 3), dtype=np.uint8)
    rows = slice(placement.top, placement.top + placement.height)
    columns = slice(placement.left, placement.left + placement.width)
    canvas[rows, columns] = resized
    return canvas, placement


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resamples a uint8 (h, w, 3) picture without aliasing: pixel areas when shrinking, linear when enlarging.

    OpenCV averages areas only where both sides shrink, so a picture that shrinks along one side and grows along
    the other is done in two steps.
    """
    image = np.ascontiguousarray(image)
    shrunk = (min(height, image.shape[0]), min(width, image.shape[1]))
    if shrunk != image.shape[:2]:
        image = cv2.resize(image, shrunk[::-1], interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    if shrunk != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return image


def files_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The files with one of these endings in `folder` and all folders in it, sorted.

    Linked folders count, each once; what is hidden (`.thumbnails`, macOS' `._` twins of files) does not.

    Raises:
        DataError: one of the folders cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}). Correct its permissions.")

    found: list[Path] = []
    visited: set[str] = set()
    starts = [str(folder)]
    for start in starts:  # grows by the links, so that a folder is found under its own path where it has one
        for here, folders, names in os.walk(start, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            real = os.path.realpath(here)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            inner = (os.path.join(here, name) for name in folders)
            starts += [path for path in inner if os.path.islink(path)]
            files = (Path(here, name) for name in names if not name.startswith("."))
            found += [file for file in files if file.suffix.lower() in suffixes]
    return sorted(found)


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Decodes a picture to uint8 (height, width, 3) RGB.

    Greyscale is repeated, 16 bits are scaled by their full range (never by the content, which would make the same
    grey mean different things in different pictures), values of a PGM or PPM file by the largest that it declares.
    Alpha lies over black, EXIF orientation is applied.

    Raises:
        ImageError: the file is missing, cut short, or no picture.
    """
    data = _read_whole(path)
    return _decode(data, path, cv2.IMREAD_UNCHANGED)


def read_reduced(path: Path | str, height: int, width: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """As `read_image`, but a JPEG comes at a half, a quarter or an eighth of its size if that covers height × width.

    The decoder leaves out high frequencies in place of computing pixels that are averaged afterwards: faster, and not
    quite the same pixels. Sides that the factor doesn't divide would be stretched by up to a pixel, so they have to.

    Returns:
        The pixels, and the (height, width) of the whole picture.

    Raises:
        ImageError: as `read_image`.
    """
    data = _read_whole(path)
    size = jpeg_size(data) if data.startswith(JPEG_START) else None
    if size is None:
        image = _decode(data, path, cv2.IMREAD_UNCHANGED)
        return image, (image.shape[0], image.shape[1])
    if exif_orientation(data) >= 5:
        size = size[::-1]
    sides = ((size[0], height), (size[1], width))
    fitting = (one for one in _REDUCED if all(side >= one * least and side % one == 0 for side, least in sides))
    factor = next(fitting, None)
    flags = cv2.IMREAD_UNCHANGED if factor is None else _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION
    return _decode(data, path, flags), size


def _read_whole(path: Path | str) -> bytes:
    data = _read_bytes(path)
    if not data:
        raise ImageError(f"{path}: the file is empty (0 bytes). Copy it again from its source, or remove it.")
    if data.startswith(JPEG_START) and not jpeg_is_whole(data):
        # OpenCV would fill the missing part with grey and say nothing.
        raise ImageError(f"{path}: the JPEG file is cut short. Copy it again from its source, or remove it.")
    return data


def _decode(data: bytes, path: Path | str, flags: int) -> NDArray[np.uint8]:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{path}: cannot be decoded as a picture ({error.err}).") from None
    if decoded is None:
        raise ImageError(
            f"{path}: cannot be decoded as a picture; expected one of {', '.join(sorted(IMAGE_SUFFIXES))}. "
            "Open it in a viewer; if it is broken there too, copy it again from its source or remove it."
        )
    if decoded.ndim == 3 and decoded.shape[2] >= 3:
        decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB if decoded.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    white = largest_value(data)
    if white is not None and white not in (255, 65535):
        decoded = ((decoded.astype(np.uint32) * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)
    return _orient(to_rgb_uint8(decoded, source=str(path)), exif_orientation(data))


def to_rgb_uint8(array: NDArray[Any], *, source: str = "array") -> NDArray[np.uint8]:
    """Any grey, grey + alpha, RGB or RGBA array of 8 or 16 bits → uint8 (height, width, 3) RGB.

    Args:
        array: (height, width) or (height, width, 1 to 4), uint8, uint16 or bool.
        source: what to call it in messages.

    Raises:
        ImageError: another shape or type.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or not 1 <= array.shape[2] <= 4 or 0 in array.shape:
        raise ImageError(f"{source}: expected a picture of shape (height, width[, 1 to 4]), found {array.shape}.")
    if array.dtype.newbyteorder("=") == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        raise ImageError(
            f"{source}: expected 8 or 16 bits without sign, found {array.dtype}, which declares no range. "
            "Scale it to 0…255 and convert it to uint8."
        )
    channels = array.shape[2]
    if channels in (2, 4):
        colors, alpha = array[:, :, :-1].astype(np.uint16), array[:, :, -1:].astype(np.uint16)
        array = ((colors * alpha + 127) // 255).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) of a picture as `read_image` gives it; PNG and JPEG are not decoded for it.

    Raises:
        ImageError: the file is missing or no picture.
    """
    try:
        # Mapped: of megabytes, only the pages that are looked at are read.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            size = stated_size(data)
    except (OSError, ValueError):  # missing, or empty: reading it says so
        size = None
    if size is None:
        height, width = read_image(path).shape[:2]
        return height, width
    return size


def _read_bytes(path: Path | str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        what = "Give the pictures in it." if isinstance(error, IsADirectoryError) else "Check the path."
        raise ImageError(f"{path}: cannot be read ({error.strerror}). {what}") from None


def _orient(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Applies an EXIF orientation, 1 to 8."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)
