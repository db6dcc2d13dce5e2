"""What a process can do to itself: Linux's prctl(2), its title, its memory, its stack dumps.

Everything is harmless where the system lacks it: the functions return False, or do nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def set_parent_death_signal(signum: int) -> bool:
    """Have the kernel send ``signum`` to this process when its parent dies; 0 takes it back.

    The parent may be dead already: compare ``os.getppid()`` with its pid afterwards.
    PR_SET_PDEATHSIG, prctl(2), Linux only.
    """
    return _prctl(_PR_SET_PDEATHSIG, signum)


def become_subreaper() -> bool:
    """Become the parent of orphaned grandchildren, to reap them.

    PR_SET_CHILD_SUBREAPER, prctl(2), Linux only.
    """
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_title(text: str) -> None:
    """Set what ``ps`` shows for this process; a decoration, so every failure is swallowed."""
    with contextlib.suppress(Exception):
        import setproctitle

        setproctitle.setproctitle(text)


def unique_memory(pid: int) -> int:
    """Return the bytes that only this process uses (USS); 0 when it is gone.

    The resident size would count what workers share with their parent once for each of them.
    It is the fallback where the unique size cannot be read.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        try:
            return int(process.memory_full_info().uss)
        except (psutil.AccessDenied, AttributeError, NotImplementedError, OSError):
            return int(process.memory_info().rss)
    except (psutil.Error, OSError):
        return 0


def give_back_free_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it can (glibc)."""
    with contextlib.suppress(ImportError, OSError, AttributeError, TypeError):
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time in seconds that the process has used; None when it is gone."""
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return None
    return round(float(times.user + times.system), 2)


def dump_stack_handler(signum: int | None = None) -> bool:
    """On SIGUSR2 (or ``signum``), write the stacks of all threads to stderr.

    ``faulthandler`` does it from C, so it works while a task loops, blocks or holds every lock.
    """
    import faulthandler

    wanted = getattr(signal, "SIGUSR2", None) if signum is None else signum
    if wanted is None or not hasattr(faulthandler, "register"):
        return False
    for file in (sys.stderr, 2):  # a test or a project may have replaced stderr by something else
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError, TypeError):
            faulthandler.register(wanted, file=file, all_threads=True, chain=False)
            return True
    return False


def usable_cpus() -> int:
    """Return how many CPUs this process may use: its affinity, and the container's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, count if quota is None else min(count, quota))


def _cpu_quota() -> int | None:
    """Read ``cpu.max`` of control groups v2 ("quota period" in microseconds, or "max …")."""
    try:
        quota, period = _CPU_LIMIT.read_text(encoding="ascii").split()
        return None if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _prctl(option: int, value: int) -> bool:
    call = _load_prctl()
    return call is not None and call(option, value) == 0


@functools.cache
def _load_prctl() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    prctl.restype = ctypes.c_int

    def call(option: int, value: int) -> int:
        # The call is variadic: the kernel reads unsigned longs, so say so.
        result: int = prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0)))
        return result

    return call
