"""Pausing, resuming and running what the dashboard shows: queues, tasks and periodic entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin.models import CHANGE
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from .. import operations
from .choice import chosen
from .entries import ENTRIES
from .operate import log_entries
from .pages import Pages

if TYPE_CHECKING:
    from .tasks import ScheduledTaskAdmin

LONGEST_REASON = 500
# What cannot be, and what the task of an entry or its arguments raise: it is told, not hidden.
EXPECTED = (ValueError, TypeError, ImportError)
KINDS = ("queue", "task")
SWITCHES = {
    "pause": ("Pause", "No node starts its tasks until somebody resumes it. What runs goes on."),
    "resume": ("Resume", "Its tasks start again, in the order in which they waited."),
}
ENTRY_SWITCHES = {
    "pause": ("Pause", "pause_periodictask", "Nothing is enqueued for it until it is resumed."),
    "resume": ("Resume", "pause_periodictask", "It goes on from now; nothing is made up for."),
    "run": ("Run now", "run_periodictask", "Its task is enqueued once, now. Its schedule stays."),
}


def switch(admin: ScheduledTaskAdmin, request: HttpRequest, name: str) -> HttpResponse:
    """Pauses or resumes a queue or a task path, after asking."""
    if name not in SWITCHES:
        raise Http404("There is no such operation.")
    user: Any = request.user
    if not (admin.has_view_permission(request) and user.has_perm("dbtasks.pause_scheduledtask")):
        raise PermissionDenied
    backend = chosen(request)
    data = request.POST if request.method == "POST" else request.GET
    kind, target = next(((kind, data[kind]) for kind in KINDS if data.get(kind)), ("", ""))
    if not kind:
        raise Http404("Name a queue or a task.")
    label, question = SWITCHES[name]

    def act() -> None:
        reason = data.get("reason", "").strip()[:LONGEST_REASON]
        if name == "pause":
            by = user.get_username()
            changed = operations.pause(
                **{kind: target}, backend=backend.alias, by=by, reason=reason
            )
        else:
            changed = operations.resume(**{kind: target}, backend=backend.alias)
        if changed:
            told = f"{label}d{f': {reason}' if reason else ''}."
            log_entries(request, [(None, f"{kind} {target}")], told, CHANGE)
            messages.success(request, f"{kind.capitalize()} {target} is {label.lower()}d.")
        else:
            messages.info(request, f"{kind.capitalize()} {target} was {label.lower()}d already.")

    return ask_and_act(
        admin,
        request,
        act,
        Pages(admin.admin_site.name, backend),
        {
            "title": f"{label} {kind} {target}"[:200],
            "label": label,
            "question": question,
            "hidden": {kind: target},
            "asks_reason": name == "pause",
        },
    )


def entry(admin: ScheduledTaskAdmin, request: HttpRequest, name: str) -> HttpResponse:
    """Runs, pauses or resumes a periodic entry, after asking."""
    if name not in ENTRY_SWITCHES:
        raise Http404("There is no such operation.")
    label, permission, question = ENTRY_SWITCHES[name]
    user: Any = request.user
    if not (admin.has_view_permission(request) and user.has_perm(f"dbtasks.{permission}")):
        raise PermissionDenied
    backend = chosen(request)
    data = request.POST if request.method == "POST" else request.GET
    target = data.get("entry", "")
    if not target:
        raise Http404("Name a periodic entry.")

    def act() -> None:
        if name == "run":
            result = ENTRIES.run_now(target, backend=backend.alias)
            messages.success(request, f"Periodic entry {target} is enqueued as {result.id}.")
        else:
            change = ENTRIES.pause if name == "pause" else ENTRIES.resume
            change(target, backend=backend.alias)
            messages.success(request, f"Periodic entry {target} is {label.lower()}d.")
        log_entries(request, [(None, f"periodic entry {target}")], f"{label}.", CHANGE)

    return ask_and_act(
        admin,
        request,
        act,
        Pages(admin.admin_site.name, backend),
        {
            "title": f"{label}: periodic entry {target}"[:200],
            "label": label,
            "question": question,
            "hidden": {"entry": target},
        },
    )


def ask_and_act(
    admin: ScheduledTaskAdmin,
    request: HttpRequest,
    act: Callable[[], None],
    pages: Pages,
    context: dict[str, Any],
) -> HttpResponse:
    """The page that asks; after a POST, what `act` had to say, on the dashboard."""
    if request.method == "POST" and "confirmed" in request.POST:
        try:
            act()
        except EXPECTED as error:
            messages.error(request, f"Nothing was done: {error}")
        return HttpResponseRedirect(pages.dashboard())
    context = {
        **admin.admin_site.each_context(request),
        "opts": admin.opts,
        "pages": pages,
        "action": f"{request.path}?{urlencode(pages.kept)}",
        **context,
    }
    return TemplateResponse(request, "admin/dbtasks/switch.html", context)
