"""Ctrl-C at places of our choice.

A mode of PyTorch's that it keeps from being left stays on for all that follows: none is entered elsewhere.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

_PATIENCE = 1.0  # seconds


class Uninterrupted:
    """Lets Ctrl-C wait until what is inside is done: Python would raise it between any two instructions.

    Who presses again after a second does not wait any longer, as for a user's function that never returns. Elsewhere
    than in the main thread, within another of these, or where a program does not let Python handle it, there is nothing
    to do.
    """

    def __enter__(self) -> None:
        self._caught: tuple[int, FrameType | None] | None = None
        self._since = 0.0
        self._handler = signal.getsignal(signal.SIGINT)
        within = isinstance(getattr(self._handler, "__self__", None), Uninterrupted)
        self._here = callable(self._handler) and not within and threading.current_thread() is threading.main_thread()
        if self._here:
            signal.signal(signal.SIGINT, self._catch)

    def __exit__(self, *_: object) -> None:
        if not self._here:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._caught is not None and callable(self._handler):
            self._handler(*self._caught)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._caught is None:
            self._caught, self._since = (number, frame), time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE and callable(self._handler):
            self._caught = None
            self._handler(number, frame)
