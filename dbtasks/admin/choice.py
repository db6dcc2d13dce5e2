"""Which of the backends in TASKS a page is about."""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.http import Http404, HttpRequest
from django.tasks import task_backends

from ..backend import DatabaseBackend
from ..engines.looks import Looks
from ..runner import database_backend


def backends() -> list[DatabaseBackend]:
    """Those of dbtasks, in the order of TASKS; whoever else is in TASKS has pages of its own."""
    found = []
    for alias in task_backends:
        try:
            found.append(database_backend(alias))
        except ImproperlyConfigured:
            continue
    return found


def chosen(request: HttpRequest) -> DatabaseBackend:
    """What `?backend=` names; without it "default", or the first. Raises Http404."""
    known = {backend.alias: backend for backend in backends()}
    if not known:
        raise Http404("No backend in TASKS is a dbtasks.backend.DatabaseBackend.")
    name = request.POST.get("backend") or request.GET.get("backend")
    if not name:
        return known.get("default") or next(iter(known.values()))
    if name not in known:
        raise Http404(f"TASKS has no backend of dbtasks with that name: {name[:100]!r}.")
    return known[name]


def looks(backend: DatabaseBackend) -> Looks:
    return Looks(backend.engine)
