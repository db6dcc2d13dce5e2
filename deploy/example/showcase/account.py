"""What happened since the demo began, read from the queue's table and from the example's."""

import datetime
from dataclasses import dataclass

from django.db.models import Max, Min, QuerySet
from django.tasks import TaskResultStatus
from library.models import Module, Throughput
from library.stdlib import module_name

from dbtasks.models import ScheduledTask

FINISHED = (TaskResultStatus.SUCCESSFUL, TaskResultStatus.FAILED)


@dataclass(frozen=True)
class Account:
    """Counts of tasks that finished; `seconds` from the first start to the last finish."""

    tasks: int
    failed: int
    seconds: float
    retries: int
    workers: int
    periodic: int

    @property
    def per_second(self) -> float:
        return self.tasks / self.seconds if self.seconds > 0 else 0.0


def tasks_since(start: datetime.datetime) -> QuerySet[ScheduledTask]:
    return ScheduledTask.objects.filter(enqueued_at__gte=start)


def account_since(start: datetime.datetime) -> Account:
    finished = tasks_since(start).filter(status__in=FINISHED)
    span = finished.aggregate(first=Min("started_at"), last=Max("finished_at"))
    # One entry per attempt: who ran it, and so how often.
    attempts = list(finished.values_list("worker_ids", flat=True))
    return Account(
        tasks=len(attempts),
        failed=finished.filter(status=TaskResultStatus.FAILED).count(),
        seconds=(span["last"] - span["first"]).total_seconds() if attempts else 0.0,
        retries=sum(len(workers) - 1 for workers in attempts if workers),
        workers=len({worker for workers in attempts for worker in workers}),
        periodic=finished.exclude(periodic="").count(),
    )


def failure_since(start: datetime.datetime) -> str | None:
    """Which task failed first and the last line of its traceback; None if none did."""
    failed = tasks_since(start).filter(status=TaskResultStatus.FAILED).order_by("finished_at")
    first = failed.first()
    if first is None:
        return None
    told = first.errors[-1]["traceback"].strip().splitlines() if first.errors else []
    return f"{first.task_path} {first.args} failed: {told[-1] if told else 'no traceback'}"


def modules_since(start: datetime.datetime) -> tuple[int, str]:
    """How many modules are indexed, and the name of the last one."""
    indexed = Module.objects.filter(indexed_at__gte=start)
    last = indexed.order_by("-indexed_at").first()
    return indexed.count(), module_name(last.path) if last else ""


def best_throughput_since(start: datetime.datetime) -> float | None:
    """The best that the periodic task measured, in modules per second; None: it has not run."""
    measured = Throughput.objects.filter(measured_at__gte=start)
    best: float | None = measured.aggregate(best=Max("per_second"))["best"]
    return best
