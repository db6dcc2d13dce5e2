"""Views for monitoring; `include("dbtasks.urls")` serves them. See docs/guides/monitoring.md."""

from __future__ import annotations

import logging
import os

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.tasks import task_backends
from django.utils.crypto import constant_time_compare
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .backend import DatabaseBackend
from .metrics import exposition

logger = logging.getLogger("dbtasks")

TOKEN = "DBTASKS_METRICS_TOKEN"


def backends() -> list[DatabaseBackend]:
    """Those of TASKS that need a runner."""
    ours = [task_backends[alias] for alias in settings.TASKS]
    return [
        backend
        for backend in ours
        if isinstance(backend, DatabaseBackend) and not backend.parsed.immediate
    ]


@never_cache
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """200 if the queues' databases answer and each backend has a node that lives; else 503.

    Anybody may ask, so it tells no names of hosts or nodes: those are in the log. One query each.
    """
    reasons, nodes = [], 0
    for backend in backends():
        try:
            alive = sum(lease.left > 0 for lease in backend.engine.leases())
        except DatabaseError as error:
            logger.warning("healthz: database %r: %s", backend.parsed.database, error)
            backend.engine.close()
            reasons.append(f"the database of backend {backend.alias!r} cannot be used")
            continue
        nodes += alive
        if not alive:
            reasons.append(f"no runner of backend {backend.alias!r} is alive")
    status = "unhealthy" if reasons else "ok"
    body = {"status": status, "nodes": nodes, "reasons": reasons}
    return JsonResponse(body, status=503 if reasons else 200)


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """OpenMetrics, for staff and for whoever has the token in `Authorization: Bearer TOKEN`."""
    if not (is_staff(request) or has_token(request.headers.get("Authorization", ""))):
        return HttpResponse(
            f"Metrics are for staff, or need the token that is set as {TOKEN}.\n",
            status=401,
            content_type="text/plain; charset=utf-8",
            headers={"WWW-Authenticate": "Bearer"},
        )
    aliases = [backend.alias for backend in backends()]
    try:
        body, content_type = exposition(aliases, request.headers.get("Accept", ""))
    except ImproperlyConfigured as error:
        return HttpResponse(f"{error}\n", status=501, content_type="text/plain; charset=utf-8")
    return HttpResponse(body, content_type=content_type)


def is_staff(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)  # there is none without Django's own accounts
    return bool(user is not None and user.is_active and user.is_staff)


def has_token(authorization: str) -> bool:
    """Whether the header has the token of the setting, or else of the environment; never if none
    is set."""
    kind, _, given = authorization.partition(" ")
    wanted = metrics_token()
    return bool(wanted) and kind.lower() == "bearer" and constant_time_compare(given, wanted)


def metrics_token() -> str:
    """The token, or "" if none is set."""
    return str(getattr(settings, TOKEN, "") or os.environ.get(TOKEN, ""))
