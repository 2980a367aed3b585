"""The command line in processes of their own, each a copy of one that has imported everything already."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What a process may use: CPU seconds, and bytes beside what it has from the beginning.
CPU_SECONDS, MEMORY = 10, 2 << 30

#: Exit code of an exception that nothing turned into a message.
TRACEBACK = 70


@dataclass(frozen=True)
class Done:
    """How a process ended.

    Attributes
    ----------
    code : int
        Exit code; negative: the signal that ended it.
    output, errors : str
    seconds : float
        CPU time.
    peak : int
        Largest resident memory in bytes, that of the process it was copied from included.
    """

    code: int
    output: str
    errors: str
    seconds: float
    peak: int

    @property
    def kind(self) -> str:
        """One word: what came of it."""
        if self.code == -signal.SIGXCPU:
            return "hang"
        if "MemoryError" in self.errors or "bad_alloc" in self.errors:
            return "memory"
        if self.code < 0:
            return "crash"
        if self.code == TRACEBACK or "Traceback (most recent call last)" in self.errors:
            return "traceback"
        if self.code in (0, 3):
            return "forecast"
        return "clean error" if "Error: " in self.errors else "no message"


class Child:
    """A process that runs ``egno-md ARGUMENTS``.

    Parameters
    ----------
    arguments : sequence
    limited : bool
        End it where it uses more than `CPU_SECONDS` or `MEMORY`.
    before : callable
        Called in it first.
    """

    def __init__(
        self, arguments: Sequence, *, limited: bool = False, before: Callable[[], object] = lambda: None
    ) -> None:
        self._said = [tempfile.TemporaryFile() for _ in range(2)]
        self.pid = os.fork()
        if not self.pid:
            code = TRACEBACK
            try:
                for number, file in enumerate(self._said, 1):
                    os.dup2(file.fileno(), number)
                if limited:
                    _limit()
                before()
                code = _call([os.fspath(a) if isinstance(a, (Path, bytes)) else str(a) for a in arguments])
            except BaseException:
                os.write(2, traceback.format_exc().encode("utf-8", "replace"))
            finally:
                os._exit(code)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Done:
        """Until it ends."""
        _, status, used = os.wait4(self.pid, 0)
        texts = []
        for file in self._said:
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
            file.close()
        return Done(os.waitstatus_to_exitcode(status), *texts, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def run(arguments: Sequence, **options) -> Done:
    """``egno-md ARGUMENTS`` from beginning to end."""
    return Child(arguments, **options).wait()


def prepare() -> None:
    """Import here what every child needs."""
    import lightning  # noqa: F401
    import mdtraj  # noqa: F401
    import torch

    import egno_md.analysis
    import egno_md.cli
    import egno_md.training.run  # noqa: F401

    torch.set_num_threads(1)


def sleep_until(child: Child, moment: float) -> None:
    """Until a time of ``time.monotonic()``, or until the child has ended."""
    while (left := moment - time.monotonic()) > 0 and child.running():
        time.sleep(min(left, 0.005))


def _limit() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.alarm(30 * CPU_SECONDS)  # asleep forever


def _call(arguments: list[str]) -> int:
    from egno_md.cli import main

    with warnings.catch_warnings():
        try:
            main(arguments, prog_name="egno-md")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
