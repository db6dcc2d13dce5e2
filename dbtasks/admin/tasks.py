"""The pages about scheduled tasks: the list and one task."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone

from ..backend import DatabaseBackend
from ..ids import parse_id
from ..models import Node, ScheduledTask, Worker
from ..policy import DEFAULT, policy_from_text
from .attempts import attempts_of, pretty
from .choice import backends, chosen, looks
from .dashboard import dashboard, live
from .lines import in_order, line_of, state_of
from .operate import operate
from .operations import allowed_operations
from .pages import Pages
from .query import STATE_WORDS, WITHIN, asked_for, clean, look_of, word_of
from .readonly import ReadOnlyAdmin
from .switches import entry, switch
from .timeline import timeline_of
from .words import duration, showable

PER_PAGE = 100
SHOWN = 20_000  # characters of arguments and of a return value
ERRORS_SHOWN = 400_000  # characters of all attempts together
GIANT = ("args", "kwargs", "return_value", "errors")
CHOICES = 200  # of names offered in a filter


@admin.register(ScheduledTask)
class ScheduledTaskAdmin(ReadOnlyAdmin):
    """All pages of ours hang here, so that they are part of every admin site that has it."""

    def get_urls(self) -> list[URLPattern]:
        def page(address: str, view: Any, name: str) -> URLPattern:
            return path(
                address, self.admin_site.admin_view(partial(view, self)), name=f"dbtasks_{name}"
            )

        return [
            page("dashboard/", dashboard, "dashboard"),
            page("dashboard/live/", live, "live"),
            page("operate/<slug:name>/", operate, "operate"),
            page("switch/<slug:name>/", switch, "switch"),
            page("periodic/<slug:name>/", entry, "periodic"),
            *super().get_urls(),
        ]

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> ScheduledTask | None:
        """From whichever database it is in; without the columns that may be giant."""
        id = parse_id(unquote(object_id))
        if id is None:
            return None
        aliases = dict.fromkeys(backend.parsed.database for backend in backends())
        for alias in aliases:
            row = ScheduledTask.objects.using(alias).defer(*GIANT).filter(pk=id).first()
            if row is not None:
                return row
        return None

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        backend = chosen(request)
        pages = Pages(self.admin_site.name, backend)
        wanted = clean(request.GET.get("text", ""))
        if id := parse_id(wanted):
            return HttpResponseRedirect(pages.task(id))
        context = {
            **self.admin_site.each_context(request),
            "title": "Scheduled tasks",
            "opts": self.opts,
            "pages": pages,
            "backends": pages.choices("scheduledtask_changelist"),
            "operations": allowed_operations(request, asked_for(request.GET.dict())["state"]),
            **list_of(request, backend, pages),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/dbtasks/tasks.html", context)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        row = None if object_id is None else self.get_object(request, object_id)
        if object_id is None or not self.has_view_permission(request) or request.method == "POST":
            raise PermissionDenied
        if row is None:
            return self._gone(request, object_id)
        context = {
            **self.admin_site.each_context(request),
            "title": row.task_path.rpartition(".")[2],
            "opts": self.opts,
            **(self.details_of(request, row)),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/dbtasks/task.html", context)

    def _gone(self, request: HttpRequest, object_id: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "No such task",
            "opts": self.opts,
            "pages": Pages(self.admin_site.name, chosen(request)),
            "asked": unquote(object_id)[:200],
        }
        return TemplateResponse(request, "admin/dbtasks/gone.html", context, status=404)

    def details_of(self, request: HttpRequest, row: ScheduledTask) -> dict[str, Any]:
        backend = next((each for each in backends() if each.alias == row.backend), None)
        if backend is None:
            raise Http404(f"TASKS has no backend {row.backend!r} of dbtasks any more.")
        texts = looks(backend).texts(row.id, SHOWN, ERRORS_SHOWN)
        if not texts:
            raise Http404("The task was deleted a moment ago.")
        listed = row.worker_ids if isinstance(row.worker_ids, list) else []
        workers = [showable(str(worker)) for worker in listed]
        attempts, more_attempts = attempts_of(texts["errors"], workers)
        policy = policy_from_text(row.policy)
        using = backend.parsed.database
        worker = Worker.objects.using(using).select_related("node").filter(id=row.claimed_by)
        return {
            "row": row,
            "line": line_of(row, {}),
            "state": state_of(row),
            "state_word": word_of(state_of(row)),
            "pages": Pages(self.admin_site.name, backend),
            "operations": allowed_operations(request, state_of(row)),
            "texts": [
                (label, pretty(text), text)
                for name, label in (
                    ("args", "Positional arguments"),
                    ("kwargs", "Keyword arguments"),
                    ("return_value", "Return value"),
                )
                if (text := texts[name]) is not None and text.start not in ("[]", "{}")
            ],
            "attempts": attempts,
            "more_attempts": more_attempts,
            "policy": [
                (field.replace("_", " "), option_in_words(getattr(policy, field)))
                for field in policy.__dataclass_fields__
                if getattr(policy, field) != getattr(DEFAULT, field)
            ],
            "timeline": timeline_of(row, timezone.now()),
            "workers": workers[-20:],
            "worker": worker.first() if row.claimed_by else None,
        }


def option_in_words(value: Any) -> str:
    """An option of a policy: its numbers with a fraction are seconds."""
    if isinstance(value, tuple):
        return ", then ".join(map(option_in_words, value))
    return duration(value) if isinstance(value, float) else str(value)


def list_of(request: HttpRequest, backend: DatabaseBackend, pages: Pages) -> dict[str, Any]:
    """The found tasks, the filter's choices and the way to what is older."""
    look, asked = look_of(request.GET.dict()), asked_for(request.GET.dict())
    view = looks(backend)
    found = view.find_patiently(look, PER_PAGE)
    using = backend.parsed.database
    rows = in_order(
        ScheduledTask.objects.using(using).defer(*GIANT, "policy").filter(pk__in=found.ids),
        found.ids,
    )
    failed = [row.id for row in rows if row.status == "FAILED"]
    exceptions = {failure.id: failure.exception for failure in view.exceptions(failed)}
    kept = {name: value for name, value in asked.items() if value}
    following: dict[str, object] = {}
    if found.more:
        if look.in_history:
            following = {"before": found.reached}
        else:
            following = {"offset": look.offset + PER_PAGE}
    active = {name: value for name, value in kept.items() if name != "state"}
    return {
        "lines": [line_of(row, exceptions) for row in rows],
        "asked": asked,
        "query": request.GET.urlencode(),
        "states": [
            (name, word, pages.tasks(**{**active, "state": name}))
            for name, word in (("", "All"), *STATE_WORDS.items())
        ],
        "state_words": STATE_WORDS,
        "within": [(name, words) for name, (words, _) in WITHIN.items()],
        "queues": queue_names(backend, view),
        "nodes": list(
            Node.objects.using(using)
            .filter(backend=backend.alias)
            .order_by("name")
            .values_list("name", flat=True)
            .distinct()[:CHOICES]
        ),
        "filtered": bool(active),
        "clear": pages.tasks(state=asked["state"]),
        "following": pages.tasks(**kept, **following) if following else "",
        "is_first": look.before is None and not look.offset,
        "first": pages.tasks(**kept),
        "in_history": look.in_history,
        "short_look": found.more and len(rows) < PER_PAGE,
        "reached": found.reached,
    }


def queue_names(backend: DatabaseBackend, view: Any) -> list[str]:
    """Names to offer: those of the settings, or those that have work."""
    return sorted(backend.queues) or [depth.queue for depth in view.depths()]
