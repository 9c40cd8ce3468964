"""Steel without defects: grain, rolling streaks, bands and lighting. Grey levels are 0 to 255, as float32."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]  # (height, width)


def smooth_noise(rng: np.random.Generator, size: int, *, height: float, width: float) -> Field:
    """Gaussian noise whose features are about `height` × `width` pixels large; mean 0, deviation 1."""
    cells = (max(2, round(size / height)) + 3, max(2, round(size / width)) + 3)
    coarse = rng.standard_normal(cells, dtype=np.float32)
    # Drawn larger than needed and cut, so that the grid of cells lies differently each time.
    margin_y, margin_x = round(size / (cells[0] - 3)), round(size / (cells[1] - 3))
    field = cv2.resize(coarse, (size + 2 * margin_x, size + 2 * margin_y), interpolation=cv2.INTER_CUBIC)
    top, left = rng.integers(0, 2 * margin_y + 1), rng.integers(0, 2 * margin_x + 1)
    return _normalised(field[top : top + size, left : left + size])


def grain(rng: np.random.Generator, size: int, *, sigma_y: float, sigma_x: float, angle: float = 0.0) -> Field:
    """Fine noise, blurred by different amounts along and across, turned by `angle` degrees; mean 0, deviation 1."""
    if not angle:
        noise = rng.standard_normal((size, size), dtype=np.float32)
        return _normalised(cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y))
    side = int(size * 1.45)
    noise = rng.standard_normal((side, side), dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
    first = (side - size) // 2
    return _normalised(cv2.warpAffine(blurred, turn, (side, side))[first : first + size, first : first + size])


def lighting(rng: np.random.Generator, size: int, *, strength: float) -> Field:
    """A lamp from one side and a slow unevenness: grey levels to add, about ± `strength`."""
    direction = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else rng.choice([0.0, np.pi])
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = np.cos(direction) * ramp[None, :] + np.sin(direction) * ramp[:, None]
    bent = np.sign(slope) * np.abs(slope) ** rng.uniform(0.8, 2.0)
    uneven = smooth_noise(rng, size, height=size, width=size * 0.5)
    return (strength * (rng.uniform(0.2, 1.0) * bent + rng.uniform(0.0, 0.35) * uneven)).astype(np.float32)


def rough_plate(rng: np.random.Generator, size: int) -> Field:
    """Bright and strongly grained, banded along the rolling direction: where crazing and patches are seen."""
    level = rng.uniform(110, 190)
    plate = level + rng.uniform(9, 20) * grain(rng, size, sigma_y=rng.uniform(0.6, 0.9), sigma_x=rng.uniform(0.6, 1.1))
    plate += rng.uniform(3, 8) * smooth_noise(rng, size, height=6, width=10)
    plate += rng.uniform(3, 12) * smooth_noise(rng, size, height=4 * size, width=rng.uniform(15, 40))
    if rng.random() < 0.5:  # fine grinding lines
        angle = float(rng.uniform(-25, 25))
        plate += rng.uniform(3, 9) * grain(rng, size, sigma_y=0.8, sigma_x=rng.uniform(4, 12), angle=angle)
    return plate + lighting(rng, size, strength=rng.uniform(5, 45))


def smooth_plate(rng: np.random.Generator, size: int) -> Field:
    """Mid-grey, nearly without grain, streaked along the rolling direction: where inclusions are seen."""
    plate = rng.uniform(65, 135) + rng.uniform(1.5, 4) * grain(rng, size, sigma_y=0.8, sigma_x=0.7)
    plate += rng.uniform(1.5, 6) * smooth_noise(rng, size, height=4 * size, width=rng.uniform(6, 30))
    plate += rng.uniform(1, 5) * smooth_noise(rng, size, height=rng.uniform(30, 90), width=rng.uniform(10, 30))
    return plate + lighting(rng, size, strength=rng.uniform(3, 16))


def lit_plate(rng: np.random.Generator, size: int) -> Field:
    """Smooth, bright or dark, lit strongly from one side: where pits are seen."""
    level = rng.uniform(45, 90) if rng.random() < 0.2 else rng.uniform(120, 200)
    plate = level + rng.uniform(2, 6) * grain(rng, size, sigma_y=0.9, sigma_x=0.8)
    plate += rng.uniform(1, 4) * smooth_noise(rng, size, height=5, width=5)
    return plate + lighting(rng, size, strength=rng.uniform(10, 45))


def brushed_plate(rng: np.random.Generator, size: int) -> Field:
    """Mid-grey with a slanting fibrous grain and cloudy spots: where scale is rolled in."""
    angle = float(rng.uniform(-30, 30))
    fibres = grain(rng, size, sigma_y=rng.uniform(0.5, 0.8), sigma_x=rng.uniform(1.0, 2.2), angle=angle)
    plate = rng.uniform(90, 150) + rng.uniform(4, 9) * fibres
    plate += rng.uniform(2, 6) * smooth_noise(rng, size, height=rng.uniform(8, 16), width=rng.uniform(10, 22))
    return plate + lighting(rng, size, strength=rng.uniform(4, 20))


def dark_plate(rng: np.random.Generator, size: int) -> Field:
    """Dark or mid-grey, faintly streaked: where scratches shine."""
    level = rng.uniform(30, 65) if rng.random() < 0.6 else rng.uniform(65, 130)
    plate = level + rng.uniform(1.5, 7) * grain(rng, size, sigma_y=0.8, sigma_x=0.7)
    plate += rng.uniform(1, 5) * smooth_noise(rng, size, height=4 * size, width=rng.uniform(8, 30))
    plate += rng.uniform(0.5, 2) * smooth_noise(rng, size, height=rng.uniform(20, 60), width=rng.uniform(10, 30))
    return plate + lighting(rng, size, strength=rng.uniform(3, 15))


def _normalised(field: NDArray[Any]) -> Field:
    """Mean 0, deviation 1."""
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-6), dtype=np.float32)
