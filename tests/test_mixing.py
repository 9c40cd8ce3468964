"""Mixed pictures: every box of every picture in them stays on its pixels."""

from dataclasses import replace

import numpy as np
import pytest

from setdet.data.mixing import augment, copy_blend, mixup, mosaic
from setdet.data.schema import Sample
from setdet.data.transforms import NO_AUGMENTATION, AugmentConfig
from setdet.errors import ConfigError
from setdet.images import Preprocessing

SIZE = (128, 160)
PREPROCESSING = Preprocessing(image_size=SIZE)


def painted(label: int, *, height: int = 120, width: int = 180) -> Sample:
    """Two boxes of a grey of their own on black, one of them large enough to be cut by most tiles."""
    boxes = np.array([[10, 8, 90, 100], [120, 60, 160, 110]], dtype=np.float32)
    boxes *= np.array([width / 180, height / 120] * 2, dtype=np.float32)
    boxes = boxes.round()
    image = np.zeros((height, width, 3), dtype=np.uint8)
    for left, top, right, bottom in boxes.astype(int):
        image[top:bottom, left:right] = 50 * (label + 1)
    return Sample(
        image=image,
        boxes_xyxy_px=boxes,
        labels=np.full(2, label),
        crowd=np.array([False, True]),
        name=f"painted {label}",
    )


def config(**changes: object) -> AugmentConfig:
    return AugmentConfig.from_dict(NO_AUGMENTATION.to_dict() | changes)


def labelled(label: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(2, label), np.zeros(2, dtype=np.bool_)


def nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("turns", [{}, {"rotate_90": 1.0, "flip_vertical": 0.5}])
def test_a_mosaic_has_parts_of_four_pictures_and_boxes_on_their_pixels(resize: str, turns: dict[str, float]) -> None:
    samples = [painted(0), painted(1, height=90, width=90), painted(2), painted(3, height=200)]
    samples = [replace(sample, crowd=sample.labels % 2 == 1) for sample in samples]
    preprocessing = Preprocessing(image_size=SIZE, resize=resize)  # type: ignore[arg-type]
    seen = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        result = mosaic(samples, config(mosaic_scale=(0.5, 1.0), **turns), rng, preprocessing=preprocessing)
        assert result.image.shape == (*SIZE, 3) and result.name == "painted 0"
        assert (result.boxes_xyxy_px >= 0).all() and (result.boxes_xyxy_px <= [SIZE[1], SIZE[0]] * 2).all()
        grey = result.image[:, :, 0].astype(int)
        for box, label in zip(result.boxes_xyxy_px, result.labels, strict=True):
            left, top, right, bottom = (round(float(side)) for side in box)
            inner = grey[top + 2 : bottom - 2, left + 2 : right - 2]
            assert inner.size == 0 or (np.abs(inner - 50 * (label + 1)) <= 1).mean() > 0.95
            seen.add(int(label))
        np.testing.assert_array_equal(result.crowd, result.labels % 2 == 1)
    assert seen == {0, 1, 2, 3}


def test_a_mosaic_drops_boxes_of_which_little_is_left() -> None:
    whole = {0: 92 * 80 / (120 * 180), 1: 50 * 40 / (120 * 180)}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        result = mosaic([painted(0)] * 4, config(mosaic_scale=(0.8, 1.0)), rng, preprocessing=PREPROCESSING)
        areas = np.prod(result.boxes_xyxy_px[:, 2:] - result.boxes_xyxy_px[:, :2], axis=1) / (SIZE[0] * SIZE[1])
        for area, crowd in zip(areas, result.crowd, strict=True):
            assert area >= 0.25 * 0.8**2 * whole[int(crowd)]


def test_mixup_shows_both_pictures_and_keeps_both_sets_of_boxes() -> None:
    first, second = painted(0), painted(3)
    second = replace(second, boxes_xyxy_px=second.boxes_xyxy_px + 7)
    result = mixup(first, second, np.random.default_rng(0))
    assert result.labels.tolist() == [0, 0, 3, 3] and result.crowd.tolist() == [False, True] * 2
    np.testing.assert_array_equal(result.boxes_xyxy_px, np.concatenate([first.boxes_xyxy_px, first.boxes_xyxy_px + 7]))
    both = 0.5 * (first.image.astype(float) + second.image)
    assert np.abs(result.image - both).max() <= 0.05 * 200 + 1


def test_copy_blend_pastes_objects_where_nothing_is() -> None:
    base, donor = painted(0), painted(3)
    donor = Sample(donor.image, np.array([[120, 4, 170, 50], [20, 20, 80, 90]], np.float32), *labelled(3), "donor")
    donor.image[:] = 60
    donor.image[4:50, 120:170] = 200
    base.image[:] = 90
    result = copy_blend(base, donor, np.random.default_rng(0))
    assert result.labels.tolist() == [0, 0, 3] and result.boxes_xyxy_px[2].tolist() == [120, 4, 170, 50]
    # The object stands out from its new surroundings as it did from its own; far from it nothing changes.
    inside = result.image[10:45, 125:165].astype(int)
    assert np.abs(inside - (90 + 140)).max() <= 12
    np.testing.assert_array_equal(result.image[60:], base.image[60:])


def test_no_more_than_three_objects_are_pasted() -> None:
    boxes = np.array([[x, y, x + 20, y + 20] for x in (10, 70, 130) for y in (10, 70)], np.float32)
    donor = Sample(painted(1).image, boxes, np.arange(6), np.zeros(6, dtype=np.bool_), "donor")
    empty = Sample(np.zeros((120, 180, 3), np.uint8), np.zeros((0, 4), np.float32), *nothing(), "empty")
    result = copy_blend(empty, donor, np.random.default_rng(0))
    assert len(set(result.labels.tolist())) == 3
    np.testing.assert_array_equal(result.boxes_xyxy_px, boxes[result.labels])


def test_a_crowd_is_not_pasted() -> None:
    donor = painted(1)
    donor = Sample(donor.image, donor.boxes_xyxy_px, donor.labels, np.ones(2, dtype=np.bool_), "crowd")
    empty = Sample(np.zeros((120, 180, 3), np.uint8), np.zeros((0, 4), np.float32), *nothing(), "empty")
    result = copy_blend(empty, donor, np.random.default_rng(0))
    assert len(result.labels) == 0 and not result.image.any()


def test_nothing_is_pasted_into_a_crowd() -> None:
    def pasted_beside(crowd: bool) -> int:
        """Onto a picture with one box, whose corner reaches into the object's."""
        box = np.array([[20, 20, 63, 63]], np.float32)
        base = Sample(np.zeros((120, 180, 3), np.uint8), box, np.zeros(1, np.int64), np.array([crowd]), "base")
        return len(copy_blend(base, donor, np.random.default_rng(0)).labels) - 1

    donor = painted(1)
    donor = Sample(donor.image, np.array([[60, 60, 100, 100]], np.float32), donor.labels[:1], donor.crowd[:1], "donor")
    assert pasted_beside(crowd=False) == 1
    assert pasted_beside(crowd=True) == 0


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_blend"])
def test_pictures_are_mixed_as_often_as_asked_and_the_same_under_a_seed(kind: str) -> None:
    empty = Sample(np.full((120, 180, 3), 30, np.uint8), np.zeros((0, 4), np.float32), *nothing(), "empty")

    def draw(probability: float, seed: int) -> Sample:
        rng = np.random.default_rng(seed)
        return augment(
            empty,
            config(**{kind: probability}),
            rng,
            preprocessing=PREPROCESSING,
            another=lambda: painted(int(rng.integers(1, 4))),
        )

    alone = draw(0, 0)
    mixed = [draw(0.5, seed) for seed in range(40)]
    count = sum(not np.array_equal(sample.image, alone.image) for sample in mixed)
    assert 10 <= count <= 30
    assert all(np.array_equal(draw(0.5, seed).image, mixed[seed].image) for seed in range(5))


def test_pictures_without_boxes_can_be_mixed() -> None:
    empty = Sample(np.zeros((60, 60, 3), np.uint8), np.zeros((0, 4), np.float32), *nothing(), "empty")
    for kind in ("mosaic", "mixup", "copy_blend"):
        result = augment(
            empty,
            config(**{kind: 1.0}),
            np.random.default_rng(0),
            preprocessing=PREPROCESSING,
            another=lambda: empty,
        )
        assert result.boxes_xyxy_px.shape == (0, 4) and result.image.shape == (*SIZE, 3)


def test_an_impossible_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="least and the largest scale"):
        config(mosaic_scale=(1.0, 0.5))
