"""A command in a process of its own, and a project of its own to run it in.

    with supervise("-w", "2") as process:
        process.wait_for("ready")

Its output goes to files, so that nothing waits for a reader, and its session ends with the test.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from tests.waiting import wait_until

SUPERVISOR = (sys.executable, "-m", "dbtasks_supervisor.cli")
TASKRUNNER = (sys.executable, "-m", "django", "taskrunner")
START_SECONDS = 30.0
LEAVE_SECONDS = 15.0


class Process:
    """A running command; ``name`` is its node's, by which its children's titles are known."""

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.folder = tempfile.TemporaryDirectory(prefix="dbtasks-process-")
        self._out, self._err = (Path(self.folder.name, each) for each in ("stdout", "stderr"))
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.popen = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        """Ends what is left; that something is left of a process that ended is a failure."""
        try:
            ended = self.popen.poll() is not None
            family = self.family()
            if ended and kind is None:
                wait_until(lambda: not self.family(), LEAVE_SECONDS, f"{family} to leave")
        finally:
            self.kill()
            if kind is not None:
                print(f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}", file=sys.stderr)
            self.folder.cleanup()

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()

    def count(self, text: str) -> int:
        """How many lines of stderr contain ``text``."""
        return sum(text in line for line in self.lines)

    def wait_for(self, text: str, timeout: float = START_SECONDS, times: int = 1) -> None:
        """Wait until stderr has so many lines with ``text``; fail at once if the process ends."""

        def seen() -> bool:
            if self.count(text) >= times:
                return True
            assert self.popen.poll() is None, f"it ended with {self.popen.returncode}"
            return False

        wait_until(lambda: seen() or self.count(text) >= times, timeout, f"{text!r} on stderr")

    def signal(self, signum: int) -> None:
        self.popen.send_signal(signum)

    def wait(self, timeout: float = LEAVE_SECONDS) -> int:
        """The exit code."""
        return self.popen.wait(timeout)

    def terminate(self, timeout: float = LEAVE_SECONDS) -> int:
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def pids(self, title: str) -> set[int]:
        """The pids of the children whose title is "dbtasks: NAME-" and ``title`` (a pattern)."""
        pattern = re.compile(rf"dbtasks: {re.escape(self.name)}-(?:{title})\s*")
        found = set()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    if pattern.fullmatch(" ".join(child.cmdline())):
                        found.add(child.pid)
        return found

    @property
    def workers(self) -> set[int]:
        return self.pids("[0-9]+")

    def family(self) -> list[psutil.Process]:
        """Who lives in our session, and is no zombie."""
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != "zombie":
                    members.append(process)
        return members

    def kill(self) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS
        while (members := self.family()) and time.monotonic() < deadline:
            for member in members:
                with contextlib.suppress(psutil.Error):
                    member.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(0.1)
        self.popen.wait()


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """Ours with ``changes``, where None removes a variable."""
    inherited = {key: value for key, value in os.environ.items() if key not in changes}
    return inherited | {key: value for key, value in changes.items() if value is not None}


def supervise(
    *flags: str,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    command: tuple[str, ...] = SUPERVISOR,
    name: str = "node",
) -> Process:
    """`dbtasks-supervisor` as a node called ``name``."""
    return Process((*command, "-i", name, *flags), env=env, cwd=cwd, name=name)


def run(
    *flags: str,
    env: Mapping[str, str | None] | None = None,
    cwd: Path | None = None,
    command: tuple[str, ...] = SUPERVISOR,
    timeout: float = START_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """A command that is to end by itself, within ``timeout`` seconds."""
    return subprocess.run(
        [*command, *flags],
        cwd=cwd,
        env=environment(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Project:
    """A project in a folder: the tests' settings, and an app of its own with tasks to edit."""

    number = 0

    def __init__(self, folder: Path, *, tasks: str = "", settings: str = "") -> None:
        Project.number += 1
        self.folder = folder
        # A name of its own each, for the tests import its tasks too, to enqueue them.
        self.app = f"shop{Project.number}"
        self.settings_module = f"{self.app}_settings"
        self.settings = folder / f"{self.settings_module}.py"
        self.tasks = folder / self.app / "tasks.py"
        self.tasks.parent.mkdir(parents=True)
        (self.tasks.parent / "__init__.py").touch()
        self.write_tasks(tasks)
        head = f'from tests.settings import *\nINSTALLED_APPS = [*INSTALLED_APPS, "{self.app}"]\n'
        replace(self.settings, head + textwrap.dedent(settings))

    def write_tasks(self, text: str) -> None:
        imports = "import os, threading, time\nfrom django.tasks import task\n"
        replace(self.tasks, imports + textwrap.dedent(text))

    @property
    def env(self) -> dict[str, str]:
        # A compiled file of the same second and size as its edited source would be taken for good.
        return {"DJANGO_SETTINGS_MODULE": self.settings_module, "PYTHONDONTWRITEBYTECODE": "1"}

    def supervise(self, *flags: str, **options: Any) -> Process:
        env = self.env | options.pop("env", {})
        return supervise(*flags, env=env, cwd=self.folder, **options)

    def run(self, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
        env = self.env | options.pop("env", {})
        return run(*flags, env=env, cwd=self.folder, **options)


def replace(path: Path, text: str) -> None:
    """Write in one step, as editors do: a reader never finds half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
