"""How a command ends that is asked to: by Ctrl-C (SIGINT), SIGTERM or SIGHUP."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

#: Signals that ask for an end.
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")


class Asked(KeyboardInterrupt):
    """A signal asked for an end.

    Python itself notes a bare KeyboardInterrupt out of an ``exec``, as in a dataclass, and exits with SIGINT for it,
    whatever was caught, and whichever signal it was.
    """


class Stop:
    """Whether a signal asked for an end, and what the command has to say then.

    Attributes
    ----------
    number : int or None
        Of the signal.
    waits : callable
        Whether what runs looks at `number` by itself, and soon. Otherwise a signal raises :class:`Asked`.
    said : callable
        Gives the line for the user.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.waits: Callable[[], bool] = lambda: False
        self.said: Callable[[], str] = lambda: f"stopped by {self.name}; no unfinished file is left"

    @property
    def asked(self) -> bool:
        return self.number is not None

    @property
    def name(self) -> str:
        return signal.Signals(self.number or signal.SIGINT).name

    @property
    def code(self) -> int:
        """The exit code, as shells have it."""
        return 128 + (self.number or signal.SIGINT)

    def watch(self, surrogate: Any) -> Any:
        """A signal lets it finish the window that is being made; its forecasts that are not streamed end at once."""
        surrogate.stop_when = lambda: self.asked
        self.waits = lambda: surrogate.streaming
        return surrogate


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Inside, the first of the signals is handed to a :class:`Stop`. A second one does what it always did."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # no other can set handlers
        yield stop
        return
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    # nohup has SIGHUP ignored: so it stays.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        as_before()
        stop.number = number
        if not stop.waits():
            raise Asked

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        as_before()
