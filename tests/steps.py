"""A batch of fast tasks with a slow one in it, and who ran what of it."""

from collections import Counter
from pathlib import Path
from typing import Any

from django.tasks import TaskResult, default_task_backend

from dbtasks.models import ScheduledTask
from tests.app import tasks
from tests.node import lines
from tests.waiting import wait_until

FAST = 20


class Steps:
    """Tasks of one path that note when they start; one of them waits until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.journal = folder / "journal"
        self.gate = folder / "gate"

    def enqueue(self, *texts: str, signal: tuple[int, int] | None = None) -> list[TaskResult]:
        """In one statement; the one named "slow" waits. `signal`: sent to that process before."""
        calls: list[Any] = [(tasks.send_signal, signal, {})] if signal else []
        for text in texts:
            gate = str(self.gate) if text == "slow" else None
            calls.append((tasks.journal, (str(self.journal), text, gate), {}))
        return default_task_backend.enqueue_all(calls)  # type: ignore[attr-defined]

    @property
    def starts(self) -> Counter[str]:
        return Counter(line.split()[0] for line in lines(self.journal))

    def wait_for_slow(self) -> int:
        """The process in which it runs."""
        wait_until(lambda: self.starts["slow"], message="the slow task starts")
        (line,) = (line for line in lines(self.journal) if line.startswith("slow "))
        return int(line.split()[1])

    def teach(self) -> None:
        """Lets both workers find out that these tasks are fast, so that they claim many."""
        for _ in range(2):
            both = (tasks.journal, (str(self.journal),), {}), (tasks.send_signal, (0, 0), {})
            default_task_backend.enqueue_all(both * 200)  # type: ignore[attr-defined]
            wait_until(lambda: not unfinished(), 20, "the workers have learned")
        self.journal.unlink()


def numbered(count: int) -> list[str]:
    return [f"fast{number}" for number in range(count)]


def unfinished() -> int:
    return ScheduledTask.objects.exclude(status__in=["SUCCESSFUL", "FAILED"]).count()
