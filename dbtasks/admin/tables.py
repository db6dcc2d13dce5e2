"""The small tables, to read: nodes, workers, periodic entries and their occurrences."""

from __future__ import annotations

from django.contrib import admin

from ..models import Node, Occurrence, PeriodicTask, Worker
from .readonly import ReadOnlyAdmin


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = ("name", "host", "pid", "backend", "state", "started_at", "last_seen")


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    list_display = ("id", "node", "state", "task_path", "task_seconds", "done", "failed", "memory")
    list_select_related = ("node",)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ReadOnlyAdmin):
    list_display = ("name", "spec", "backend", "origin", "next_due", "last_due")


@admin.register(Occurrence)
class OccurrenceAdmin(ReadOnlyAdmin):
    list_display = ("name", "due_at", "enqueued_at", "enqueued_by", "task_id")
    ordering = ("-id",)
    sortable_by = ()
