"""Doing something to tasks: a page that asks, then the engine, then a page that says what happened.

Whoever clicks twice, or is overtaken by a worker, is told so: nothing is decided here by what a
page showed a minute ago.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.response import TemplateResponse

from ..backend import DatabaseBackend
from ..ids import parse_id
from ..models import ScheduledTask
from ..operations import Outcome
from .choice import chosen, looks
from .lines import in_order, short_path, state_of
from .operations import OPERATIONS, Operation
from .pages import Pages
from .query import asked_for, look_of, word_of
from .words import plural

if TYPE_CHECKING:
    from .tasks import ScheduledTaskAdmin

MOST = 1000  # tasks at a time
NAMED = 20  # of them, on the page that asks
REASONS_NAMED = 3
BRIEF = ("id", "task_path", "status", "due_at", "queue", "backend")


def operate(admin: ScheduledTaskAdmin, request: HttpRequest, name: str) -> HttpResponse:
    """Asks (GET, or POST from the list), and does it (POST with `confirmed`)."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise Http404("There is no such operation.")
    if not (admin.has_view_permission(request) and operation.allowed(request)):
        raise PermissionDenied
    backend = chosen(request)
    ids = selected(request, backend)
    rows = brief_rows(backend, ids)
    confirmed = request.method == "POST" and "confirmed" in request.POST
    form = operation.form(request.POST if confirmed else None, backend=backend)
    pages = Pages(admin.admin_site.name, backend)
    if not ids:
        messages.warning(request, "Nothing was selected, so nothing was done.")
        return HttpResponseRedirect(back(request, pages))
    if confirmed and form.is_valid():
        outcome = operation.run(ids, backend.alias, form.cleaned_data)
        log(request, operation, outcome, rows, form.cleaned_data)
        tell(request, operation, outcome, rows)
        stays = len(ids) == 1 and "query" not in request.POST and name != "delete"
        return HttpResponseRedirect(pages.task(ids[0]) if stays else back(request, pages))
    states = Counter(state_of(row) for row in rows)
    context = {
        **admin.admin_site.each_context(request),
        "title": f"{operation.label}: {plural(len(ids), 'task')}",
        "opts": admin.opts,
        "operation": operation,
        "pages": pages,
        "form": form,
        "ids": ",".join(map(str, ids)),
        "query": query_of(request),
        "is_list": "query" in request.POST or "query" in request.GET,
        "states": [(word_of(state), count) for state, count in states.most_common()],
        "gone": len(ids) - len(rows),
        "most_reached": len(ids) == MOST,
        "fitting": sum(states[state] for state in operation.states),
        "total": len(ids),
        "rows": [(row, short_path(row.task_path), word_of(state_of(row))) for row in rows[:NAMED]],
        "unnamed": max(0, len(rows) - NAMED),
        "action": pages.operate(name),
        "cancel": back(request, pages) if len(ids) > 1 else pages.task(ids[0]),
    }
    return TemplateResponse(request, "admin/dbtasks/operate.html", context)


def selected(request: HttpRequest, backend: DatabaseBackend) -> list[uuid.UUID]:
    """The ids that were ticked, or all that the list's filter finds. Raises BadRequest."""
    data = request.POST if request.method == "POST" else request.GET
    if data.get("all"):
        look = look_of(QueryDict(query_of(request)).dict())  # from the list's first page on
        return looks(backend).find(look, MOST).ids
    texts = [*data.getlist("id"), *filter(None, data.get("ids", "").split(","))]
    if len(texts) > MOST:
        raise BadRequest(f"At most {MOST} tasks at a time.")
    ids = [id for text in texts if (id := parse_id(text))]
    if len(ids) < len(texts):
        raise BadRequest("An id of a task is a UUID.")
    return list(dict.fromkeys(ids))


def brief_rows(backend: DatabaseBackend, ids: list[uuid.UUID]) -> list[ScheduledTask]:
    rows = ScheduledTask.objects.using(backend.parsed.database).filter(backend=backend.alias)
    return in_order(rows.filter(pk__in=ids).only(*BRIEF), ids)


def query_of(request: HttpRequest) -> str:
    """The filters of the list from which one came, and nothing else."""
    data = request.POST if request.method == "POST" else request.GET
    asked = asked_for(QueryDict(data.get("query", "")))
    kept = QueryDict(mutable=True)
    kept.update({name: value for name, value in asked.items() if value})
    return kept.urlencode()


def back(request: HttpRequest, pages: Pages) -> str:
    return pages.tasks(**QueryDict(query_of(request)).dict())


def tell(
    request: HttpRequest, operation: Operation, outcome: Outcome, rows: Sequence[ScheduledTask]
) -> None:
    """What happened, in words: what was done, and of the rest why not."""
    names = {row.id: f"{short_path(row.task_path)} {str(row.id)[:8]}" for row in rows}
    asked = len(outcome.asked)
    if done := len(outcome.done) - asked:
        messages.success(request, f"{plural(done, 'task')} {operation.past}.")
    if asked:
        whose = plural(asked, "running task")
        messages.success(request, f"{whose} asked to end; look again in a few seconds.")
    reasons: dict[str, list[str]] = {}
    for id, reason in outcome.refused.items():
        reasons.setdefault(reason, []).append(names.get(id, str(id)[:8]))
    for reason, refused in reasons.items():
        some = ", ".join(refused[:REASONS_NAMED])
        more = f" and {len(refused) - REASONS_NAMED} more" if len(refused) > REASONS_NAMED else ""
        messages.warning(
            request, f"{plural(len(refused), 'task')} not {operation.past}, {reason}: {some}{more}."
        )


def log(
    request: HttpRequest,
    operation: Operation,
    outcome: Outcome,
    rows: Iterable[ScheduledTask],
    values: dict[str, Any],
) -> None:
    """One entry in Django's admin log per task that something was done to."""
    told = ", ".join(f"{key} {value}" for key, value in values.items())
    by_id = {row.id: row for row in rows}
    log_entries(
        request,
        [(str(id), str(by_id.get(id, id))) for id in outcome.done],
        f"{operation.label}{f' ({told})' if told else ''}.",
        DELETION if operation.name == "delete" else CHANGE,
    )


def log_entries(
    request: HttpRequest, objects: Iterable[tuple[str | None, str]], message: str, flag: int
) -> None:
    """`objects`: (id, name) each; without an id it is about a queue or a task path."""
    kind = ContentType.objects.get_for_model(ScheduledTask)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=request.user.pk,
            content_type_id=kind.pk,
            object_id=id,
            object_repr=name[:200],
            action_flag=flag,
            change_message=message,
        )
        for id, name in objects
    )
