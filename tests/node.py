"""A real supervisor as a subprocess, for tests that attack it.

    with Node(workers=2) as node:
        result = noop.enqueue()
        finished(result)
        node.signal(signal.SIGTERM)
        assert node.wait_exit() == 0

Leaving the block stops a node that still runs, and fails the test if the node leaves anything
behind: a process of its session, or a row that is still claimed. The log is part of every failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from django.tasks.base import TaskResult

from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
BOOT = 20.0  # seconds
EXIT = 15.0
TIDY = 6.0  # seconds in which the last process and the last claim must be gone
LOG_LINES = 80


class Node:
    """One supervisor with its own session, its own name and a log file.

    `options`: the OPTIONS of its task backend. `entry`: "cli" or "django" (manage.py taskrunner).
    `ready`: wait for that when entering. `flags`: more of the command line.
    """

    def __init__(
        self,
        *flags: str,
        workers: int = 2,
        options: dict[str, Any] | None = None,
        entry: str = "cli",
        ready: bool = True,
    ) -> None:
        self.name = f"n{uuid.uuid4().hex[:6]}"
        self.workers_wanted = workers
        self.flags = flags
        self.options = options or {}
        self.entry = entry
        self.await_ready = ready
        self._code: int | None = None

    # Life

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="dbtasks-node-")
        self.log_path = Path(self._folder.name, "log")
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env=os.environ | {"DBTASKS_TEST_OPTIONS": json.dumps(self.options)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        if self.await_ready:
            try:
                self.wait_ready()
            except BaseException as error:
                self.__exit__(type(error), error, None)
                raise
        return self

    def command(self) -> list[str]:
        module = {"cli": "dbtasks_supervisor.cli", "django": "django"}[self.entry]
        words = [sys.executable, "-m", module]
        words += ["--settings", "tests.settings"] if self.entry == "cli" else ["taskrunner"]
        return [*words, "-w", str(self.workers_wanted), "-i", self.name, "-v", "2", *self.flags]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.leave()
            else:
                error.add_note(self.story())
        except AssertionError as failure:
            failure.add_note(self.story())
            raise
        finally:
            for pid in [self.pid, *self.processes()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
            self._folder.cleanup()

    def leave(self) -> None:
        """Stops it if it runs, and asserts that nothing is left of it."""
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
            code = self.wait_exit()
            assert code == 0, f"{self.name} ended with {code} on SIGTERM"
        wait_until(lambda: not self.processes(), TIDY, f"processes left: {self.titles()}")
        wait_until(lambda: not self.claims(), TIDY, f"{self.name} left rows that are claimed")

    def wait_ready(self, timeout: float = BOOT) -> None:
        self.wait_log(f"{self.name} ready", timeout)

    def wait_exit(self, timeout: float = EXIT) -> int:
        """The exit code; negative for a signal. Fails with the log when it takes longer."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout:g} s") from None

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    # Log

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = EXIT, times: int = 1) -> None:
        def is_there() -> bool:
            ended = self._process.poll() is not None
            if self.log().count(text) >= times:
                return True
            assert not ended, f"{self.name} ended with {self._process.poll()} before {text!r}"
            return False

        wait_until(is_there, timeout, f"{text!r} in the log {times} times")

    def story(self) -> str:
        """What a failure message tells about the node."""
        lines = self.log().splitlines()[-LOG_LINES:]
        return "\n".join([f"--- {self.name} (pid {self.pid}, {self.titles()}):", *lines])

    # Processes

    def processes(self) -> list[int]:
        """The living processes of the session, the supervisor included; no zombies."""
        return [pid for pid in psutil.pids() if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return os.getsid(pid) == self.pid and state_of(pid) not in ("Z", "X", "")
        except ProcessLookupError:
            return False

    def titles(self) -> dict[int, str]:
        """What `ps` shows for each of them."""
        return {pid: title_of(pid) for pid in self.processes()}

    def children(self, role: str) -> list[int]:
        """The pids of a role: "1", "2", … for workers, "scheduler", "janitor"."""
        title = f"dbtasks: {self.name}-{role}"
        return [pid for pid, shown in self.titles().items() if shown == title]

    def child(self, role: str, timeout: float = 5.0, but: int | None = None) -> int:
        """The pid of the only child of that role; waits for it. `but`: not that one."""

        def only() -> int | None:
            found = [pid for pid in self.children(role) if pid != but]
            return found[0] if len(found) == 1 else None

        return wait_until(only, timeout, f"one {self.name}-{role}") or 0

    def worker_pids(self) -> list[int]:
        """The pids of the workers of all slots."""
        prefix = f"dbtasks: {self.name}-"
        return [
            pid
            for pid, shown in self.titles().items()
            if shown.startswith(prefix) and shown.removeprefix(prefix).isdecimal()
        ]

    def wait_workers(self, count: int, timeout: float = 5.0) -> list[int]:
        """Waits until exactly that many workers live; returns their pids."""
        wait_until(lambda: len(self.worker_pids()) == count, timeout, f"{count} workers")
        return self.worker_pids()

    # Rows

    def claims(self) -> list[str]:
        """The tasks that its workers hold."""
        from dbtasks.models import ScheduledTask

        rows = ScheduledTask.objects.filter(claimed_by__startswith=f"{self.name}-")
        return [f"{row.task_path} ({row.status}, {row.claimed_by})" for row in rows]

    def is_registered(self) -> bool:
        from dbtasks.models import Node as NodeRow

        return NodeRow.objects.filter(name=self.name).exists()


def title_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def state_of(pid: int) -> str:
    """The letter of its state (proc(5)); "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z", "X")


def finished(result: TaskResult, timeout: float = 15.0) -> TaskResult:
    """Waits until the task is SUCCESSFUL or FAILED; returns its refreshed result."""

    def look() -> bool:
        result.refresh()
        return result.is_finished

    wait_until(look, timeout, f"{result.task.module_path} finishes")
    return result


def row_of(result: TaskResult) -> Any:
    """Its ScheduledTask as it is in the database now."""
    from dbtasks.models import ScheduledTask

    return ScheduledTask.objects.get(pk=result.id)


def lines(path: Path) -> list[str]:
    """What tasks have appended to the file so far."""
    return path.read_text().splitlines() if path.exists() else []


@contextlib.contextmanager
def within(seconds: float, what: str) -> Iterator[Callable[[], float]]:
    """Fails when the block took longer; gives a function that returns the seconds so far."""
    started = time.monotonic()
    yield lambda: time.monotonic() - started
    took = time.monotonic() - started
    assert took <= seconds, f"{what}: took {took:.2f} s, at most {seconds:g} s allowed"
