"""The result of a prediction on one picture, validated. No torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from setdet.errors import UsageError


@dataclass(frozen=True)
class Detections:
    """What was found on one picture, best first.

    Attributes:
        boxes_xyxy_px: (n, 4) float32, corners in pixels of the original picture.
        scores: (n,) float32, 0 to 1, falling.
        labels: (n,) int64, index into `class_names`.
        class_names: names of all classes that the detector knows.
        image_size: (height, width) of the original picture.
        source: the picture's path or a name for it; "" where there is none.

    Raises:
        UsageError: shapes, dtypes, order or labels do not fit together.
    """

    boxes_xyxy_px: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str = ""

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes_xyxy_px.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise UsageError(
                f"Detections of {n} scores need boxes of shape ({n}, 4) and labels of shape ({n},); "
                f"found {self.boxes_xyxy_px.shape} and {self.labels.shape}."
            )
        if n and (np.any(np.diff(self.scores) > 0) or not np.all(np.isfinite(self.boxes_xyxy_px))):
            raise UsageError("Detections need finite boxes, sorted by falling score.")
        if n and not (0 <= self.labels.min() and self.labels.max() < len(self.class_names)):
            raise UsageError(
                f"Detections have labels from {self.labels.min()} to {self.labels.max()} "
                f"but {len(self.class_names)} class names."
            )

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> "Detections":
        """Those with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return Detections(
            boxes_xyxy_px=self.boxes_xyxy_px[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            class_names=self.class_names,
            image_size=self.image_size,
            source=self.source,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: one entry a detection, boxes as [x1, y1, x2, y2] in pixels."""
        return {
            "source": self.source,
            "height": self.image_size[0],
            "width": self.image_size[1],
            "detections": [
                {"class": self.class_names[label], "label": int(label), "score": float(score), "box_xyxy_px": box.tolist()}
                for box, score, label in zip(self.boxes_xyxy_px, self.scores, self.labels, strict=True)
            ],
        }
