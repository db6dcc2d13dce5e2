"""One forked child as its parent sees it: its slot, its state, its deadlines, how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .board import Board, State
from .channel import Channel
from .hand import SharedHand
from .process import cpu_seconds, unique_memory
from .signals import WORKER_CANCEL, WORKER_DRAIN, WORKER_DUMP, WORKER_INTERRUPT, name_of

WAKE_AGAIN = 0.05  # seconds that a worker has for answering a wake-up before the next one
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds
WAKEABLE = (State.IDLE, State.LOOKING)
LOOPING = 3  # crashes in a row without a task in between
HEALTHY_AFTER = 60.0  # seconds of life after which earlier crashes are forgotten


class Kind(Enum):
    WORKER = "worker"
    SCHEDULER = "scheduler"
    JANITOR = "janitor"
    RELOADER = "reloader"
    CHECKER = "checker"
    EXPORTER = "metrics"


class Life(Enum):
    """From fork to reaping."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    INTERRUPTING = "interrupting"
    KILLED = "killed"


@dataclass(eq=False)
class Child:
    """`identity` is what its claims are made under; the parent makes it before the fork."""

    kind: Kind
    slot: int
    identity: str
    pid: int
    channel: Channel
    board: Board | None = None  # None for one that was taken over from before a reload
    hand: SharedHand | None = None  # of a worker
    node: str = ""
    life: Life = Life.STARTING
    born: float = field(default_factory=time.monotonic)
    deadline: float | None = None  # the hard limit of its task, monotonic
    database_down: str = ""
    unanswered: bool = False  # that it is down, only the child's silence says
    woken_at: float = 0.0
    kill_at: float | None = None  # the last second after a stack dump
    charge: tuple[str, bool] = ("", True)  # its verdict, unless it moves on before
    condemned_at_tick: float = 0.0  # its last sign of life then
    # Why we ended it, for the errors of its task; and whether the task is to blame.
    verdict: str = ""
    counted: bool = True
    cancelled: bool = False  # ended because its task was: no crash
    wants_recycling: bool = False
    stopped_since: float | None = None
    jobs: list[Any] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.life is not Life.STARTING

    def has_crashed(self, status: int) -> bool:
        """Whether it ended otherwise than by leaving; os._exit(0) in a task only looks like it."""
        if status != 0 or (self.board is not None and self.board.read().running):
            return True
        return self.hand is not None and not self.hand.is_empty()

    @property
    def age(self) -> float:
        return time.monotonic() - self.born

    def wake(self, now: float) -> bool:
        """Wakes it if it is idle; says whether another one need not be woken instead."""
        if self.life is not Life.RUNNING or self.board is None:
            return False
        view = self.board.read()
        answered = view.ticked >= self.woken_at
        if view.state not in WAKEABLE or (not answered and now - self.woken_at < WAKE_AGAIN):
            return False
        self.woken_at = now
        # One that has not answered the last time may be stopped, and the work must not wait for it.
        return self.channel.send("wake") and answered

    def drain(self) -> None:
        """By message and by signal: a task may not read the one or block the other."""
        if self.life in (Life.STARTING, Life.RUNNING):
            self.life = Life.DRAINING
        self.channel.send("drain")
        if self.kind is Kind.WORKER:
            self.signal(WORKER_DRAIN)

    def interrupt(self) -> None:
        """Raises TaskInterrupted in its task; the row goes back uncounted."""
        if self.life is not Life.KILLED:
            self.life = Life.INTERRUPTING
            self.channel.send("drain")
            self.signal(WORKER_INTERRUPT)

    def cancel(self, began: float) -> None:
        """Raises TaskCancelled in the task that began then, if it still runs."""
        if self.hand is not None and self.life is not Life.KILLED:
            self.hand.cancel(began)
            self.signal(WORKER_CANCEL)

    def condemn(self, verdict: str, counted: bool, after: float = 1.0, dump: bool = True) -> None:
        """A stack dump now and SIGKILL `after` seconds, unless it moves on meanwhile."""
        if self.kill_at is None and self.life is not Life.KILLED:
            self.charge = (verdict, counted)
            self.kill_at = time.monotonic() + after
            self.condemned_at_tick = self.last_tick
            if dump:
                self.signal(WORKER_DUMP)

    def carry_out(self) -> None:
        """The last second is over. Who has moved on runs something else, which is not to blame."""
        if self.last_tick > self.condemned_at_tick:
            self.kill_at = None
        else:
            self.kill(*self.charge)

    @property
    def has_worked(self) -> bool:
        return self.board is not None and self.board.read().done > 0

    @property
    def last_tick(self) -> float:
        return self.board.read().ticked if self.board is not None else 0.0

    def kill(self, verdict: str = "", counted: bool = True) -> None:
        """SIGKILL to its whole process group: what its task has started goes with it."""
        if verdict and not self.verdict:
            self.verdict, self.counted = verdict, counted
        self.life = Life.KILLED
        self.kill_at = None
        self.kill_group()
        self.signal(signal.SIGKILL)

    def kill_group(self) -> None:
        """Only while the child is not reaped: until then its pid cannot name another group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def signal(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signum)

    def is_stopped(self) -> bool:
        """Whether somebody stopped it (SIGSTOP); being traced by a debugger does not count."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read(512).rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False

    def row(self, restarts: int) -> dict[str, Any]:
        """What the admin and the health check see (fields of dbtasks.models.Worker)."""
        view = self.board.read() if self.board is not None else None
        running = view is not None and view.running
        state = self.life.value if self.life is not Life.RUNNING or view is None else None
        return {
            "id": self.identity,
            "kind": self.kind.value,
            "pid": self.pid,
            "state": state or (view.state.name.lower() if view else ""),
            "task_id": view.task_id if view and running else "",
            "task_path": view.task_path if view and running else "",
            "task_seconds": round(time.monotonic() - view.started, 3) if view and running else None,
            "done": view.done if view else 0,
            "failed": view.failed if view else 0,
            "restarts": restarts,
            "memory": unique_memory(self.pid) or None,
            "cpu_seconds": cpu_seconds(self.pid),
            "up_seconds": round(self.age, 3),
        }

    def close(self) -> None:
        self.channel.close()
        if self.board is not None:
            self.board.close()
        if self.hand is not None:
            self.hand.close()


@dataclass
class Slot:
    """A place that is to be filled with a child, and how often its children crashed lately."""

    number: int
    kind: Kind
    child: Child | None = None
    wanted: bool = True
    crashes: int = 0
    restarts: int = 0
    restart_at: float = 0.0
    longest_backoff: float = LONGEST_BACKOFF

    @property
    def is_unwell(self) -> bool:
        """Empty, or its child is younger than the memory of the crashes before it."""
        return self.child is None or (self.crashes > 0 and self.child.age < HEALTHY_AFTER)

    @property
    def is_looping(self) -> bool:
        """Whether its children crash one after the other."""
        return self.crashes >= LOOPING and self.is_unwell

    def note_end(self, child: Child, crashed: bool, jitter: float) -> None:
        """Plans the next child: at once after a first crash or none, then with backoff.

        One that has brought a task to its end was well: what ended it was the next task. So a few
        poisonous tasks cannot take the workers from all others.
        """
        now = time.monotonic()
        self.child = None
        if child.age >= HEALTHY_AFTER or child.has_worked:
            self.crashes = 0
        if not crashed:
            self.restart_at = now
            return
        self.crashes += 1
        self.restarts += 1
        self.restart_at = now + backoff(self.crashes, jitter, self.longest_backoff)


def backoff(crashes: int, jitter: float, longest: float = LONGEST_BACKOFF) -> float:
    """Seconds until the next try: none after the first crash, then 0.5 s, doubling to `longest`."""
    if crashes <= 1:
        return 0.0
    delay: float = min(FIRST_BACKOFF * 2.0 ** min(crashes - 2, 20), longest)
    return delay * jitter


def describe_end(status: int) -> str:
    """What a wait status (waitpid(2)) says, as the cause of a task's end."""
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        hint: str = {
            int(signal.SIGKILL): "; the kernel's out-of-memory killer or an operator",
            int(signal.SIGSEGV): "; a crash in C code",
            int(signal.SIGBUS): "; a crash in C code",
            int(signal.SIGABRT): "; C code gave up",
        }.get(signum, "")
        return f"killed by {name_of(signum)}{hint}"
    code = os.WEXITSTATUS(status)
    return f"exited with status {code}; os._exit() in the task, or C code that gave up"
