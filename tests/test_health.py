"""Health: `healthz`, and `--healthcheck` of nodes in trouble."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError
from django.test import RequestFactory, override_settings
from django.urls import resolve, reverse

from dbtasks import views
from dbtasks.engines import Engine
from dbtasks_supervisor.status import healthcheck, write_status
from tests.app import tasks
from tests.engines import fresh_engine, node
from tests.node import Node, finished
from tests.test_options import BACKEND
from tests.waiting import wait_until

DEADLINE = 30.0


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def ask(method: str = "get") -> Any:
    return views.healthz(getattr(RequestFactory(), method)("/healthz"))


def answer() -> tuple[int, dict[str, Any]]:
    response = ask()
    assert response["Cache-Control"].startswith("max-age=0")
    return response.status_code, json.loads(response.content)


def test_a_living_node_is_health(engine: Engine) -> None:
    engine.renew_lease(node())
    assert answer() == (200, {"status": "ok", "nodes": 1, "reasons": []})


def test_nodes_that_drain_are_health(engine: Engine) -> None:
    engine.renew_lease(node(), "draining")
    assert answer()[0] == 200


def test_no_node_or_only_dead_ones_are_not(engine: Engine) -> None:
    reasons = ["no runner of backend 'default' is alive"]
    assert answer() == (503, {"status": "unhealthy", "nodes": 0, "reasons": reasons})
    engine.renew_lease(node(lease=-5.0))
    assert answer()[1]["reasons"] == reasons


def test_a_backend_that_runs_tasks_at_once_needs_no_node(engine: Engine) -> None:
    options = {"default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"immediate": True}}}
    with override_settings(TASKS=options):
        assert answer() == (200, {"status": "ok", "nodes": 0, "reasons": []})


def test_a_database_that_is_away_is_told_without_its_secrets(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Any) -> Any:
        raise OperationalError("password of host db.internal is hunter2")

    monkeypatch.setattr(type(engine), "leases", away)
    code, told = answer()
    assert code == 503
    assert told["reasons"] == ["the database of backend 'default' cannot be used"]
    assert "hunter2" not in json.dumps(told)


def test_only_reading_is_allowed(engine: Engine) -> None:
    assert ask("post").status_code == 405
    assert ask("head").status_code == 503


@override_settings(ROOT_URLCONF="dbtasks.urls")
def test_the_urls_lead_to_the_views() -> None:
    assert resolve("/healthz").func is views.healthz
    assert resolve("/metrics").func is views.metrics
    assert reverse("healthz") == "/healthz"


# The status file


@pytest.mark.once
@pytest.mark.parametrize(
    ("status", "well"),
    [
        ({"state": "degraded", "unwell_seconds": 61.0}, False),
        ({"state": "degraded", "unwell_seconds": 61.0, "workers_up": 1}, False),
        ({"state": "starting", "unwell_seconds": 61.0}, False),
        ({"state": "degraded", "unwell_seconds": 59.0}, True),
        ({"state": "degraded", "unwell_seconds": 99.0, "database_down": True}, True),
        ({"state": "draining", "unwell_seconds": 99.0}, True),
        ({"state": "running", "unwell_seconds": 0.0, "workers_up": 1}, True),
        ({"state": "wedged", "unwell_seconds": 0.0, "workers_up": 1}, False),
        ({"state": "running", "unwell_seconds": "long"}, False),
    ],
)
def test_a_node_whose_workers_do_not_stay_alive_is_unwell_after_a_while(
    tmp_path: Path, status: dict[str, Any], well: bool
) -> None:
    write_status(tmp_path / "status", status)
    assert healthcheck(tmp_path / "status")[0] is well


def told(path: Path) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        return json.loads(path.read_text()) if path.exists() else {}

    return read


@pytest.mark.usefixtures("db")
def test_workers_that_crash_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBTASKS_TEST_SIGNALS", str(tmp_path / "signals"))
    monkeypatch.setenv("DBTASKS_TEST_RECEIVER", "die")
    path = tmp_path / "status"
    with Node("--status-file", str(path), workers=2, ready=False):
        wait_until(lambda: told(path)().get("unwell_seconds", 0) > 6.0, DEADLINE, "unwell")
        assert healthcheck(path)[0]
        well, why = healthcheck(path, patience=5.0)
        assert not well
        assert "no worker has stayed alive" in why


@pytest.mark.usefixtures("db")
def test_one_wedged_worker_a_drain_and_a_stopped_supervisor(tmp_path: Path) -> None:
    path, gate = tmp_path / "status", tmp_path / "gate"
    with Node("--status-file", str(path), workers=2) as running:
        wait_until(lambda: told(path)().get("workers_up") == 2, DEADLINE, "both are up")
        wedged = running.worker_pids()[0]
        os.kill(wedged, signal.SIGSTOP)
        wait_until(
            lambda: any(one["state"] for one in told(path)()["children"]), DEADLINE, "a report"
        )
        assert healthcheck(path)[0]
        with contextlib.suppress(ProcessLookupError):  # it may have been replaced by now
            os.kill(wedged, signal.SIGCONT)
        os.kill(running.pid, signal.SIGSTOP)
        wait_until(lambda: not healthcheck(path)[0], DEADLINE, "the supervisor is stopped")
        assert "stop" in healthcheck(path)[1]
        os.kill(running.pid, signal.SIGCONT)
        wait_until(lambda: healthcheck(path)[0], DEADLINE, "it goes on")
        result = tasks.wait_for_file.enqueue(str(gate), str(tmp_path / "begun"))
        wait_until((tmp_path / "begun").exists, DEADLINE, "it runs")
        running.signal(signal.SIGTERM)
        wait_until(lambda: told(path)()["state"] == "draining", DEADLINE, "it drains")
        assert healthcheck(path)[0]
        gate.touch()
        finished(result, DEADLINE)
        assert running.wait_exit(DEADLINE) == 0
