"""Generated pictures of hot-rolled steel with six kinds of surface defect and exact boxes: free to train on."""

from setdet.data.surfaces.generate import CLASS_NAMES, generate, make

__all__ = ["CLASS_NAMES", "generate", "make"]
