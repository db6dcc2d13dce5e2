"""What can be done to tasks here: one entry per operation, each with a permission of its own."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django import forms
from django.http import HttpRequest
from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY

from .. import operations as queue
from ..backend import DatabaseBackend
from ..models import QUEUE_MAX_LENGTH

Values = Mapping[str, Any]


class NothingToSay(forms.Form):
    """Of an operation that needs nothing but the tasks."""

    def __init__(self, *args: Any, backend: DatabaseBackend, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.backend = backend


class Grace(NothingToSay):
    grace = forms.FloatField(
        label="Grace in seconds",
        min_value=0,
        max_value=3600,
        initial=queue.GRACE,
        help_text="For the clean-up of a running task; then its worker is killed.",
    )


class Priority(NothingToSay):
    priority = forms.IntegerField(
        label="Priority",
        min_value=TASK_MIN_PRIORITY,
        max_value=TASK_MAX_PRIORITY,
        initial=0,
        help_text=f"From {TASK_MIN_PRIORITY} to {TASK_MAX_PRIORITY}; the highest runs first.",
    )


class Queue(NothingToSay):
    queue = forms.CharField(label="Queue", max_length=QUEUE_MAX_LENGTH)

    def __init__(self, *args: Any, backend: DatabaseBackend, **kwargs: Any) -> None:
        super().__init__(*args, backend=backend, **kwargs)
        if names := sorted(backend.queues):
            self.fields["queue"] = forms.ChoiceField(
                label="Queue", choices=[(name, name) for name in names]
            )

    def clean_queue(self) -> str:
        name = str(self.cleaned_data["queue"])
        try:
            queue.check_queue(self.backend, name)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        return name


@dataclasses.dataclass(frozen=True)
class Operation:
    """`label` is on the button, `question` explains it before, `past` says it afterwards.

    `states`: of tasks for which it can do something; the engine decides in the end.
    """

    name: str
    label: str
    permission: str
    question: str
    past: str
    states: tuple[str, ...]
    run: Callable[[Sequence[uuid.UUID], str, Values], queue.Outcome]
    form: type[NothingToSay] = NothingToSay
    dangerous: bool = False

    def allowed(self, request: HttpRequest) -> bool:
        user: Any = request.user
        return bool(user.has_perm(f"dbtasks.{self.permission}"))


WAITING = ("ready", "deferred", "paused")
OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            "retry",
            "Retry",
            "retry_scheduledtask",
            "They run again, with as many attempts as a new task; their history stays.",
            "retried",
            ("failed", "successful"),
            lambda ids, backend, values: queue.retry(ids, backend=backend),
        ),
        Operation(
            "run",
            "Run now",
            "run_scheduledtask",
            "Deferred tasks become ready at once, whatever time they were to wait for.",
            "made ready",
            ("deferred",),
            lambda ids, backend, values: queue.run_now(ids, backend=backend),
        ),
        Operation(
            "cancel",
            "Cancel",
            "cancel_scheduledtask",
            "Tasks that wait never run. Running ones are asked to end, and ended by force after "
            "the grace. They are failed then, with TaskCancelled.",
            "cancelled",
            (*WAITING, "running"),
            lambda ids, backend, values: queue.cancel(ids, values["grace"], backend=backend),
            Grace,
            dangerous=True,
        ),
        Operation(
            "priority",
            "Change priority",
            "prioritize_scheduledtask",
            "Tasks that wait get another priority.",
            "given another priority",
            WAITING,
            lambda ids, backend, values: queue.set_priority(
                ids, values["priority"], backend=backend
            ),
            Priority,
        ),
        Operation(
            "queue",
            "Change queue",
            "move_scheduledtask",
            "Tasks that wait are moved into another queue.",
            "moved",
            WAITING,
            lambda ids, backend, values: queue.set_queue(ids, values["queue"], backend=backend),
            Queue,
        ),
        Operation(
            "delete",
            "Delete",
            "delete_scheduledtask",
            "The rows are deleted, with their arguments, results and history. Tasks that wait "
            "never run.",
            "deleted",
            (*WAITING, "failed", "successful"),
            lambda ids, backend, values: queue.delete(ids, backend=backend),
            dangerous=True,
        ),
    )
}


def allowed_operations(request: HttpRequest, state: str = "") -> list[Operation]:
    """Those that this user may do, to tasks in that state."""
    return [
        operation
        for operation in OPERATIONS.values()
        if (not state or state in operation.states) and operation.allowed(request)
    ]
