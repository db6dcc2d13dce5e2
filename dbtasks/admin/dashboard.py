"""The dashboard: one page, and the same parts as JSON for those who keep it open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.utils import timezone

from ..backend import DatabaseBackend
from ..engines.looks import CAP
from ..troubles import FAILING
from . import charts
from .choice import chosen
from .pages import Pages
from .picture import Picture, take
from .words import duration, number, plural

if TYPE_CHECKING:
    from .tasks import ScheduledTaskAdmin

PARTS = ("headline", "now", "queues", "nodes", "periodic", "failures")
EVERY = 5  # seconds between two looks of an open page
LONG_WAIT = 300.0  # seconds; a longer wait is shown as an alarm


def dashboard(admin: ScheduledTaskAdmin, request: HttpRequest) -> HttpResponse:
    context = parts_of(admin, request)
    context |= {
        **admin.admin_site.each_context(request),
        "title": "Tasks now",
        "opts": admin.opts,
        "backends": context["pages"].choices("dashboard"),
        "every": EVERY,
    }
    return TemplateResponse(request, "admin/dbtasks/dashboard.html", context)


def live(admin: ScheduledTaskAdmin, request: HttpRequest) -> HttpResponse:
    """{"at": the time in words, "parts": {name: HTML}}, never from a cache."""
    context = parts_of(admin, request)
    parts = {
        name: render_to_string(f"admin/dbtasks/dashboard/{name}.html", context).strip()
        for name in PARTS
    }
    response = JsonResponse({"at": context["at"], "parts": parts})
    response["Cache-Control"] = "no-store"
    return response


def parts_of(admin: ScheduledTaskAdmin, request: HttpRequest) -> dict[str, Any]:
    """The context of the parts. Raises PermissionDenied."""
    if not admin.has_view_permission(request):
        raise PermissionDenied
    backend = chosen(request)
    picture = take(backend)
    user: Any = request.user
    return {
        "picture": picture,
        "pages": Pages(admin.admin_site.name, backend),
        "at": f"{timezone.localtime(picture.now):%H:%M:%S}",
        "headline": headline(picture),
        "severity": severity(picture),
        "cards": cards(picture, backend),
        "throughput": charts.throughput(picture.samples, timezone.localtime(picture.now)),
        "run_times": charts.run_times(picture.samples, timezone.localtime(picture.now)),
        "cap": CAP,
        "may_pause": user.has_perm("dbtasks.pause_scheduledtask"),
        "may_retry": user.has_perm("dbtasks.retry_scheduledtask"),
        "may_run_entries": user.has_perm("dbtasks.run_periodictask"),
        "may_pause_entries": user.has_perm("dbtasks.pause_periodictask"),
    }


def severity(picture: Picture) -> str:
    if not picture.troubles:
        return "fine"
    bad = any(trouble.severity == "error" for trouble in picture.troubles)
    return "critical" if bad else "worrying"


def headline(picture: Picture) -> str:
    """One sentence: the worst that is wrong, or that nothing is."""
    if not picture.troubles:
        living = sum(not line.silent for line in picture.nodes)
        workers = sum(len(line.workers) for line in picture.nodes)
        busy = "Nothing waits" if not picture.ready else f"{plural(picture.ready, 'task')} ready"
        return f"All is well. {busy}; {plural(living, 'node')}, {plural(workers, 'worker')}."
    worst = picture.troubles[0]
    text = f"{worst.what[:1].upper()}{worst.what[1:]}."
    more = len(picture.troubles) - 1
    return f"{text} And {number(more)} more:" if more else text


def cards(picture: Picture, backend: DatabaseBackend) -> list[dict[str, Any]]:
    """The figures at the top: (value, name, state of the list behind it, whether it alarms)."""
    load, hour = picture.load, picture.hour
    waits = picture.waits
    failing = any(trouble.code == FAILING for trouble in picture.troubles)
    ready = f"{picture.ready:,}+" if picture.ready_capped else number(picture.ready)
    cards = [
        card(ready, "ready", "ready"),
        card(number(load.running, CAP), "running", "running"),
        card(number(load.deferred, CAP), "deferred", "deferred"),
        card(number(hour.failed), "failed in the last hour", "failed", failing),
        card(duration(waits), "oldest ready task waits", "ready", (waits or 0) > LONG_WAIT),
        card(number(hour.finished), "finished in the last hour", "successful"),
        card(duration(hour.p(0.5)), "median run time", ""),
        card(duration(hour.p(0.95)), "95th percentile", ""),
    ]
    if load.paused:
        cards.insert(3, card(number(load.paused, CAP), "paused", "paused"))
    return cards


def card(value: str, name: str, state: str, alarm: bool = False) -> dict[str, Any]:
    return {"value": value, "name": name, "state": state, "alarm": alarm}
