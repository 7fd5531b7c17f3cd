"""Ctrl-C at places of our choice."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Uninterrupted:
    """Lets Ctrl-C wait until what is inside is done: Python would raise it between any two instructions.

    Elsewhere than in the main thread, or where a program does not let Python handle it, there is nothing to do.
    """

    def __enter__(self) -> None:
        self._caught: tuple[int, FrameType | None] | None = None
        self._handler = signal.getsignal(signal.SIGINT)
        self._here = callable(self._handler) and threading.current_thread() is threading.main_thread()
        if self._here:
            signal.signal(signal.SIGINT, self._catch)

    def __exit__(self, *_: object) -> None:
        if not self._here:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._caught is not None and callable(self._handler):
            self._handler(*self._caught)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught = number, frame
