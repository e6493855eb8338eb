"""Ctrl-C and SIGTERM ask a run to stop after the step it is in; the same again ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from torchswat.errors import TorchswatError


class Interrupted(TorchswatError):
    """A run stopped because it was asked to; the message says how to continue it."""


class StopRequest:
    """Within ``with StopRequest() as stop``, the two signals set `stop.requested` and do nothing else.

    Examples
    --------
    >>> with StopRequest() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print(stop.requested)
    True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        # Of this signal alone: on Ctrl-C, torchrun sends SIGTERM on top of the terminal's SIGINT.
        signal.signal(number, signal.SIG_DFL)
