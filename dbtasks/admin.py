"""What operators see in Django's admin: the tables, to read and not to edit."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .models import Node, Occurrence, PeriodicTask, ScheduledTask, Worker


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows belong to the engines: edited behind their back, a claim's fence would not hold."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(ReadOnlyAdmin):
    list_display = ("task_path", "status", "queue", "priority", "enqueued_at", "finished_at")
    list_filter = ("status", "backend")
    search_fields = ("=id",)
    ordering = ("-id",)
    exclude = ("ready_queue", "precedence", "errors", "args", "kwargs", "return_value")
    readonly_fields = ("arguments", "result", "attempts")

    @admin.display(description="Arguments")
    def arguments(self, row: ScheduledTask) -> SafeString:
        return preformatted({"args": row.args, "kwargs": row.kwargs})

    @admin.display(description="Return value")
    def result(self, row: ScheduledTask) -> SafeString:
        return preformatted(row.return_value)

    @admin.display(description="Failed attempts")
    def attempts(self, row: ScheduledTask) -> SafeString | str:
        errors = row.errors if isinstance(row.errors, list) else [row.errors]
        tracebacks = [
            (error.get("traceback", "") if isinstance(error, dict) else str(error),)
            for error in errors
        ]
        return format_html_join("", "<pre>{}</pre>", tracebacks) or "-"


@admin.register(Node)
class NodeAdmin(ReadOnlyAdmin):
    list_display = ("name", "host", "pid", "backend", "state", "started_at", "last_seen")


@admin.register(Worker)
class WorkerAdmin(ReadOnlyAdmin):
    list_display = ("id", "node", "state", "task_path", "task_seconds", "done", "failed", "memory")
    list_select_related = ("node",)


@admin.register(PeriodicTask)
class PeriodicTaskAdmin(ReadOnlyAdmin):
    list_display = ("name", "spec", "backend", "since", "last_due")


@admin.register(Occurrence)
class OccurrenceAdmin(ReadOnlyAdmin):
    list_display = ("name", "due_at", "enqueued_at", "enqueued_by", "task_id")
    ordering = ("-id",)


def preformatted(value: Any) -> SafeString:
    """JSON for people; what it says is escaped."""
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False))
