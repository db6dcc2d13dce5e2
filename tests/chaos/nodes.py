"""The supervisors under attack: started, looked at from outside, and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
EXIT = 45.0  # seconds in which a node must have left after SIGTERM
YOUNG = 10.0  # seconds after its start in which SIGTERM may meet an interpreter without handlers
PREFIX = "dbtasks: "


class Member(NamedTuple):
    """A process of a node; `role`: "supervisor", "scheduler", "janitor", "1", "2"… or ""."""

    pid: int
    role: str


class Node:
    """One name, under which one supervisor after the other runs.

    `lock`: held by whoever starts or ends the supervisor, so that nobody else does meanwhile.
    `sessions`: those of all its supervisors, for what a killed one leaves behind is ours as well.
    """

    def __init__(self, name: str, folder: Path, *flags: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.command = [sys.executable, "-m", "django", "taskrunner", "--no-reload"]
        self.command += ["-i", name, *flags]
        self.lock = threading.Lock()
        self.sessions: set[int] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started_at = time.monotonic()
        self.sessions.add(self.process.pid)

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    def code(self) -> int | None:
        """The supervisor's exit code, negative for a signal; None while it runs."""
        return None if self.process is None else self.process.poll()

    @property
    def is_up(self) -> bool:
        """Whether the supervisor runs and its signal handlers are installed."""
        return self.code() is None and role_of(self.pid, self.name) == "supervisor"

    # Its processes

    def members(self) -> list[Member]:
        """The living processes of all its sessions; no zombies."""
        return [
            Member(pid, role_of(pid, self.name))
            for pid in psutil.pids()
            if session_of(pid) in self.sessions and is_alive(pid)
        ]

    def current(self, role: str | None = None) -> list[Member]:
        """Those of the supervisor that runs now; `role`: "worker" stands for "1", "2"…"""
        return [
            member
            for member in self.members()
            if session_of(member.pid) == self.pid
            and (
                role is None
                or member.role == role
                or (role == "worker" and member.role.isdecimal())
            )
        ]

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # What is done to it

    def kill_supervisor(self) -> None:
        self.send(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def send(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def leave(self, signum: signal.Signals = signal.SIGTERM) -> str:
        """Ends it by `signum`; returns what is wrong with how it left, or ""."""
        assert self.process is not None
        young = time.monotonic() - self.started_at < YOUNG and not self.is_up
        self.send(signum)
        try:
            code = self.process.wait(EXIT)
        except subprocess.TimeoutExpired:
            self.kill_supervisor()
            return f"{self.name} still ran {EXIT:g} s after {signum.name}"
        if code == 0 or (young and code == -signum):
            return ""
        return f"{self.name} ended with {code} after {signum.name}"

    def destroy(self) -> None:
        """SIGKILL to all of its processes, until none is left."""
        deadline = time.monotonic() + EXIT
        while (members := self.members()) and time.monotonic() < deadline:
            kill(members, signal.SIGKILL)
            if self.process is not None:
                self.process.poll()
        if self.process is not None:
            self.process.wait()


def kill(members: list[Member], signum: signal.Signals) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signum)


def role_of(pid: int, name: str) -> str:
    title = title_of(pid)
    if title == f"{PREFIX}{name} supervisor":
        return "supervisor"
    prefix = f"{PREFIX}{name}-"
    return title.removeprefix(prefix) if title.startswith(prefix) else ""


def title_of(pid: int) -> str:
    """What ps shows; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in (b"Z", b"X")
