"""What every test runs under: two threads, no window, no network, and the same random numbers each time."""

import os
import random
import sys

# Before torch is imported; processes that tests start inherit them. On a machine with many cores, tiny models run
# slower on all of them than on two.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from hypothesis import settings

# The same examples on every run, and no time limit for one: a busy machine is no failure.
settings.register_profile("setdet", deadline=None, derandomize=True)
settings.load_profile("setdet")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """A test that draws weights or pictures gets the same ones alone, in a file, and in the whole suite."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
