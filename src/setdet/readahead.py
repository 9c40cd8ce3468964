"""What comes next is made ready by a thread, while what came before is worked on. No torch."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar, cast

Item = TypeVar("Item")
Ready = TypeVar("Ready")

_PATIENCE_S = 1.0  # with a source that waits for a camera when nobody wants its next picture any more


class ReadAhead(Generic[Item, Ready]):
    """What `prepare` makes of the items of an iterator, in their order, up to `ahead` of them before they are taken.

    Whoever is done with it closes it. `next` is called on the iterator by one thread, and never again after it has
    ended or raised. The thread doesn't keep the process from ending, should the iterator never give its next item.
    """

    def __init__(self, items: Iterator[Item], prepare: Callable[[Item], Ready], *, ahead: int) -> None:
        self.ended = False
        self.failure: BaseException | None = None
        self._room = threading.Semaphore(ahead)
        self._ready: SimpleQueue[tuple[Ready] | None] = SimpleQueue()  # None: there is nothing more
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(items, prepare), name="setdet-reader", daemon=True)
        self._thread.start()

    def take(self, count: int) -> list[Ready]:
        """The next `count`, waited for; fewer at the end, and then `ended` is true.

        `failure` is what the iterator or `prepare` has raised in place of the next one, for the caller to raise.
        """
        taken: list[Ready] = []
        while len(taken) < count and not self.ended:
            ready = self._ready.get()
            if ready is None:
                self.ended = True
            else:
                taken.append(ready[0])
                self._room.release()
        return taken

    def close(self) -> None:
        """Ends the thread. One that waits for its iterator is left behind after a second, and ends with its wait."""
        self._closed = True
        self._room.release()
        self._thread.join(_PATIENCE_S)

    def _work(self, items: Iterator[Item], prepare: Callable[[Item], Ready]) -> None:
        nothing = object()
        try:
            while self._room.acquire() and not self._closed:
                item = next(items, nothing)
                if item is nothing:
                    break
                self._ready.put((prepare(cast(Item, item)),))
        except BaseException as error:
            self.failure = error
        self._ready.put(None)
