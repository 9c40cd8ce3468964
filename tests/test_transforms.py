"""Boxes stay on their pixels whatever is done to the picture."""

import itertools

import cv2
import numpy as np
import pytest

from setdet.data.mixing import augment
from setdet.data.schema import Sample
from setdet.data.transforms import (
    NO_AUGMENTATION,
    AugmentConfig,
    batch_preprocessing,
    color_matrix,
    published_scales,
)
from setdet.data.windows import LUMA
from setdet.errors import ConfigError
from setdet.images import Preprocessing

HEIGHT, WIDTH = 120, 180
# One box in each third of each half, not touching: left, top, right, bottom.
BOXES = np.array(
    [
        [60 * column + 8 + 5 * row, 60 * row + 6 + 3 * column, 60 * column + 50, 60 * row + 48 + 2 * column]
        for row, column in itertools.product(range(2), range(3))
    ],
    dtype=np.float32,
)


def painted_sample(boxes: np.ndarray = BOXES) -> Sample:
    """Each box filled with a grey of its own on black, so that pixels tell where it went."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for label, (left, top, right, bottom) in enumerate(boxes.astype(int)):
        image[top:bottom, left:right] = 40 * (label + 1)
    return Sample(
        image=image,
        boxes_xyxy_px=boxes,
        labels=np.arange(len(boxes)),
        crowd=np.arange(len(boxes)) % 2 == 1,
        name="painted",
    )


def extent(image: np.ndarray, label: int) -> np.ndarray | None:
    """The corners of the pixels of box `label`'s grey, without the thin edges where a brighter box fades to black."""
    mask = (np.abs(image[:, :, 0].astype(int) - 40 * (label + 1)) <= 3).astype(np.uint8)
    rows, columns = np.nonzero(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((4, 4), dtype=np.uint8)))
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) if len(rows) else None


GEOMETRY = {
    "nothing": {},
    "horizontal": {"flip_horizontal": 1.0},
    "vertical": {"flip_vertical": 1.0},
    "turns": {"rotate_90": 1.0},
    "zoom": {"zoom_out": 1.0, "zoom_out_max": 2.0},
    "crop": {"iou_crop": 1.0},
    "all": {
        "flip_horizontal": 0.5, "flip_vertical": 0.5, "rotate_90": 0.5,
        "zoom_out": 0.5, "zoom_out_max": 1.5, "iou_crop": 0.5,
    },
}  # fmt: skip


@pytest.mark.parametrize("change", GEOMETRY)
@pytest.mark.parametrize("resize", ["as seen", "stretch", "letterbox"])
def test_boxes_follow_their_pixels(change: str, resize: str) -> None:
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | GEOMETRY[change]))
    preprocessing = None
    if resize != "as seen":
        preprocessing = Preprocessing(image_size=(256, 320), resize=resize)  # type: ignore[arg-type]
    sample = painted_sample()
    # A crop may be enlarged up to seven times, and half of one of its pixels is blurred at each edge.
    tolerance = 1.0 if preprocessing is None else 4.5
    seen = set()
    for seed in range(12):
        result = augment(sample, config, np.random.default_rng(seed), preprocessing=preprocessing)
        if preprocessing is not None:
            assert result.image.shape == (256, 320, 3)
        height, width = result.image.shape[:2]
        assert (result.boxes_xyxy_px >= 0).all() and (result.boxes_xyxy_px <= [width, height, width, height]).all()
        np.testing.assert_array_equal(result.crowd, result.labels % 2 == 1)
        for box, label in zip(result.boxes_xyxy_px, result.labels, strict=True):
            if (box[2:] - box[:2]).min() > 8:  # thinner ones are all edge
                painted = extent(result.image, int(label))
                assert painted is not None
                np.testing.assert_allclose(box, painted, atol=tolerance)
                seen.add(int(label))
        if change not in ("crop", "all"):
            assert len(result.labels) == len(BOXES)
    assert seen == set(range(len(BOXES)))


def test_without_changes_nothing_changes() -> None:
    sample = painted_sample()
    result = augment(sample, NO_AUGMENTATION, np.random.default_rng(0))
    np.testing.assert_array_equal(result.image, sample.image)
    np.testing.assert_array_equal(result.boxes_xyxy_px, sample.boxes_xyxy_px)


def test_flips_and_turns_are_exact() -> None:
    sample = painted_sample()
    flipped = augment(
        sample, AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"flip_horizontal": 1.0})), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])
    turn = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"rotate_90": 1.0}))
    results = [augment(sample, turn, np.random.default_rng(seed)).image for seed in range(20)]
    turns_seen = {
        turns for image in results for turns in range(4) if np.array_equal(image, np.rot90(sample.image, turns))
    }
    assert turns_seen == {1, 2, 3}


def test_zoom_out_stays_within_its_factor_and_fills_black() -> None:
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"zoom_out": 1.0, "zoom_out_max": 3.0}))
    white = painted_sample()
    white.image[:] = 255
    for seed in range(10):
        image = augment(white, config, np.random.default_rng(seed)).image
        assert HEIGHT <= image.shape[0] <= 3 * HEIGHT and WIDTH <= image.shape[1] <= 3 * WIDTH
        assert int((image[:, :, 0] == 255).sum()) == HEIGHT * WIDTH
        assert set(np.unique(image)) <= {0, 255}


def test_crop_keeps_boxes_by_their_centre_and_at_least_one() -> None:
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"iou_crop": 1.0}))
    sample = painted_sample()
    sizes = set()
    for seed in range(40):
        result = augment(sample, config, np.random.default_rng(seed))
        height, width = result.image.shape[:2]
        sizes.add((height, width))
        assert len(result.labels) >= 1
        assert 0.3 * HEIGHT - 1 <= height <= HEIGHT and 0.3 * WIDTH - 1 <= width <= WIDTH
        if (height, width) != (HEIGHT, WIDTH):
            assert 0.48 <= width / height <= 2.05
        # A kept box's centre is inside, so at least about half of each of its sides is.
        originals = BOXES[result.labels]
        assert (
            (result.boxes_xyxy_px[:, 2:] - result.boxes_xyxy_px[:, :2]) >= (originals[:, 2:] - originals[:, :2]) / 2 - 1
        ).all()
    assert len(sizes) > 15


def test_crop_overlaps_a_box_as_much_as_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setdet.data.transforms._CROP_MIN_IOU", (0.3,))
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"iou_crop": 1.0}))
    sample = painted_sample(BOXES[:1])
    (whole,) = np.prod(BOXES[:1, 2:] - BOXES[:1, :2], axis=1)
    overlaps = []
    for seed in range(20):
        result = augment(sample, config, np.random.default_rng(seed))
        height, width = result.image.shape[:2]
        (seen,) = np.prod(result.boxes_xyxy_px[:, 2:] - result.boxes_xyxy_px[:, :2], axis=1)
        if (height, width) != (HEIGHT, WIDTH):
            overlaps.append(seen / (height * width + whole - seen))
    assert len(overlaps) > 10 and min(overlaps) > 0.28  # crops are rounded to whole pixels


def test_pictures_without_boxes_pass_through_everything() -> None:
    empty = painted_sample(np.zeros((0, 4), dtype=np.float32))
    for seed in range(5):
        result = augment(
            empty, AugmentConfig(), np.random.default_rng(seed), preprocessing=Preprocessing(image_size=(64, 64))
        )
        assert result.boxes_xyxy_px.shape == (0, 4) and result.labels.shape == (0,)


def test_boxes_that_shrink_below_a_pixel_are_dropped_with_their_labels() -> None:
    boxes = np.array([[0, 0, 100, 100], [10, 10, 12, 12]], dtype=np.float32)
    result = augment(
        painted_sample(boxes),
        NO_AUGMENTATION,
        np.random.default_rng(0),
        preprocessing=Preprocessing(image_size=(32, 32)),
    )
    assert result.labels.tolist() == [0] and result.crowd.tolist() == [False] and len(result.boxes_xyxy_px) == 1


def test_colors_change_pixels_but_not_boxes_and_greys_stay_grey() -> None:
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"photometric": 1.0}))
    sample = painted_sample()
    sample.image[:] = np.random.default_rng(1).integers(60, 190, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    before = sample.image.copy()
    brightness = []
    for seed in range(20):
        result = augment(sample, config, np.random.default_rng(seed))
        np.testing.assert_array_equal(result.boxes_xyxy_px, sample.boxes_xyxy_px)
        assert np.ptp(result.image.astype(int), axis=2).max() <= 1
        brightness.append(result.image.mean() / sample.image.mean())
    np.testing.assert_array_equal(sample.image, before)
    # Contrast keeps the mean; brightness moves it by 1/8 at most.
    assert 0.87 <= min(brightness) < 0.95 and 1.05 < max(brightness) <= 1.13


def test_colors_are_turned_and_swapped() -> None:
    config = AugmentConfig(**(NO_AUGMENTATION.to_dict() | {"photometric": 0.5}))
    sample = painted_sample()
    sample.image[:] = (200, 100, 50)
    strongest = {int(np.argmax(augment(sample, config, np.random.default_rng(seed)).image[0, 0])) for seed in range(40)}
    assert strongest == {0, 1, 2}


class Only(np.random.Generator):
    """Draws one change alone: brightness, contrast, saturation, hue or order, by its number."""

    def __init__(self, change: int, *, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self.change = change

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.where(np.arange(size) == self.change, 0.0, 1.0)


def test_every_change_of_colors_keeps_what_it_should() -> None:
    brightness, contrast, saturation, hue = (
        np.stack([color_matrix(0.5, Only(change, seed=seed)) for seed in range(60)]) for change in range(4)
    )
    for scaled, least, most in ((brightness, 0.875, 1.125), (contrast, 0.5, 1.5)):
        by = scaled[:, 0, 0]
        np.testing.assert_allclose(scaled[:, :, :3], by[:, None, None] * np.eye(3))
        assert least <= by.min() < 0.8 * least + 0.2 and 0.8 * most + 0.2 < by.max() <= most
    np.testing.assert_allclose(contrast[:, :, 3] + contrast[:, :1, 0], 1)  # the mean stays
    assert not any(changed[:, :, 3].any() for changed in (brightness, saturation, hue))

    greyer, turned = saturation[:, :, :3], hue[:, :, :3]
    for changed in (greyer, turned):
        np.testing.assert_allclose(changed.sum(axis=2), 1)  # greys stay
        assert np.abs(changed - np.eye(3)).max() > 0.1
    np.testing.assert_allclose(LUMA @ greyer, np.tile(LUMA, (60, 1)))
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), np.tile(np.eye(3), (60, 1, 1)), atol=1e-12)


def test_the_same_seed_gives_the_same_sample() -> None:
    one, two, three = (
        augment(painted_sample(), AugmentConfig(), np.random.default_rng([7, seed])) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.boxes_xyxy_px, two.boxes_xyxy_px)
    assert one.image.shape != three.image.shape or (one.image != three.image).any()


def test_batch_sizes_are_a_function_of_seed_epoch_and_batch() -> None:
    preprocessing = Preprocessing(image_size=(640, 960))
    config = AugmentConfig(multi_scale=published_scales(640))
    assert published_scales(640) == (*range(480, 801, 32), 640, 640)

    def size(batch: int, seed: int = 0) -> tuple[int, int]:
        return batch_preprocessing(preprocessing, config, seed=seed, epoch=2, batch=batch).image_size

    sizes = [size(batch) for batch in range(200)]
    assert sizes == [size(batch) for batch in range(200)] != [size(batch, seed=1) for batch in range(200)]
    assert {height for height, _ in sizes} == set(range(480, 801, 32))
    assert all(width % 32 == 0 and abs(width - 1.5 * height) <= 16 for height, width in sizes)
    assert 25 < sum(height == 640 for height, _ in sizes) < 70  # three in thirteen
    assert batch_preprocessing(preprocessing, AugmentConfig(), seed=0, epoch=0, batch=0) is preprocessing


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'zoom_out'"):
        AugmentConfig.from_dict({"zoomout": 0.5})
    with pytest.raises(ConfigError, match="multiples of 32"):
        AugmentConfig.from_dict({"multi_scale": [200]})
    with pytest.raises(ConfigError, match="iou_crop"):
        AugmentConfig.from_dict({"iou_crop": 1.5})
