"""The command line in processes of their own, each a copy of one that has imported everything already."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What a process may use: CPU seconds, and bytes beside what it has from the beginning.
CPU_SECONDS, MEMORY = 10, 2 << 30

#: No process lives longer than this, whatever it waits for, in seconds: one with limits, and one without.
LONGEST_LIMITED, LONGEST = 60, 600

#: Processes and threads of one user, and processes that one of ours may start (libraries ask the system things).
USER_PROCESSES, STARTS = 4096, 8

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
        if self.code in (-signal.SIGXCPU, -signal.SIGALRM):
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
        End it where it uses more than `CPU_SECONDS` or `MEMORY`. None may run longer than `LONGEST` or start more
        processes than `STARTS`.
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
                os.setsid()  # so that what it leaves behind can be ended with it
                _limit(limited)
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
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)  # its number is still taken, so that this is nobody else
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
    from egno_md.nn import operators

    operators.names()  # imports all of them
    torch.set_num_threads(1)


def sleep_until(child: Child, moment: float) -> None:
    """Until a time of ``time.monotonic()``, or until the child has ended."""
    while (left := moment - time.monotonic()) > 0 and child.running():
        time.sleep(min(left, 0.005))


def _limit(strictly: bool) -> None:
    """Bound what this process may use; `strictly`: its memory and CPU seconds as well."""
    if strictly:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_NPROC, (USER_PROCESSES, USER_PROCESSES))
    started = 0

    def few(event: str, _: object) -> None:  # the limit of the system does not hold for root
        nonlocal started
        if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"):
            started += 1
            if started > STARTS:
                raise RuntimeError(f"{started} processes started")

    sys.addaudithook(few)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST_LIMITED if strictly else LONGEST)


def _call(arguments: list[str]) -> int:
    from egno_md.cli import main

    with warnings.catch_warnings():
        try:
            main(arguments, prog_name="egno-md")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
