"""The tables. What the claim reads, and why it is shaped so, stands at the columns."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.tasks import TaskResultStatus

from .fields import ExactCharField, JSONText, OnlyPartialIndex, PartialIndex, UTCDateTimeField
from .ids import uuid7

# Explicit, so that a project without the app gets to the check that says so (dbtasks.E006).
APP_LABEL = "dbtasks"
QUEUE_MAX_LENGTH = 128
BACKEND_MAX_LENGTH = 64
PATH_MAX_LENGTH = 500
NAME_MAX_LENGTH = 255
SCHEDULE_MAX_LENGTH = 500


class ScheduledTask(models.Model):
    """One call of a task, from enqueue to retention.

    Exactly one of these holds for an unfinished row: it is claimable (`ready_queue` is set), it is
    deferred (`due_at` is set), or it is claimed (`claimed_by` is set).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    task_path = models.CharField(max_length=PATH_MAX_LENGTH)
    args = JSONText(default=list)
    kwargs = JSONText(default=dict)
    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    queue = ExactCharField(max_length=QUEUE_MAX_LENGTH)
    priority = models.SmallIntegerField(default=0)
    # The highest priority has the lowest value: MariaDB 10.6 has no descending indexes.
    precedence = models.GeneratedField(
        expression=models.F("priority") * -1,
        output_field=models.SmallIntegerField(),
        db_persist=True,
    )
    status = models.CharField(
        max_length=10, choices=TaskResultStatus.choices, default=TaskResultStatus.READY
    )
    run_after = UTCDateTimeField(null=True, blank=True)
    enqueued_at = UTCDateTimeField()
    started_at = UTCDateTimeField(null=True, blank=True)
    last_attempted_at = UTCDateTimeField(null=True, blank=True)
    finished_at = UTCDateTimeField(null=True, blank=True)
    worker_ids = JSONText(default=list, help_text="Workers of the attempts that are over.")
    errors = JSONText(default=list, help_text="One entry per failed attempt.")
    return_value = JSONText(null=True, blank=True)
    periodic = models.CharField(max_length=NAME_MAX_LENGTH, blank=True, default="")
    policy = models.TextField(
        default="{}", help_text="Retries, limits and retention as they were at enqueue (JSON)."
    )

    # NULL unless the row can be claimed now, so that the claim's index holds nothing else.
    ready_queue = ExactCharField(max_length=QUEUE_MAX_LENGTH, null=True, blank=True)
    # NULL unless the row waits for its time.
    due_at = UTCDateTimeField(null=True, blank=True)
    # NULL unless a worker has the row: its node and itself. With `attempt` they fence its writes.
    claim_node = ExactCharField(max_length=32, null=True, blank=True)
    claimed_by = ExactCharField(max_length=160, null=True, blank=True)
    attempt = models.PositiveIntegerField(default=0, help_text="Claims so far.")
    failures = models.PositiveIntegerField(default=0, help_text="Attempts that raised.")
    crashes = models.PositiveIntegerField(default=0, help_text="Attempts whose worker died.")
    # NULL means: keep forever.
    delete_after = UTCDateTimeField(null=True, blank=True)

    class Meta:
        app_label = APP_LABEL
        permissions = [
            ("retry_scheduledtask", "Can retry scheduled tasks"),
            ("run_scheduledtask", "Can run deferred scheduled tasks now"),
            ("cancel_scheduledtask", "Can cancel scheduled tasks"),
            ("prioritize_scheduledtask", "Can change the priority of scheduled tasks"),
            ("move_scheduledtask", "Can move scheduled tasks to another queue"),
            ("pause_scheduledtask", "Can pause and resume queues and tasks"),
        ]
        indexes = [
            PartialIndex(
                fields=["backend", "ready_queue", "precedence", "id"],
                name="dbtasks_claim",
                condition=Q(ready_queue__isnull=False),
            ),
            PartialIndex(
                fields=["backend", "due_at"], name="dbtasks_due", condition=Q(due_at__isnull=False)
            ),
            PartialIndex(
                fields=["claim_node", "claimed_by"],
                name="dbtasks_claimed",
                condition=Q(claim_node__isnull=False),
            ),
            PartialIndex(
                fields=["backend", "delete_after"],
                name="dbtasks_expired",
                condition=Q(delete_after__isnull=False),
            ),
            # For people who look for failures. A status changes together with indexed columns, so
            # that to name it here costs a task that succeeds nothing (no HOT update is lost).
            OnlyPartialIndex(
                fields=["backend", "id"], name="dbtasks_failed", condition=Q(status="FAILED")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.task_path} {self.id}"


class Node(models.Model):
    """One running supervisor or Runner. Its lease is `expires_at`, in the database's clock."""

    id = ExactCharField(primary_key=True, max_length=32)
    name = models.CharField(max_length=64)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    kind = models.CharField(max_length=16)
    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    state = models.CharField(max_length=16, default="running")
    # The periodic entries of its settings; empty where it enqueues none.
    deployment = ExactCharField(max_length=64, default="", db_default="", blank=True)
    started_at = UTCDateTimeField()
    last_seen = UTCDateTimeField()
    expires_at = UTCDateTimeField()

    class Meta:
        app_label = APP_LABEL

    def __str__(self) -> str:
        return f"{self.name} ({self.host}, pid {self.pid})"


class Worker(models.Model):
    """A worker as its node last reported it: for people and health checks, not for claims."""

    id = ExactCharField(primary_key=True, max_length=160)
    node = models.ForeignKey(Node, on_delete=models.CASCADE, related_name="workers")
    kind = models.CharField(max_length=16)
    pid = models.PositiveIntegerField()
    state = models.CharField(max_length=16)
    task_id = models.CharField(max_length=36, blank=True)
    task_path = models.CharField(max_length=PATH_MAX_LENGTH, blank=True)
    task_seconds = models.FloatField(null=True, help_text="How long the current task has run.")
    done = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    restarts = models.PositiveIntegerField(default=0, help_text="Of this worker's slot.")
    memory = models.PositiveBigIntegerField(null=True, help_text="Unique memory in bytes.")
    cpu_seconds = models.FloatField(null=True, help_text="CPU time of the process so far.")
    up_seconds = models.FloatField(null=True, help_text="How long the worker has been there.")
    last_seen = UTCDateTimeField()

    class Meta:
        app_label = APP_LABEL

    def __str__(self) -> str:
        return self.id


def _count() -> models.BigIntegerField:
    return models.BigIntegerField(default=0, db_default=0)


class Statistic(models.Model):
    """How many attempts of a task ended in one minute, and how long they took; see statistics.py.

    Minute 0 holds the totals, which are added to at the same time and kept when minutes are
    deleted.
    """

    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    minute = models.PositiveIntegerField(help_text="Since 1970, by the database's clock.")
    queue = ExactCharField(max_length=QUEUE_MAX_LENGTH)
    task_path = ExactCharField(max_length=PATH_MAX_LENGTH)
    succeeded = _count()
    failed = _count()
    retried = _count()
    rescued = _count()
    waited = _count()  # first attempts, and how many microseconds they waited for a worker
    wait_us = _count()
    run_us = _count()
    # So many attempts took longer than the bucket before says, and at most this:
    bucket_00 = _count()  # up to 1 ms
    bucket_01 = _count()  # up to 5 ms
    bucket_02 = _count()  # up to 10 ms
    bucket_03 = _count()  # up to 25 ms
    bucket_04 = _count()  # up to 50 ms
    bucket_05 = _count()  # up to 100 ms
    bucket_06 = _count()  # up to 250 ms
    bucket_07 = _count()  # up to 500 ms
    bucket_08 = _count()  # up to 1 s
    bucket_09 = _count()  # up to 2.5 s
    bucket_10 = _count()  # up to 5 s
    bucket_11 = _count()  # up to 10 s
    bucket_12 = _count()  # up to 30 s
    bucket_13 = _count()  # up to 1 min
    bucket_14 = _count()  # up to 5 min
    bucket_15 = _count()  # longer

    class Meta:
        app_label = APP_LABEL
        constraints = [
            models.UniqueConstraint(
                fields=["backend", "minute", "queue", "task_path"], name="dbtasks_statistic_place"
            )
        ]

    def __str__(self) -> str:
        return f"{self.task_path} in minute {self.minute}"


class PeriodicTask(models.Model):
    """One periodic entry, from the settings or made at run time.

    `next_due` is the first due time that is not dealt with: what a tick reads, and all that it
    reads. Times before `since` never fire, which keeps a first deploy, a new entry or an edited
    schedule from running for the past.
    """

    class Origin(models.TextChoices):
        SETTINGS = "settings"
        DATABASE = "database"

    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    name = ExactCharField(max_length=NAME_MAX_LENGTH)
    task_path = models.CharField(max_length=PATH_MAX_LENGTH)
    spec = models.TextField(help_text="The schedule in its canonical form.")
    since = UTCDateTimeField()
    last_due = UTCDateTimeField(null=True, blank=True)
    # When the deployment that wrote this row was first seen.
    deployed_at = UTCDateTimeField()
    origin = models.CharField(
        max_length=8, choices=Origin.choices, default=Origin.SETTINGS, db_default=Origin.SETTINGS
    )
    # What the entry says, as far as text can: what it cannot (a Schedule of the project's own, a
    # callable) is empty or NULL, and only nodes whose settings have the entry can enqueue it.
    schedule = models.CharField(
        max_length=SCHEDULE_MAX_LENGTH, default="", db_default="", blank=True
    )
    timezone = models.CharField(max_length=64, default="", db_default="", blank=True)
    catch_up = models.CharField(max_length=8, default="latest", db_default="latest")
    catch_up_window = models.FloatField(default=86400.0, db_default=86400.0, help_text="Seconds.")
    overlap = models.CharField(max_length=8, default="allow", db_default="allow")
    args = JSONText(null=True, blank=True)
    kwargs = JSONText(null=True, blank=True)
    retain = models.FloatField(null=True, blank=True, help_text="Seconds.")
    queue = ExactCharField(max_length=QUEUE_MAX_LENGTH, null=True, blank=True)
    priority = models.SmallIntegerField(null=True, blank=True)
    # Of all the above: whether two nodes mean the same by this name.
    fingerprint = models.CharField(max_length=64, default="", db_default="", blank=True)
    paused = models.BooleanField(default=False, db_default=False)
    # An entry that the settings do not have any more; kept for its history.
    retired = models.BooleanField(default=False, db_default=False)
    # NULL while nothing is to be enqueued.
    next_due = UTCDateTimeField(null=True, blank=True)
    last_task = models.UUIDField(null=True, blank=True)
    last_node = models.CharField(max_length=64, default="", db_default="", blank=True)
    # Counts the changes, so that a tick notices one that comes while it prepares.
    edition = models.IntegerField(default=0, db_default=0)

    class Meta:
        app_label = APP_LABEL
        permissions = [
            ("run_periodictask", "Can run periodic tasks now"),
            ("pause_periodictask", "Can pause and resume periodic tasks"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["backend", "name"], name="dbtasks_periodic_name")
        ]
        indexes = [
            PartialIndex(
                fields=["backend", "next_due"],
                name="dbtasks_next_due",
                condition=Q(next_due__isnull=False),
            )
        ]

    def __str__(self) -> str:
        return str(self.name)


class PeriodicDeployment(models.Model):
    """One set of periodic entries that some node's settings had, and since when it is known."""

    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    fingerprint = ExactCharField(max_length=64)
    first_seen = UTCDateTimeField()
    # Its entries are those in PeriodicTask.
    holds = models.BooleanField(default=False)

    class Meta:
        app_label = APP_LABEL
        constraints = [
            models.UniqueConstraint(fields=["backend", "fingerprint"], name="dbtasks_deployed_once")
        ]

    def __str__(self) -> str:
        return f"{self.backend} {self.fingerprint[:12]}"


class Occurrence(models.Model):
    """One due time of one periodic entry, inserted in the transaction that enqueues its task.

    With `skipped` nothing was enqueued: that is why, and `task_id` is the task that was in the way.
    """

    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    name = ExactCharField(max_length=NAME_MAX_LENGTH)
    due_at = UTCDateTimeField()
    task_id = models.UUIDField()
    enqueued_at = UTCDateTimeField()
    enqueued_by = models.CharField(max_length=64, help_text="The node's name.")
    skipped = models.CharField(max_length=200, default="", db_default="", blank=True)

    class Meta:
        app_label = APP_LABEL
        constraints = [
            models.UniqueConstraint(
                fields=["backend", "name", "due_at"], name="dbtasks_occurrence_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.name} at {self.due_at}"


class Pause(models.Model):
    """A queue or a task whose rows nobody claims. `id` names the place where its rows wait."""

    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    kind = ExactCharField(max_length=8, help_text='"queue" or "task".')
    name = ExactCharField(max_length=PATH_MAX_LENGTH)
    paused_at = UTCDateTimeField()
    paused_by = models.CharField(max_length=NAME_MAX_LENGTH, blank=True, default="")
    reason = models.TextField(blank=True, default="")

    class Meta:
        app_label = APP_LABEL
        constraints = [
            models.UniqueConstraint(fields=["backend", "kind", "name"], name="dbtasks_pause_once")
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Cancellation(models.Model):
    """The wish that a running task end, until its node has carried it out."""

    task_id = models.UUIDField(primary_key=True)
    backend = ExactCharField(max_length=BACKEND_MAX_LENGTH)
    requested_at = UTCDateTimeField()
    grace = models.FloatField(help_text="Seconds between TaskCancelled and the worker's end.")

    class Meta:
        app_label = APP_LABEL

    def __str__(self) -> str:
        return str(self.task_id)
