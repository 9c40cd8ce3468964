"""From pictures to detections: reading ahead, batching, boxes back in the picture's pixels. No torch."""

import glob
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from setdet.detections import Detections
from setdet.errors import ImageError, SetdetError, UsageError, one_line
from setdet.images import (
    IMAGE_SUFFIXES,
    Placement,
    Preprocessing,
    files_below,
    preprocess,
    read_image,
    read_reduced,
    to_rgb_uint8,
)
from setdet.readahead import ReadAhead
from setdet.runtime.base import Runtime
from setdet.thresholds import Threshold, lowest_scores

if TYPE_CHECKING:
    from PIL.Image import Image

    Source = str | os.PathLike[str] | NDArray[Any] | Image


@dataclass(frozen=True)
class _Picture:
    """A picture that is ready for the network."""

    pixels: NDArray[np.uint8]
    placement: Placement
    image_size: tuple[int, int]
    source: str


@dataclass(frozen=True)
class _Broken:
    """A picture that cannot be read."""

    source: str
    error: ImageError


class Predictor:
    """Detects on pictures of any size and kind with any engine.

    A source is a path, a numpy array (height, width) or (height, width, channels) in RGB order, 8 or 16 bit, or a
    PIL picture.
    """

    def __init__(
        self,
        *,
        runtime: Runtime,
        class_names: Iterable[str],
        preprocessing: Preprocessing,
        threshold: Threshold = 0.5,
        reduced_decoding: bool = False,
    ) -> None:
        """Puts the parts together.

        Args:
            runtime: runs the network.
            class_names: in the order of the network's labels.
            preprocessing: what the network was trained with.
            threshold: the lowest score to keep where no other is asked for, for all classes or by class name.
            reduced_decoding: large JPEG files are decoded at a half, a quarter or an eighth of their size, where that
                still covers the network's input: faster, and not quite the same pixels.
        """
        self.threshold = threshold
        self.reduced_decoding = reduced_decoding
        self.runtime = runtime
        self.class_names = tuple(class_names)
        self.preprocessing = preprocessing

    def predict(
        self, sources: "Iterable[Source]", *, threshold: Threshold | None = None, batch_size: int = 8
    ) -> list[Detections]:
        """Detects on every source of a list; the result is a list in the same order.

        Args:
            sources: the pictures; a single one goes in a list.
            threshold: the lowest score to keep, 0 to 1, for all classes or by class name; 0 keeps every query's
                candidates that have an area; None: the predictor's own.
            batch_size: pictures that go through the network at once.

        Raises:
            UsageError: `sources` is a lone picture, or another argument is out of range.
            ImageError: a picture cannot be read; the message names it.
        """
        return list(self.stream(sources, threshold=threshold, batch_size=batch_size))

    def stream(
        self,
        sources: "Iterable[Source]",
        *,
        threshold: Threshold | None = None,
        batch_size: int = 8,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Detections]:
        """As `predict`, one result after the other in constant memory, for any number of pictures.

        A thread iterates over `sources` and decodes up to two batches ahead while the network runs. Dropping or
        closing the iterator stops it, once `sources` has given what it is asked for at that moment.

        Args:
            sources: see `predict`; a generator may be endless, and an array be written to again once the next one is
                asked for.
            threshold: see `predict`.
            batch_size: see `predict`. Results come when their batch is complete: 1 for a camera, whose next picture
                may be long in coming.
            on_error: called in the picture's turn with its name ("picture 3" of an array, counted from 1) and the
                error where a picture cannot be read, or is None, as OpenCV has it; such a picture yields nothing.
                None: the error is raised, after the results of the pictures before it.

        Raises:
            UsageError, ImageError: as in `predict`.
            SetdetError: the network's output on a picture is not finite.
        """
        if isinstance(sources, (str, bytes, os.PathLike, np.ndarray)) or _is_pil(sources):
            raise UsageError(
                f"Pictures go in as a list, and a {type(sources).__name__} is not one: write predict([picture]), "
                "or predict(list(pictures)) for an array of pictures."
            )
        if not isinstance(sources, Iterable):
            raise UsageError(f"Expected a list of pictures, found {type(sources).__name__}.")
        lowest = lowest_scores(self.threshold if threshold is None else threshold, self.class_names)
        if batch_size < 1:
            raise UsageError(f"The batch size is {batch_size}; expected 1 or more.")
        return self._stream(iter(sources), lowest=lowest, batch_size=batch_size, on_error=on_error)

    def _stream(
        self,
        sources: "Iterator[Source]",
        *,
        lowest: NDArray[np.float32],
        batch_size: int,
        on_error: Callable[[str, ImageError], None] | None,
    ) -> Iterator[Detections]:
        numbers = itertools.count(1)
        pictures = ReadAhead(sources, lambda source: self._read(source, next(numbers)), ahead=2 * batch_size)
        try:
            while not pictures.ended:
                batch = pictures.take(batch_size)
                results = self._detect([item for item in batch if isinstance(item, _Picture)], lowest)
                for item in batch:
                    if isinstance(item, _Picture):
                        yield next(results)
                    elif on_error is None:
                        raise item.error
                    else:
                        on_error(item.source, item.error)
            if pictures.failure is not None:
                raise pictures.failure
        finally:
            pictures.close()

    def _read(self, source: "Source", number: int) -> "_Picture | _Broken":
        """The `number`th source, decoded and resized."""
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else f"picture {number}"
        try:
            if self.reduced_decoding and isinstance(source, (str, os.PathLike)):
                image, size = read_reduced(name, *self.preprocessing.image_size)
            else:
                image = _decode(source, name)
                size = (image.shape[0], image.shape[1])
            pixels, placement = preprocess(image, self.preprocessing, original_size=size)
        except ImageError as error:
            # Whoever keeps the error shall not keep the file's bytes, which the traceback's frames hold.
            error.__context__ = None
            return _Broken(source=name, error=error.with_traceback(None))
        if isinstance(source, np.ndarray) and np.may_share_memory(pixels, source):
            pixels = pixels.copy()  # a camera may write its next picture to the same memory
        return _Picture(pixels=pixels, placement=placement, image_size=size, source=name)

    def _detect(self, pictures: list[_Picture], lowest: NDArray[np.float32]) -> Iterator[Detections]:
        """One batch through the network."""
        if not pictures:
            return
        found = self.runtime(np.stack([picture.pixels for picture in pictures]))
        for picture, boxes, scores, labels in zip(pictures, *found, strict=True):
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise SetdetError(
                    f"{picture.source}: the network's output on it is not finite. If it runs in fp16, use bf16 or "
                    "fp32; otherwise the weights are broken."
                )
            boxes_px = picture.placement.to_original(boxes)
            # A label that has no name is for `Detections` to refuse.
            keep = (scores >= np.take(lowest, labels, mode="clip")) & have_area(boxes_px)
            yield Detections.from_arrays(
                boxes_xyxy_px=boxes_px[keep],
                scores=scores[keep],
                labels=labels[keep],
                class_names=self.class_names,
                image_size=picture.image_size,
                source=picture.source,
            )


def have_area(boxes_xyxy_px: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which boxes have an area: one in the border of a letterbox has none on the picture, and is no detection."""
    return np.all(boxes_xyxy_px[:, 2:] > boxes_xyxy_px[:, :2], axis=1)


def expand_sources(patterns: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The pictures meant by files, folders (searched all the way down) and globs (`**` included).

    A file that is named is taken whatever its ending is; folders and globs give the files with a picture's ending,
    hidden ones left out.

    Returns:
        The paths, sorted, each once.

    Raises:
        UsageError: nothing was given, or one of the patterns matches no picture.
    """
    if isinstance(patterns, (str, os.PathLike)):
        raise UsageError(f"Files, folders and globs go in as a list: expand_sources([{str(patterns)!r}]).")
    found: set[Path] = set()
    wanted = list(patterns)
    if not wanted:
        raise UsageError("No pictures were given. Expected files, folders or globs.")
    for pattern in wanted:
        path = _expanded(Path(pattern))
        if path.is_file():
            found.add(path)
            continue
        is_folder = path.is_dir()
        matches = [path] if is_folder else [Path(match) for match in glob.glob(str(path), recursive=True)]
        pictures = [picture for match in matches for picture in _pictures_at(match)]
        if not pictures:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            if is_folder or matches:
                what = "the folder" if is_folder else "what the pattern matches"
                raise UsageError(f"{pattern}: there is no picture in {what}. Expected files ending in {endings}.")
            kind = "no file matches this pattern" if glob.has_magic(str(path)) else "there is no such file or folder"
            raise UsageError(f"{pattern}: {kind} (looked from {Path.cwd()}).")
        found.update(pictures)
    return sorted(found)


def _expanded(path: Path) -> Path:
    """With `~` resolved, unless a file is called so, or nobody."""
    if os.path.exists(path):
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # there is no such user
        return path


def _pictures_at(path: Path) -> list[Path]:
    if path.is_dir():
        return files_below(path)
    return [path] if path.suffix.lower() in IMAGE_SUFFIXES else []


def _decode(source: Any, called: str) -> NDArray[np.uint8]:
    """A source as uint8 RGB (height, width, 3).

    Raises:
        ImageError: it cannot be read.
        UsageError: it is of none of the kinds that are known.
    """
    if isinstance(source, (str, os.PathLike)):
        return read_image(Path(source))
    if _is_pil(source):
        try:
            source = _pil_to_array(source)
        except Exception as error:  # Pillow decodes a file when its pixels are first asked for, and may find it closed
            raise ImageError(f"{called}: the PIL picture cannot be decoded ({one_line(error)}).") from None
    if source is None:
        raise ImageError(
            f"{called}: there is no picture, but None: what OpenCV gives for a broken file or a lost frame."
        )
    if not isinstance(source, np.ndarray):
        raise UsageError(f"{called}: expected a path, a numpy array or a PIL picture, found {type(source).__name__}.")
    return to_rgb_uint8(source, source=called)


def _is_pil(source: object) -> bool:
    # Whoever holds a PIL picture has imported Pillow; whoever has not need not have it installed.
    pil = sys.modules.get("PIL.Image")
    return pil is not None and isinstance(source, pil.Image)


def _pil_to_array(image: "Image") -> NDArray[Any]:
    """Pixels of a PIL picture, turned upright by its EXIF orientation, in a layout that `to_rgb_uint8` reads."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    pixels = np.asarray(upright)
    if upright.mode.startswith("I") and 0 <= pixels.min() and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)  # 16 bits, which Pillow may hold in 32
    if upright.mode in ("L", "RGB", "RGBA", "I", "F"):
        return pixels
    return np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
