"""Raises an exception in another thread: how the Runner keeps time limits."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

from .exceptions import TaskCancelled, TaskInterrupted, TaskTimeout

CANCELLED = "somebody cancelled the task while it ran"


class ThreadLimit:
    """The time limit of the task that one thread runs.

    CPython delivers such an exception between two bytecodes (PyThreadState_SetAsyncExc), so code
    in C, a query for instance, is interrupted only after it has returned.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._deadline: float | None = None
        self.attempt: tuple[str, int] | None = None  # of which task, while it runs

    @contextlib.contextmanager
    def __call__(self, seconds: float | None) -> Iterator[None]:
        with self._lock:
            self._thread = threading.get_ident()
            began = time.monotonic()
            self._deadline = None if seconds is None else began + seconds
        try:
            yield
        except TaskTimeout as error:
            if not error.args and seconds is not None:  # ours: only a class can be raised there
                error.args = (over_limit(time.monotonic() - began, seconds),)
            raise
        except TaskCancelled as error:
            error.args = error.args or (CANCELLED,)
            raise
        finally:
            self.release()

    def release(self) -> None:
        """Nothing is raised in the thread from now on; it must call this itself.

        What arrives meanwhile is too late for its task and is dropped. Call it once more after the
        task: an exception may have arrived just before this could catch it.
        """
        while True:
            try:
                with self._lock:
                    _raise_in(self._thread, None)  # what is not delivered yet must never be
                    self._thread = self._deadline = self.attempt = None
                return
            except (TaskCancelled, TaskInterrupted, TaskTimeout):
                continue

    @property
    def deadline(self) -> float | None:
        """time.monotonic() at which the running task's time is up."""
        return self._deadline

    def enforce(self) -> None:
        """Raises TaskTimeout in the thread if its task's time is up."""
        with self._lock:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                _raise_in(self._thread, TaskTimeout)
                self._deadline = time.monotonic() + 1.0  # again, if the task swallowed it

    def interrupt(self) -> None:
        """Raises TaskInterrupted in the thread if it runs a task."""
        with self._lock:
            if self._thread is not None:
                _raise_in(self._thread, TaskInterrupted)

    def cancel(self, attempt: tuple[str, int]) -> bool:
        """Raises TaskCancelled in the thread if that is what it runs, and says whether it is."""
        with self._lock:
            if self._thread is None or self.attempt != attempt:
                return False
            _raise_in(self._thread, TaskCancelled)
            return True


def over_limit(ran: float, limit: float) -> str:
    """What a TaskTimeout tells; both in seconds."""
    return f"ran for {ran:.1f} s; its time limit is {limit:g} s"


def _raise_in(thread: int | None, exception: type[BaseException] | None) -> None:
    if thread is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread), None if exception is None else ctypes.py_object(exception)
        )
