"""OpenMetrics for Prometheus, made from the database when somebody asks. Needs the extra `metrics`.

The numbers are the whole cluster's, whichever node or view is asked, and the counters are those of
`statistics.totals`: they go on over restarts and never decrease. So a query takes the `max` of
several targets, not their sum. Labels are bounded: so many queues and paths are told apart (see
`tally.MOST_PLACES`), so many names of nodes and periodic entries.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db.models import OuterRef, Subquery

from .fields import as_utc
from .models import Occurrence, PeriodicTask, Worker
from .runner import database_backend
from .statistics import Total, totals
from .tally import BOUNDS

if TYPE_CHECKING:
    from .backend import DatabaseBackend

logger = logging.getLogger("dbtasks")

MOST_SERIES = 200  # of queues, nodes or periodic entries
MISSING = (
    'Metrics need prometheus-client. Install it with pip install "django-dbtasks[metrics]", '
    "or leave out {what}."
)


def is_available() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("prometheus_client") is not None


def require(what: str) -> None:
    """Raises ImproperlyConfigured that names the extra, if it is missing; `what` wants it."""
    if not is_available():
        raise ImproperlyConfigured(MISSING.format(what=what))


def exposition(aliases: Iterable[str], accept: str = "") -> tuple[bytes, str]:
    """The metrics of these backends and their content type, as the header `accept` wants it.

    Raises ImproperlyConfigured without the extra. A database that is away is a metric, no error.
    """
    require("the metrics")
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector([database_backend(alias) for alias in aliases]))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class Collector:
    """What prometheus_client asks when it is scraped."""

    def __init__(self, backends: list[DatabaseBackend]) -> None:
        self.backends = backends

    def describe(self) -> list[Any]:
        """Nothing: registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Any]:
        families = Families()
        for backend in self.backends:
            up = 1
            # All of a backend or nothing: a family that lacks half of its series would mislead.
            own = Families()
            try:
                collect_backend(own, backend)
                families.add(own)
            except DatabaseError as error:
                up = 0
                logger.warning("metrics: database %r: %s", backend.parsed.database, error)
                backend.engine.close()
            families.database_up.add_metric([backend.alias], up)
        yield from families.all()


class Families:
    """The metrics by name. They are the contract with dashboards and alerts: see deploy/."""

    def __init__(self) -> None:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            SummaryMetricFamily,
        )

        def gauge(name: str, text: str, *labels: str) -> Any:
            return GaugeMetricFamily(f"dbtasks_{name}", text, labels=["backend", *labels])

        place = ["backend", "queue", "task"]
        self.database_up = gauge("database_up", "Whether the queue's database answers.")
        self.tasks = CounterMetricFamily(
            "dbtasks_tasks",
            "Attempts by outcome: succeeded, failed (for good), retried, rescued.",
            labels=[*place, "outcome"],
        )
        self.duration = HistogramMetricFamily(
            "dbtasks_task_duration_seconds", "Run time of attempts.", labels=place
        )
        self.wait = SummaryMetricFamily(
            "dbtasks_task_wait_seconds", "From when a task could run until it did.", labels=place
        )
        self.depth = gauge("queue_depth", "Tasks that are ready.", "queue")
        self.oldest = gauge(
            "queue_oldest_age_seconds", "The longest wait among the next 50 tasks.", "queue"
        )
        self.deferred = gauge("deferred_tasks", "Tasks that wait for their time.")
        self.running = gauge("running_tasks", "Tasks that are claimed.")
        self.nodes = gauge("nodes", "Nodes with a valid lease.", "state")
        self.lease = gauge("node_lease_age_seconds", "Since the lease was renewed.", "node")
        self.lease_left = gauge("node_lease_left_seconds", "Until the lease ends.", "node")
        self.workers = gauge("workers", "Workers of a node.", "node", "state")
        self.restarts = gauge("worker_restarts", "Crashes in the node's slots.", "node")
        self.memory = gauge("workers_memory_bytes", "Unique memory of a node's workers.", "node")
        self.cpu = gauge("workers_cpu_seconds", "CPU time of the workers that live.", "node")
        self.lateness = gauge(
            "periodic_lateness_seconds", "Of the last occurrence that was enqueued.", "name"
        )

    def all(self) -> list[Any]:
        return list(vars(self).values())

    def add(self, other: Families) -> None:
        """The other's samples as well."""
        for name, family in vars(self).items():
            family.samples += getattr(other, name).samples


def collect_backend(families: Families, backend: DatabaseBackend) -> None:
    """Raises DatabaseError."""
    for total in totals(backend.alias):
        collect_total(families, backend.alias, total)
    collect_queues(families, backend)
    collect_nodes(families, backend)
    collect_periodic(families, backend)


def collect_total(families: Families, alias: str, total: Total) -> None:
    place = [alias, total.queue, total.task_path]
    for outcome in ("succeeded", "failed", "retried", "rescued"):
        families.tasks.add_metric([*place, outcome], getattr(total, outcome))
    below, buckets = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), total.buckets, strict=True):
        below += count
        buckets.append((bound, below))
    families.duration.add_metric(place, buckets, total.run_seconds)
    families.wait.add_metric(place, total.waited, total.wait_seconds)


def collect_queues(families: Families, backend: DatabaseBackend) -> None:
    engine = backend.engine
    now = engine.now()
    # What is ready now, and 0 for the queues that were in use before: an alert wants to see that.
    depths = dict.fromkeys(sorted({queue for queue, _ in engine.counted_places(MOST_SERIES)}), 0)
    ages = dict.fromkeys(depths, 0.0)
    for state in engine.queue_states()[:MOST_SERIES]:
        depths[state.name] = state.ready
        ages[state.name] = max(0.0, (now - state.since).total_seconds())
    for name, depth in depths.items():
        families.depth.add_metric([backend.alias, name], depth)
        families.oldest.add_metric([backend.alias, name], ages[name])
    counts = engine.counts()
    families.deferred.add_metric([backend.alias], counts.deferred)
    families.running.add_metric([backend.alias], counts.running)


def collect_nodes(families: Families, backend: DatabaseBackend) -> None:
    alive = [lease for lease in backend.engine.leases() if lease.left > 0]
    by_state: dict[str, int] = {"running": 0, "draining": 0}
    for lease in alive:
        by_state[lease.state] = by_state.get(lease.state, 0) + 1
    for state, count in by_state.items():
        families.nodes.add_metric([backend.alias, state], count)
    # Two nodes may have one name, and a label must not come twice: the sooner to end is told.
    named = {lease.name: lease for lease in sorted(alive, key=lambda one: -one.left)}
    for name, lease in sorted(named.items())[:MOST_SERIES]:
        labels = [backend.alias, name]
        families.lease.add_metric(labels, max(0.0, lease.age))
        families.lease_left.add_metric(labels, lease.left)
        workers = list(
            Worker.objects.using(backend.parsed.database)
            .filter(node_id__in=[other.id for other in alive if other.name == name])
            .values_list("state", "restarts", "memory", "cpu_seconds")
        )
        for state in sorted({worker[0] for worker in workers}):
            count = sum(worker[0] == state for worker in workers)
            families.workers.add_metric([*labels, state], count)
        families.restarts.add_metric(labels, sum(worker[1] for worker in workers))
        families.memory.add_metric(labels, sum(worker[2] or 0 for worker in workers))
        families.cpu.add_metric(labels, sum(worker[3] or 0.0 for worker in workers))


def collect_periodic(families: Families, backend: DatabaseBackend) -> None:
    """Late is an occurrence that was enqueued after it was due."""
    alias = backend.parsed.database
    enqueued = Occurrence.objects.filter(
        backend=backend.alias, name=OuterRef("name"), due_at=OuterRef("last_due")
    )
    entries = (
        PeriodicTask.objects.using(alias)
        .filter(backend=backend.alias, last_due__isnull=False)
        .order_by("name")
        .annotate(enqueued_at=Subquery(enqueued.values("enqueued_at")))
        .values_list("name", "last_due", "enqueued_at")[:MOST_SERIES]
    )
    for name, last_due, enqueued_at in entries:
        assert last_due is not None
        if enqueued_at is not None:
            late = max(0.0, (as_utc(enqueued_at) - as_utc(last_due)).total_seconds())
            families.lateness.add_metric([backend.alias, name], late)
