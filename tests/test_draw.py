"""Drawing detections."""

import numpy as np
import pytest
from numpy.typing import NDArray

from setdet.detections import Detections
from setdet.draw import PALETTE, draw_detections
from setdet.errors import UsageError


def found(boxes: list[list[float]], *, size: tuple[int, int], names: tuple[str, ...] = ("patches",)) -> Detections:
    return Detections.from_arrays(
        boxes_xyxy_px=boxes,
        scores=np.linspace(0.9, 0.1, len(boxes)),
        labels=np.arange(len(boxes)) % len(names),
        class_names=names,
        image_size=size,
    )


def pixels_of(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> int:
    return int((picture == color).all(axis=-1).sum())


def test_the_picture_itself_stays_as_it_is() -> None:
    image = np.full((500, 500, 3), 90, np.uint8)
    drawn = draw_detections(image, found([[100, 100, 300, 300]], size=(500, 500)))
    assert drawn.shape == image.shape and (image == 90).all() and (drawn != 90).any()


def test_the_box_is_where_it_belongs() -> None:
    drawn = draw_detections(np.full((500, 600, 3), 90, np.uint8), found([[100, 200, 300, 400]], size=(500, 600)))
    for y, x in ((300, 100), (300, 300), (400, 200), (400, 250)):
        assert tuple(drawn[y, x]) == PALETTE[0]
    assert tuple(drawn[300, 200]) == (90, 90, 90)  # its inside is left to be seen
    assert tuple(drawn[198, 102]) == PALETTE[0]  # the label's plate is above it


def test_boxes_are_enlarged_with_their_picture_and_the_best_is_on_top() -> None:
    boxes = [[10.0, 20.0, 50.0, 36.0]] * 2
    drawn = draw_detections(
        np.full((40, 60, 3), 90, np.uint8), found(boxes, size=(40, 60), names=("the best", "another"))
    )
    assert drawn.shape == (7 * 40, 7 * 60, 3)
    for y, x in ((28, 10), (28, 50), (36, 30)):
        assert tuple(drawn[7 * y, 7 * x]) == PALETTE[0]
    assert tuple(drawn[7 * 28, 7 * 30]) == tuple(drawn[7 * 28, 7 * 5]) == (90, 90, 90)


@pytest.mark.parametrize("size", [(1, 1), (32, 48), (200, 200), (900, 40), (40, 900), (1500, 2000)])
def test_labels_at_any_size(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((*size, 3), 90, np.uint8)
    drawn = draw_detections(image, found([[0, 0, width, height]], size=size))
    assert max(drawn.shape) >= 400
    assert drawn.shape[0] % height == 0 and drawn.shape[0] // height == drawn.shape[1] // width
    assert pixels_of(drawn, PALETTE[0]) > 0
    if min(drawn.shape[:2]) >= 200:  # text as high as twelve pixels at least, in black on its plate
        plate = (drawn == PALETTE[0]).all(axis=-1).sum(axis=1)
        assert (plate > 30).sum() >= 12


def test_no_enlarging_on_request() -> None:
    image = np.full((64, 64, 3), 90, np.uint8)
    assert draw_detections(image, found([[5, 5, 50, 50]], size=(64, 64)), min_side=0).shape == image.shape


def test_nothing_found_draws_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (450, 450, 3), dtype=np.uint8)
    drawn = draw_detections(image, found([], size=(450, 450)))
    assert (drawn == image).all() and drawn is not image


def test_labels_make_way_for_each_other() -> None:
    names = ("one", "two")
    both = draw_detections(
        np.full((500, 500, 3), 90, np.uint8), found([[100, 200, 300, 300]] * 2, size=(500, 500), names=names)
    )
    # Both plates are whole: the second is not under the first.
    assert pixels_of(both, PALETTE[0]) > 500 and pixels_of(both, PALETTE[1]) > 500


def test_every_class_has_a_colour() -> None:
    names = tuple(f"class {i}" for i in range(20))
    boxes = [[10.0 * i, 10.0 * i, 10.0 * i + 200, 10.0 * i + 200] for i in range(20)]
    drawn = draw_detections(np.full((500, 500, 3), 90, np.uint8), found(boxes, size=(500, 500), names=names))
    assert all(pixels_of(drawn, color) > 100 for color in PALETTE)


def test_a_name_that_the_font_has_no_letters_for() -> None:
    image, boxes = np.full((500, 500, 3), 90, np.uint8), [[100.0, 200.0, 300.0, 300.0]]

    def drawn(name: str) -> NDArray[np.uint8]:
        return draw_detections(image, found(boxes, size=(500, 500), names=(name,)))

    assert (drawn("划痕") == drawn("#0")).all()
    assert (drawn("Kratzér") == drawn("Kratzer")).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"found \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 9, 3), np.uint8), "8 x 9"),
    ],
)
def test_wrong_pictures(image: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_detections(image, found([], size=(8, 8)))
