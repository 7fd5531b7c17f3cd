"""The captures of a start function that are kept, of batches of different forms; and what could not be captured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..capture.recording import NotCapturable
from .start import Start, StartFunction

_KEPT = 16  # forms of a batch
_MOST = 64  # batches before what cannot be captured is tried again


@dataclass
class _Refused:
    """A function that cannot be captured, and for how many batches it is not tried again."""

    function: StartFunction
    reason: str
    wait: int
    left: int


class Starts:
    """The captures of a function, which may become another.

    Attributes:
        has_run: whether the last that was asked for was refused after the function was run, and so has set the states.
    """

    def __init__(self) -> None:
        self._kept: list[Start] = []
        self._refused: _Refused | None = None
        self.has_run = False

    def of(self, function: StartFunction, batch: tuple[Any, ...]) -> Start:
        """The capture that fits a batch; it is as if the function had been run.

        Raises:
            NotCapturable: there is none.
        """
        self.has_run = False
        self._kept = [start for start in self._kept if start.function is function]
        for start in reversed(self._kept):
            if start.still(batch):
                if start is not self._kept[-1]:
                    self._kept.remove(start)
                    self._kept.append(start)
                if not start.fits():
                    start.run(batch)
                return start
        refused = self._refused if self.refuses(function) else None
        if refused is not None and refused.left > 0:
            refused.left -= 1
            raise NotCapturable(refused.reason)
        try:
            start = Start(function, batch)
        except NotCapturable as reason:
            wait = 1 if refused is None else min(2 * refused.wait, _MOST)
            self._refused = _Refused(function, f"start cannot be captured: {reason}", wait, wait)
            self.has_run = True
            raise NotCapturable(self._refused.reason) from None
        self._refused = None
        kept = [old for old in self._kept if not start.supersedes(old)]
        self._kept = [*kept[-_KEPT + 1 :], start]
        return start

    def refuses(self, function: StartFunction) -> bool:
        """Whether a function could not be captured when it was last tried."""
        return self._refused is not None and self._refused.function is function

    def knows(self, function: StartFunction) -> bool:
        """Whether a function has been captured, or could not be."""
        return self.refuses(function) or any(start.function is function for start in self._kept)

    @property
    def obstacle(self) -> str:
        """Why the function goes on being run dry, where there is a reason but that it is new."""
        return self._kept[-1].obstacle if self._kept else ""
