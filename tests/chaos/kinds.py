"""The kinds of tasks of `tasks`: how often each is drawn, and how it must end."""

from __future__ import annotations

from dataclasses import dataclass

REFUSED = "tests.chaos.tasks.Refused"
TIMEOUT = "dbtasks.exceptions.TaskTimeout"
WORKER_DIED = "dbtasks.exceptions.WorkerDied"


@dataclass(frozen=True)
class Kind:
    """It must be SUCCESSFUL, or FAILED with `error` as its last one, `times` times in all."""

    weight: int
    error: str | None = None
    times: int | None = None


KINDS = {
    "noop": Kind(24),
    "sleep": Kind(16),
    "compute": Kind(8),
    "write_entry": Kind(12),
    "write_and_refuse": Kind(4, REFUSED),
    "fail_twice": Kind(6),
    "fail_always": Kind(3, REFUSED, times=3),
    "fail_once": Kind(3, REFUSED, times=1),
    "return_much": Kind(4),
    "poison": Kind(1, WORKER_DIED, times=2),
    "overrun": Kind(2, TIMEOUT),
    "start_process": Kind(4),
}
