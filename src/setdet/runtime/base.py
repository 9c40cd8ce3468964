"""What every engine that runs a detector's network looks like from outside. No torch."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """Runs the network on a batch of pictures that already have its input size."""

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Detects.

        Args:
            images: (n, height, width, 3) uint8, RGB.

        Returns:
            For every picture k candidates, best first: boxes_xyxy (n, k, 4) float32, corners as shares of the
            input's width and height (0 to 1); scores (n, k) float32, 0 to 1; labels (n, k) int64.
        """
        ...
