"""The six kinds of defect. Each draws one defect and returns the grey levels to add and where they count as it.

Sizes are for pictures of 200 pixels and scale with `unit` = size / 200.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.data.surfaces.texture import Field, smooth_noise


@dataclass(frozen=True)
class Defect:
    """One drawn defect.

    Attributes:
        change: grey levels to add to the plate.
        mask: the pixels that the defect is made of; its box is theirs.
    """

    change: Field
    mask: NDArray[np.bool_]


def crazing(rng: np.random.Generator, size: int) -> Defect:
    """A net of fine dark cracks that wander mostly across the rolling direction."""
    unit = size / 200
    height, width = rng.lognormal(np.log(72), 0.38) * unit, rng.lognormal(np.log(122), 0.38) * unit
    top, left = _place(rng, size, height), _place(rng, size, width)
    canvas = np.zeros((size, size), dtype=np.float32)
    for _ in range(int(rng.integers(5, 9) + height * width / (1500 * unit**2))):
        _crack(rng, canvas, top=top, left=left, height=height, width=width, unit=unit)
    fading = np.clip(0.75 + 0.3 * smooth_noise(rng, size, height=20 * unit, width=30 * unit), 0.25, 1.3)
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.7 * unit) * fading
    return Defect(change=-rng.uniform(90, 160) * soft, mask=soft > 0.15)


def _crack(
    rng: np.random.Generator, canvas: Field, *, top: float, left: float, height: float, width: float, unit: float
) -> None:
    """One jagged walk, kept inside its region, that sometimes forks."""
    y, x = top + rng.uniform(0, height), left + rng.uniform(0, width)
    heading = rng.choice([0.0, np.pi]) + rng.normal(0, 0.5)
    strength, thickness = rng.uniform(0.4, 1.0), int(rng.choice([1, 1, 2]))
    for _ in range(int(rng.integers(4, 14))):
        heading += rng.normal(0, 0.55)
        step = rng.uniform(3, 8) * unit
        next_y = float(np.clip(y + step * np.sin(heading) * 0.8, top, top + height - 1))
        next_x = float(np.clip(x + step * np.cos(heading), left, left + width - 1))
        start, end = (round(x), round(y)), (round(next_x), round(next_y))
        cv2.line(canvas, start, end, float(strength), thickness, lineType=cv2.LINE_AA)
        if rng.random() < 0.15:
            fork = (
                round(next_x + rng.normal(0, 5) * unit),
                round(min(next_y + rng.uniform(2, 9) * unit, top + height - 1)),
            )
            cv2.line(canvas, end, fork, float(strength * 0.8), 1, lineType=cv2.LINE_AA)
        y, x = next_y, next_x
        strength = float(np.clip(strength + rng.normal(0, 0.12), 0.25, 1.0))


def inclusion(rng: np.random.Generator, size: int) -> Defect:
    """A bundle of dark streaks along the rolling direction, each pointed at both ends."""
    unit = size / 200
    height, width = rng.lognormal(np.log(66), 0.65) * unit, rng.lognormal(np.log(24), 0.4) * unit
    height, width = min(height, size * 0.98), min(max(width, 8 * unit), size * 0.5)
    top, left = _place(rng, size, height), _place(rng, size, width)
    canvas = np.zeros((size, size), dtype=np.float32)
    count = int(rng.integers(1, 5))
    for index in range(count):
        length = height if index == 0 else height * rng.uniform(0.25, 0.8)
        first = top + rng.uniform(0, 1) * (height - length)
        thickness = width * rng.uniform(0.3, 0.6) / (1 + 0.3 * (count - 1))
        center = left + thickness / 2 + rng.uniform(0, 1) * (width - thickness)
        _streak(rng, canvas, first=first, length=length, center=center, thickness=thickness, unit=unit)
    fading = np.clip(0.9 + 0.22 * smooth_noise(rng, size, height=25 * unit, width=6 * unit), 0.3, 1.3)
    soft = cv2.GaussianBlur(canvas, (0, 0), sigmaX=1.2 * unit, sigmaY=2.0 * unit) * fading
    return Defect(change=-rng.uniform(12, 48) * soft, mask=soft > 0.2)


def _streak(
    rng: np.random.Generator,
    canvas: Field,
    *,
    first: float,
    length: float,
    center: float,
    thickness: float,
    unit: float,
) -> None:
    along = np.linspace(0, 1, max(4, round(length / (4 * unit))))
    wander = np.cumsum(rng.normal(0, 0.5 * unit, len(along)))
    wander -= np.linspace(wander[0], wander[-1], len(along))
    half = thickness / 2 * np.sin(np.pi * np.clip(along, 0.02, 0.98)) ** 0.6
    half *= np.clip(1 + 0.18 * rng.standard_normal(len(along)), 0.4, 1.5)
    x, y = center + wander, first + along * length
    outline = np.concatenate([np.stack([x - half, y], axis=1), np.stack([x + half, y], axis=1)[::-1]])
    cv2.fillPoly(canvas, [np.round(outline).astype(np.int32)], float(rng.uniform(0.7, 1.0)), lineType=cv2.LINE_AA)


def patches(rng: np.random.Generator, size: int) -> Defect:
    """A large dark blob with a soft, winding edge."""
    unit = size / 200
    height, width = rng.lognormal(np.log(74), 0.5) * unit, rng.lognormal(np.log(54), 0.36) * unit
    height, width = min(height, size * 1.1), min(width, size * 0.9)
    center_y, center_x = rng.uniform(0, size), rng.uniform(0, size)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    bend = rng.uniform(-0.5, 0.5) * width * np.sin((y - center_y) / max(height, 1) * np.pi * rng.uniform(1, 2))
    distance = ((y - center_y) / (height / 2)) ** 2 + ((x - center_x - bend * 0.5) / (width / 2)) ** 2
    edge = 0.4 * smooth_noise(rng, size, height=26 * unit, width=22 * unit)
    edge += 0.06 * smooth_noise(rng, size, height=7 * unit, width=7 * unit)
    inside = 1 / (1 + np.exp(np.clip((distance - 1 + edge) * rng.uniform(5, 10), -30, 30)))
    inside = _largest_piece(inside.astype(np.float32), 0.5)
    mottled = 1 + 0.08 * smooth_noise(rng, size, height=6 * unit, width=6 * unit)
    return Defect(change=-rng.uniform(75, 140) * inside * mottled, mask=inside > 0.5)


def _largest_piece(field: Field, threshold: float) -> Field:
    """The field without what is not connected to its largest piece: one defect is one box."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats((field > threshold).astype(np.uint8))
    if count < 3:
        return field
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    others = ((pieces > 0) & (pieces != largest)).astype(np.uint8)
    return np.where(cv2.dilate(others, np.ones((9, 9), np.uint8)) > 0, 0, field).astype(np.float32)


def pitted_surface(rng: np.random.Generator, size: int) -> Defect:
    """Many small dark pits over a wide strip."""
    unit = size / 200
    width = size * (1.0 if rng.random() < 0.28 else np.clip(rng.lognormal(np.log(0.55), 0.5), 0.2, 1.0))
    height = size * (1.0 if rng.random() < 0.6 else rng.uniform(0.35, 1.0))
    top, left = _place(rng, size, height), _place(rng, size, width)
    coarse = rng.random() < 0.5
    radius = (rng.uniform(1.5, 2.8) if coarse else rng.uniform(0.8, 1.5)) * unit
    count = int(height * width / (radius**2 * rng.uniform(12, 45)))
    canvas = np.zeros((size, size), dtype=np.float32)
    slant = rng.uniform(-50, 50)
    for y, x in zip(top + rng.uniform(0, height, count), left + rng.uniform(0, width, count), strict=True):
        long, short = radius * rng.uniform(0.7, 1.7), radius * rng.uniform(0.4, 0.9)
        _pit(
            canvas,
            center=(float(x), float(y)),
            axes=(float(short), float(long)),
            angle=float(slant + rng.normal(0, 18)),
            depth=float(rng.uniform(0.4, 1.0)),
        )
    density = np.clip(0.75 + 0.4 * smooth_noise(rng, size, height=60 * unit, width=40 * unit), 0.15, 1.2)
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.6 * unit) * density
    return Defect(change=-rng.uniform(25, 75) * soft, mask=soft > 0.2)


def _pit(canvas: Field, *, center: tuple[float, float], axes: tuple[float, float], angle: float, depth: float) -> None:
    shift = 4  # fractional bits: pits are smaller than a few pixels
    at = (round(center[0] * 2**shift), round(center[1] * 2**shift))
    half = (max(1, round(axes[0] * 2**shift)), max(1, round(axes[1] * 2**shift)))
    cv2.ellipse(canvas, at, half, angle, 0, 360, depth, -1, lineType=cv2.LINE_AA, shift=shift)


def rolled_in_scale(rng: np.random.Generator, size: int) -> Defect:
    """A cloud of short dark dashes across the rolling direction."""
    unit = size / 200
    height, width = rng.lognormal(np.log(67), 0.48) * unit, rng.lognormal(np.log(68), 0.36) * unit
    height, width = min(height, size * 0.95), min(width, size * 0.95)
    top, left = _place(rng, size, height), _place(rng, size, width)
    canvas = np.zeros((size, size), dtype=np.float32)
    tilt = rng.uniform(-18, 18)
    for _ in range(max(5, int(height * width / (rng.uniform(90, 240) * unit**2)))):
        y = top + height * np.clip(rng.normal(0.5, 0.27), 0.02, 0.98)
        x = left + width * np.clip(rng.normal(0.5, 0.27), 0.04, 0.96)
        long, short = rng.uniform(2.0, 6.5) * unit, rng.uniform(0.8, 2.0) * unit
        angle = float(tilt + rng.normal(0, 16))
        _pit(
            canvas,
            center=(float(x), float(y)),
            axes=(float(long), float(short)),
            angle=angle,
            depth=float(rng.uniform(0.35, 1.0)),
        )
    soft = cv2.GaussianBlur(canvas, (0, 0), 0.8 * unit)
    return Defect(change=-rng.uniform(45, 95) * soft, mask=soft > 0.25)


def scratches(rng: np.random.Generator, size: int) -> Defect:
    """A bright thin line, or a few side by side, along the rolling direction or (less often) across it."""
    unit = size / 200
    length = size if rng.random() < 0.3 else min(size, max(24 * unit, size * rng.beta(1.6, 1.0)))
    width = np.clip(rng.lognormal(np.log(18), 0.4), 8, 45) * unit
    first, left = _place(rng, size, length), _place(rng, size, width)
    canvas = np.zeros((size, size), dtype=np.float32)
    rows = np.arange(round(first), round(first + length)).clip(0, size - 1)
    drift = rng.normal(0, 0.03)
    for _ in range(int(rng.integers(1, 4))):
        thickness = width * rng.uniform(0.12, 0.5)
        center = left + thickness / 2 + rng.uniform(0, 1) * (width - thickness)
        center = center + drift * (rows - rows.mean()) + 0.5 * np.cumsum(rng.normal(0, 0.12 * unit, len(rows)))
        part = slice(0, len(rows)) if rng.random() < 0.6 else slice(*sorted(rng.integers(0, len(rows), 2)))
        brightness = np.clip(
            0.7 + 0.3 * smooth_noise(rng, size, height=12 * unit, width=size)[: len(rows), 0], 0.1, 1.3
        )
        across = np.abs(np.arange(size)[None] - center[part, None]) / max(thickness / 2, 0.7)
        profile = np.exp(-(across**2)) * brightness[part, None]
        canvas[rows[part]] = np.maximum(canvas[rows[part]], profile)
    sparkle = np.clip(1 + 0.25 * rng.standard_normal((size, size), dtype=np.float32), 0.3, 1.7)
    soft = cv2.GaussianBlur(canvas * sparkle, (0, 0), 0.7 * unit)
    if rng.random() < 0.18:
        soft = soft.T.copy()
    return Defect(change=rng.uniform(40, 170) * soft, mask=soft > 0.2)


def _place(rng: np.random.Generator, size: int, length: float) -> float:
    """Where a stretch of that length starts, somewhere inside the picture or leaving it a little."""
    slack = 0.1 * length
    return float(rng.uniform(-slack, max(size - length + slack, -slack + 1e-3)))
