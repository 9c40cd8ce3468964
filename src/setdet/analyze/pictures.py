"""A picture with the truth beside what was found, and what is wrong with it."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from setdet.analyze.kinds import KINDS, MISSED, RIGHT
from setdet.analyze.ledger import Kind
from setdet.data.schema import Record
from setdet.detections import Detections
from setdet.draw import draw_boxes, printable

_INK, _PAPER = (28, 30, 33), 255
_QUIET = (150, 156, 165)  # boxes that count for nothing
_LARGEST = 900  # side of a panel in pixels; larger pictures are made smaller


def draw_errors(
    image: NDArray[np.uint8],
    record: Record,
    found: Detections,
    *,
    kinds: Sequence[Kind],
    missed: NDArray[np.bool_],
    title: str,
) -> NDArray[np.uint8]:
    """Two panels: the true boxes, and what was found with the kind of each error; a wide picture has them stacked.

    Args:
        image: uint8 (height, width, 3), RGB.
        record: its truth.
        found: what was found; the classes' names are of both.
        kinds: of each detection.
        missed: (boxes,) which true boxes are not found.
        title: stands above, in one line.

    Returns:
        uint8 RGB, the panels on white.
    """
    scale = min(1.0, _LARGEST / max(image.shape[:2]))
    if scale < 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    names = [printable(name, label) for label, name in enumerate(found.class_names)]
    texts, colors = [], []
    for label, crowd, lost in zip(record.labels.tolist(), record.crowd.tolist(), missed.tolist(), strict=True):
        texts.append(names[label] + (" (group)" if crowd else " not found" if lost else ""))
        colors.append(_QUIET if crowd else MISSED.color if lost else RIGHT.color)
    truth = draw_boxes(image, record.boxes_xyxy_px * np.float32(scale), texts=texts, colors=colors)
    texts, colors = [], []
    for label, score, kind in zip(found.labels.tolist(), found.scores.tolist(), kinds, strict=True):
        texts.append(f"{names[label]} {score:.2f}" + (f" {KINDS[kind].name}" if kind in KINDS else ""))
        colors.append(KINDS[kind].color if kind in KINDS else RIGHT.color if kind == Kind.RIGHT else _QUIET)
    shown = draw_boxes(image, found.boxes_xyxy_px * np.float32(scale), texts=texts, colors=colors)
    return _side_by_side(truth, shown, title=title)


def _side_by_side(truth: NDArray[np.uint8], found: NDArray[np.uint8], *, title: str) -> NDArray[np.uint8]:
    height, width = truth.shape[:2]
    stacked = width > 1.6 * height
    gap = max(6, max(height, width) // 60)
    panels = [_captioned(picture, caption) for picture, caption in ((truth, "truth"), (found, "found"))]
    space = np.full((gap, width, 3) if stacked else (panels[0].shape[0], gap, 3), _PAPER, dtype=np.uint8)
    both = np.concatenate([panels[0], space, panels[1]], axis=0 if stacked else 1)
    strip = _text_strip(title, both.shape[1], size=0.72, bold=True)
    return np.pad(np.concatenate([strip, both]), ((gap, gap), (gap, gap), (0, 0)), constant_values=_PAPER)


def _captioned(picture: NDArray[np.uint8], caption: str) -> NDArray[np.uint8]:
    return np.concatenate([_text_strip(caption, picture.shape[1], size=0.55), picture])


def _text_strip(text: str, width: int, *, size: float, bold: bool = False) -> NDArray[np.uint8]:
    """A line of text on white, smaller where it is too long."""
    font, stroke = cv2.FONT_HERSHEY_SIMPLEX, 2 if bold else 1
    size *= max(1.0, width / 1200)
    (long, _), _ = cv2.getTextSize(text, font, size, stroke)
    size *= min(1.0, (width - 4) / max(long, 1))
    (_, tall), below = cv2.getTextSize(text, font, size, stroke)
    strip = np.full((tall + below + 8, width, 3), _PAPER, dtype=np.uint8)
    cv2.putText(strip, text, (1, 3 + tall), font, size, _INK, stroke, cv2.LINE_AA)
    return strip
