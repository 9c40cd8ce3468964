"""Ctrl-C and SIGTERM as a wish: the running step is finished, the state saved, the run left cleanly."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from lightning_fabric import Fabric


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.wanted = False

    def agreed(self, fabric: Fabric) -> bool:
        """Whether any process was asked to stop: a collective call, all processes must make it together."""
        if fabric.world_size == 1:
            return self.wanted
        votes = torch.tensor(float(self.wanted), device=fabric.device)
        total = fabric.all_reduce(votes, reduce_op="sum")
        return bool(total.item() > 0)  # type: ignore[union-attr]


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a `StopRequest`; a second one acts as it always does.

    Outside the main thread signals cannot be caught, and the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        request.wanted = True
        # Forked processes that decode pictures inherit this handler; a terminal's Ctrl-C reaches them as well.
        if os.getpid() == owner and os.environ.get("RANK", "0") == "0":
            sys.stderr.write("\nStopping: the state is saved after this step. Once more stops at once.\n")
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
