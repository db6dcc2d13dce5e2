"""The tasks. What they have in common: each may run a second time and do no harm.

A worker can be killed after it did its work and before it could say so; then its task runs again.
So tasks write what *is* (`update_or_create`), and do not add to what was.
"""

import ast
import datetime
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from django.db import OperationalError
from django.db.models import Sum
from django.tasks import TaskContext
from django.utils import timezone

# On Django 6.1 `from django.tasks import task` takes these options as well.
from dbtasks import Discard, Retry, task

from .models import Module, Throughput
from .stdlib import module_name

LONGEST = 5
WINDOW = datetime.timedelta(seconds=2)
MAX_LOOKS = 300  # of one second each


@task(timeout="30s", max_attempts=3, backoff="1s", retry_for=OperationalError)
def index_module(path: str) -> dict[str, Any]:
    """Counts what is in one module. Only a database that is busy is worth a second attempt.

    Raises OSError or SyntaxError for a file that cannot be read: the task is FAILED then, and its
    result keeps the traceback.
    """
    source = Path(path).read_bytes()
    kinds = Counter(type(node) for node in ast.walk(ast.parse(source, filename=path)))
    found = {
        "functions": kinds[ast.FunctionDef] + kinds[ast.AsyncFunctionDef],
        "classes": kinds[ast.ClassDef],
        "lines": len(source.splitlines()),
        "sha256": hashlib.sha256(source).hexdigest(),
    }
    Module.objects.update_or_create(path=path, defaults={**found, "indexed_at": timezone.now()})
    return found


@task(takes_context=True)
def report(context: TaskContext, modules: int, since: str) -> dict[str, Any]:
    """Adds up the index, once `modules` of them were indexed after `since`.

    It is enqueued along with the modules, so at first it finds too few. `Retry` puts it back for a
    second; no worker waits in the meantime. Arguments are JSON, so `since` is ISO 8601 text.
    """
    indexed = Module.objects.filter(indexed_at__gte=datetime.datetime.fromisoformat(since))
    there = indexed.count()
    if there < modules and context.attempt >= MAX_LOOKS:
        raise Discard(f"only {there} of {modules} modules were indexed")
    if there < modules:
        raise Retry(f"{there} of {modules} modules so far", after="1s")
    totals = indexed.aggregate(Sum("lines"), Sum("functions"), Sum("classes"))
    longest = indexed.order_by("-lines", "path")[:LONGEST]
    return {
        "modules": there,
        "lines": totals["lines__sum"] or 0,
        "functions": totals["functions__sum"] or 0,
        "classes": totals["classes__sum"] or 0,
        "longest": [
            {
                "module": module_name(module.path),
                "lines": module.lines,
                "functions": module.functions,
                "classes": module.classes,
            }
            for module in longest
        ],
    }


@task
def measure_throughput() -> float:
    """How many modules per second were indexed in the last two; see TASKS in the settings."""
    now = timezone.now()
    modules = Module.objects.filter(indexed_at__gt=now - WINDOW, indexed_at__lte=now).count()
    per_second = modules / WINDOW.total_seconds()
    Throughput.objects.create(measured_at=now, modules=modules, per_second=per_second)
    return per_second
