"""What the runners have done lately and ever: for the dashboard, the command line and metrics.

The numbers are those of `tally`, a few seconds old. They count attempts: a task that fails twice
before it succeeds is two `retried` and one `succeeded`.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from typing import Any

from django.db.models import FloatField, Sum
from django.db.models.functions import Cast

from .engines.portable import whole
from .fields import LATEST, as_utc
from .models import Statistic
from .tally import BOUNDS, BUCKETS, COLUMNS, MILLION

SUMMED = "summed_"
TOTALS = 0  # the minute of the rows that hold the totals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
    """Attempts and how long they took. `buckets`: so many took up to each of `BOUNDS`, or longer.

    `rescued`: attempts whose worker or node died. `waited`: first attempts, which waited for a
    worker `wait_seconds` in all.
    """

    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    rescued: int = 0
    waited: int = 0
    wait_seconds: float = 0.0
    run_seconds: float = 0.0
    buckets: tuple[int, ...] = (0,) * len(BUCKETS)

    @property
    def finished(self) -> int:
        """Tasks that came to their end."""
        return self.succeeded + self.failed

    @property
    def attempts(self) -> int:
        """Attempts with a known run time."""
        return sum(self.buckets)

    @property
    def mean_wait(self) -> float | None:
        """Seconds that a task waited for a worker, in the mean; None if none did."""
        return self.wait_seconds / self.waited if self.waited else None

    def p(self, quantile: float) -> float | None:
        """The run time in seconds that the share `quantile` (0 to 1) of attempts did not exceed.

        Interpolated within its bucket; at most 300, the last bound. None if there was no attempt.
        Raises ValueError for a quantile that is none.
        """
        return quantile_of(self.buckets, quantile)

    def counts(self) -> dict[str, Any]:
        """The fields that can be added up."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Counted)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Minute(Counted):
    """What came to its end in the minute from `at` (aware, UTC), in one queue."""

    at: datetime.datetime
    queue: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Total(Counted):
    """One queue's and task path's numbers; "other" stands for those that are too many."""

    queue: str
    task_path: str


def minutes(backend: str = "default", since: datetime.datetime | None = None) -> list[Minute]:
    """The minutes from that of `since` on (default: an hour ago; a naive one is local time).

    Per minute and queue, oldest first. Minutes without anything are not there; those before
    yesterday are deleted.
    """
    rows = _rows(backend).filter(minute__gte=_minute(since))
    return [
        Minute(
            at=datetime.datetime.fromtimestamp(row["minute"] * 60, datetime.UTC),
            queue=row["queue"],
            **_counts(row),
        )
        for row in _summed(rows.filter(minute__lte=_minute(LATEST)), "minute", "queue")
    ]


def totals(backend: str = "default") -> list[Total]:
    """All that was ever counted, per queue and task path; these numbers never decrease."""
    rows = _rows(backend).filter(minute=TOTALS).order_by("queue", "task_path")
    return [_total(row) for row in rows.values("queue", "task_path", *COLUMNS)]


def by_path(backend: str = "default", since: datetime.datetime | None = None) -> list[Total]:
    """As `totals`, of the minutes from that of `since` on (default: an hour ago)."""
    rows = _rows(backend).filter(minute__gte=_minute(since))
    return [_total(row) for row in _summed(rows, "queue", "task_path")]


def combined(counted: Iterable[Counted]) -> Counted:
    """All of them as one: the minutes of an hour, or the paths of a queue."""
    parts = [one.counts() for one in counted]
    if not parts:
        return Counted()
    buckets = tuple(map(sum, zip(*(part.pop("buckets") for part in parts), strict=True)))
    return Counted(buckets=buckets, **{key: sum(part[key] for part in parts) for key in parts[0]})


def quantile_of(buckets: Sequence[int], quantile: float) -> float | None:
    """See `Counted.p`."""
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be from 0 to 1, not {quantile!r}")
    rank = quantile * sum(buckets)
    if not any(buckets):
        return None
    below = 0
    for count, lower, upper in zip(buckets, (0.0, *BOUNDS), BOUNDS, strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return BOUNDS[-1]


def _rows(backend: str) -> Any:
    from .runner import database_backend

    alias = database_backend(backend).parsed.database
    return Statistic.objects.using(alias).filter(backend=backend)


def _summed(rows: Any, *keys: str) -> Any:
    # As floats, whose sum has no end: one giant number would fail it for all.
    summed = {SUMMED + name: Sum(Cast(name, FloatField())) for name in COLUMNS}
    found = rows.order_by(*keys).values(*keys).annotate(**summed)
    return [{key.removeprefix(SUMMED): value for key, value in row.items()} for row in found]


def _minute(since: datetime.datetime | None) -> int:
    if since is None:
        since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return max(TOTALS + 1, int(as_utc(since).timestamp() // 60))


def _total(row: dict[str, Any]) -> Total:
    return Total(queue=row["queue"], task_path=row["task_path"], **_counts(row))


def _counts(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: whole(row[name]) for name in ("succeeded", "failed", "retried", "rescued")},
        "waited": whole(row["waited"]),
        "wait_seconds": whole(row["wait_us"]) / MILLION,
        "run_seconds": whole(row["run_us"]) / MILLION,
        "buckets": tuple(whole(row[name]) for name in BUCKETS),
    }
