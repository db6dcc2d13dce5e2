"""Undoes what a task did to the process, so that the next one finds it as the first one did."""

from __future__ import annotations

import contextlib
import faulthandler
import locale
import os
import signal
import sys
import time

# signal.getsignal() looks each answer up in an enumeration, which takes ten times as long.
from _signal import getsignal  # type: ignore[import-not-found]
from typing import Any

from .process import dump_stack_handler
from .signals import WORKER_DUMP, SignalInbox, unblock_all

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SIGNALS = sorted(
    signum
    for signum in signal.valid_signals()
    if signum not in (signal.SIGKILL, signal.SIGSTOP) and signum < getattr(signal, "SIGRTMIN", 32)
)


class ProcessState:
    """The process as it was when this was made; `restore()` makes it so again.

    Handlers, mask and timers of signals, the directory, the umask, the locale, the time zone and
    the standard streams. Of os.environ only TZ: libraries set variables when they are imported, and
    that happens once. A few microseconds per task: what cannot be compared for less is set.
    """

    def __init__(self, inbox: SignalInbox) -> None:
        self.inbox = inbox
        self.handlers = _handlers()
        # A descriptor, for a deploy may rename or delete the directory under us.
        self.directory = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
        self.umask = os.umask(0o077)
        os.umask(self.umask)
        self.locale = locale.setlocale(locale.LC_ALL)
        self.zone = os.environ.get("TZ")
        self.zone_in_use = _zone_in_use()
        self.streams = sys.stdin, sys.stdout, sys.stderr

    def restore(self) -> None:
        """Between two tasks, and before anything else: a handler or a timer may still go off."""
        self.restore_signals()
        with contextlib.suppress(OSError):
            os.fchdir(self.directory)
        os.umask(self.umask)
        if locale.setlocale(locale.LC_ALL) != self.locale:
            locale.setlocale(locale.LC_ALL, self.locale)
        if os.environ.get("TZ") != self.zone or _zone_in_use() != self.zone_in_use:
            self.restore_zone()
        sys.stdin, sys.stdout, sys.stderr = self.streams
        flush_streams()

    def restore_signals(self) -> None:
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        self.inbox.listen()
        if (handlers := _handlers()) != self.handlers:
            for signum, wanted, found in zip(_SIGNALS, self.handlers, handlers, strict=True):
                if found is not wanted:
                    signal.signal(signum, signal.SIG_DFL if wanted is None else wanted)
                    if signum == WORKER_DUMP:
                        restore_dump()
        unblock_all()  # last: what a task held back is for our handlers

    def restore_zone(self) -> None:
        if self.zone is None:
            os.environ.pop("TZ", None)
        else:
            os.environ["TZ"] = self.zone
        time.tzset()


def flush_streams() -> None:
    """What a task printed shows up now: the buffers of a pipe or a file wait for 8 KiB."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def restore_dump() -> None:
    """faulthandler believes that its handler is still there."""
    faulthandler.unregister(WORKER_DUMP)
    dump_stack_handler()


def _handlers() -> list[Any]:
    return list(map(getsignal, _SIGNALS))


def _zone_in_use() -> tuple[Any, ...]:
    return time.tzname, time.timezone, time.altzone
