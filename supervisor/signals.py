"""Signals arrive as bytes in a pipe; handlers do nothing, so no signal ever interrupts a decision.

`signal.set_wakeup_fd` has the interpreter's C code write the number of each signal, which also
ends a select() that waits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterable
from types import FrameType

# What each signal means to the parent (DESIGN: the supervisor).
DRAIN = signal.SIGTERM
INTERRUPT = signal.SIGINT
KILL_NOW = signal.SIGQUIT
RELOAD = signal.SIGHUP
ONE_MORE = signal.SIGTTIN
ONE_LESS = signal.SIGTTOU
REOPEN_LOGS = signal.SIGUSR1
DUMP_STACKS = signal.SIGUSR2
CHILD = signal.SIGCHLD

PARENT_SIGNALS = (
    DRAIN,
    INTERRUPT,
    KILL_NOW,
    RELOAD,
    ONE_MORE,
    ONE_LESS,
    REOPEN_LOGS,
    DUMP_STACKS,
    CHILD,
)
# What the parent tells a worker by signal as well, in case it does not read its channel.
WORKER_DRAIN = signal.SIGTERM
WORKER_INTERRUPT = signal.SIGUSR1
WORKER_CANCEL = signal.SIGURG  # ignored where nobody handles it
WORKER_DUMP = signal.SIGUSR2


class SignalInbox:
    """The signals that arrived and were not handled yet. Main thread only."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._reader, self._writer = os.pipe()
        for descriptor in (self._reader, self._writer):
            os.set_blocking(descriptor, False)
        self.booting = False
        self.listen()
        self.signals = tuple(signals)
        for signum in self.signals:
            signal.signal(signum, self._note)
        unblock_all()  # an exec in place leaves them blocked until somebody can hear them

    def listen(self) -> None:
        """Has signals arrive here; once more after code that may have diverted them."""
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # Before there is a child to drain, leaving is all that such a signal can mean.
        if self.booting and signum in (DRAIN, INTERRUPT, KILL_NOW):
            raise SystemExit(0)

    def fileno(self) -> int:
        return self._reader

    def read(self) -> list[int]:
        """The numbers of the signals since the last call, oldest first."""
        numbers = bytearray()
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._reader, 4096):
                numbers += chunk
        return list(numbers)

    def ignore(self) -> None:
        """At the end: a second TERM must not kill, and so turn a clean exit into -15."""
        for signum in self.signals:
            if signum != signal.SIGCHLD:
                signal.signal(signum, signal.SIG_IGN)

    def close(self) -> None:
        """Ends the delivery; a forked child calls it before it makes an inbox of its own."""
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)


def wait_readable(descriptors: Iterable[int], seconds: float) -> None:
    """Until one of them can be read, or the time is over; any number, unlike select(2)'s 1024."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    poll.poll(max(0.0, seconds) * 1000)


def block_all() -> None:
    """Holds back every signal, across a fork or an exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def unblock_all() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def name_of(signum: int) -> str:
    """ "SIGKILL" for 9."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"
