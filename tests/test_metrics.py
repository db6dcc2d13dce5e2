"""Metrics: what is exposed, to whom, by whom; dashboards and alerts ask for what exists."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError
from django.test import RequestFactory, override_settings
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from dbtasks import metrics, views
from dbtasks.engines import Death, Engine
from dbtasks.ids import uuid7
from dbtasks.models import Occurrence, PeriodicTask
from dbtasks.tally import BOUNDS
from dbtasks_supervisor import application, values
from dbtasks_supervisor.config import ConfigError
from tests.app import tasks
from tests.engines import EVERYTHING, ME, fresh_engine, new_task, node, put
from tests.node import Node, finished
from tests.process import run
from tests.test_statistics import cell
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
DEADLINE = 30.0
AWKWARD = 'a "quoted"\\back\nslash'


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def samples(body: bytes) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    found = {}
    for family in openmetrics(body.decode()):
        for sample in family.samples:
            labels = [value for key, value in sorted(sample.labels.items()) if key != "backend"]
            found[(sample.name, *labels)] = sample.value
    return found


def exposed(engine: Engine) -> dict[tuple[str, ...], float]:
    body, content_type = metrics.exposition(["default"], OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    return samples(body)


def a_bit_of_everything(engine: Engine) -> None:
    counts = cell(succeeded=5, failed=1, retried=2, rescued=1, run_us=3_000_000, waited=5)
    counts[5] = 1_500_000  # wait_us
    counts[-len(BOUNDS) - 1] = 7
    counts[-1] = 1
    engine.add_counts({("default", "app.task"): counts, (AWKWARD, AWKWARD): cell(succeeded=1)})
    put(engine, new_task(), new_task(), new_task(due_in=3600))
    engine.claim(ME, EVERYTHING, 1)
    engine.renew_lease(node())
    row = {"id": "w", "kind": "worker", "pid": 1, "state": "busy", "task_id": "", "task_path": ""}
    more = {"done": 1, "failed": 0, "restarts": 3, "memory": 2**30, "cpu_seconds": 1.5}
    engine.save_workers(ME.node, [row | more])
    due = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    late = due + datetime.timedelta(seconds=2)
    PeriodicTask.objects.create(
        backend="default", name="nightly", task_path="app.task", spec="@daily",
        since=due, last_due=due, deployed_at=due,
    )  # fmt: skip
    Occurrence.objects.create(
        backend="default", name="nightly", due_at=due, task_id=uuid7(), enqueued_at=late,
        enqueued_by="n",
    )  # fmt: skip


def test_the_numbers_are_those_of_the_tables(engine: Engine) -> None:
    a_bit_of_everything(engine)
    found = exposed(engine)
    place = ("default", "app.task")
    outcomes = {
        outcome: found["dbtasks_tasks_total", outcome, *place]
        for outcome in ("succeeded", "failed", "retried", "rescued")
    }
    assert outcomes == {"succeeded": 5, "failed": 1, "retried": 2, "rescued": 1}
    assert found["dbtasks_task_duration_seconds_count", *place] == 8
    assert found["dbtasks_task_duration_seconds_sum", *place] == 3.0
    assert found["dbtasks_task_duration_seconds_bucket", "0.001", *place] == 7
    assert found["dbtasks_task_duration_seconds_bucket", "300.0", *place] == 7
    assert found["dbtasks_task_duration_seconds_bucket", "+Inf", *place] == 8
    assert found["dbtasks_task_wait_seconds_sum", *place] == 1.5
    assert found["dbtasks_queue_depth", "default"] == 1
    assert found["dbtasks_queue_depth", AWKWARD] == 0
    assert found["dbtasks_queue_oldest_age_seconds", "default"] >= 0
    assert found["dbtasks_deferred_tasks",] == 1
    assert found["dbtasks_running_tasks",] == 1
    assert found["dbtasks_nodes", "running"] == 1
    name = node().name
    assert 0 <= found["dbtasks_node_lease_age_seconds", name] < 30
    assert found["dbtasks_workers", name, "busy"] == 1
    assert found["dbtasks_worker_restarts", name] == 3
    assert found["dbtasks_workers_memory_bytes", name] == 2**30
    assert found["dbtasks_workers_cpu_seconds", name] == 1.5
    assert found["dbtasks_periodic_lateness_seconds", "nightly"] == 2
    assert found["dbtasks_database_up",] == 1


def test_the_older_format_is_for_those_who_ask_for_it(engine: Engine) -> None:
    a_bit_of_everything(engine)
    body, content_type = metrics.exposition(["default"], "text/plain")
    assert content_type.startswith("text/plain")
    assert "dbtasks_tasks" in {family.name for family in plain_text(body.decode())}


def test_an_empty_queue_has_metrics_too(engine: Engine) -> None:
    found = exposed(engine)
    assert found["dbtasks_nodes", "running"] == 0
    assert found["dbtasks_database_up",] == 1


def test_a_rescue_that_failed_a_task_shows(engine: Engine) -> None:
    from dbtasks.tally import Cells, merge, rescued_counts

    put(engine, new_task(policy='{"max_crashes":0}'))
    engine.claim(ME, EVERYTHING)
    counted: Cells = {}
    merge(counted, rescued_counts(engine.rescue(ME.node, ME.worker, Death("killed"))))
    engine.add_counts(counted)
    values = {key: value for key, value in exposed(engine).items() if "rescued" in key}
    assert list(values.values()) == [1.0]


def test_a_database_that_is_away_is_a_metric(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*arguments: Any) -> Any:
        raise OperationalError("gone")

    a_bit_of_everything(engine)
    monkeypatch.setattr("dbtasks.metrics.collect_periodic", away)
    assert exposed(engine) == {("dbtasks_database_up",): 0.0}


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbtasks.metrics.is_available", lambda: False)
    with pytest.raises(ImproperlyConfigured, match=r"pip install .django-dbtasks\[metrics\]"):
        metrics.exposition(["default"])
    with override_settings(DBTASKS_METRICS_TOKEN="secret"):
        response = ask("/metrics", HTTP_AUTHORIZATION="Bearer secret")
    assert response.status_code == 501
    assert b"django-dbtasks[metrics]" in response.content


# The view


def ask(path: str, user: Any = None, **headers: str) -> Any:
    request = RequestFactory().get(path, **headers)  # type: ignore[arg-type]
    if user is not None:
        request.user = user
    return views.metrics(request)


def a_user(**changes: Any) -> Any:
    from django.contrib.auth.models import User

    return User(username="u", **changes)


def test_staff_may_see_metrics(engine: Engine) -> None:
    assert ask("/", a_user(is_staff=True)).status_code == 200
    assert ask("/", a_user()).status_code == 401
    assert ask("/", a_user(is_staff=True, is_active=False)).status_code == 401
    assert ask("/").status_code == 401


@pytest.mark.parametrize("where", ["setting", "environment"])
def test_a_token_opens_the_view(
    engine: Engine, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = {}
    if where == "setting":
        setting = {"DBTASKS_METRICS_TOKEN": "s3cret"}
    else:
        monkeypatch.setenv("DBTASKS_METRICS_TOKEN", "s3cret")
    with override_settings(**setting):
        response = ask("/", HTTP_AUTHORIZATION="Bearer s3cret", HTTP_ACCEPT=OPENMETRICS)
        assert response.status_code == 200
        assert samples(response.content)["dbtasks_database_up",] == 1
        for wrong in ("Bearer", "Bearer ", "Bearer s3cre", "Basic s3cret", "s3cret", "Bearer ü"):
            refused = ask("/", HTTP_AUTHORIZATION=wrong)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"


def test_an_empty_token_opens_nothing() -> None:
    with override_settings(DBTASKS_METRICS_TOKEN=""):
        assert ask("/", HTTP_AUTHORIZATION="Bearer ").status_code == 401


# Dashboards and alerts


def expressions() -> dict[str, list[str]]:
    dashboard = json.loads((ROOT / "deploy/grafana/dbtasks.json").read_text())
    rules = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    return {
        "dashboard": [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]],
        "variables": [one["query"]["query"] for one in dashboard["templating"]["list"][1:]],
        "alerts": re.findall(r"expr: (.*?)\n +(?:for|labels):", rules, re.DOTALL),
    }


def test_dashboard_and_alerts_ask_for_metrics_that_exist(engine: Engine) -> None:
    a_bit_of_everything(engine)
    body, _ = metrics.exposition(["default"], OPENMETRICS)
    families = list(openmetrics(body.decode()))
    labels: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            labels.setdefault(sample.name, {"backend"}).update(sample.labels)
    asked = expressions()
    assert all(asked.values())
    used = set()
    for expression in [one for part in asked.values() for one in part]:
        names = set(re.findall(r"\bdbtasks_\w+", expression))
        assert names, expression
        assert names <= labels.keys(), names - labels.keys()
        known = set().union(*(labels[name] for name in names))
        for group in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
            assert set(group.split(", ")) <= known, expression
        for selector in re.findall(r"\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", selector)) <= known, expression
        used |= names
    # Each metric is on the dashboard, or is one of those that others contain.
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    hidden = {"dbtasks_node_lease_left_seconds", "dbtasks_workers_cpu_seconds"}
    assert {family.name for family in families if family.samples} - hidden == shown


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/dbtasks.json").read_text())
    squares = [
        (x, y)
        for panel in dashboard["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(squares) == len(set(squares))
    assert max(x for x, _ in squares) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.once
def test_promtool_accepts_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not os.environ.get("CI"), "promtool is missing: apt-get install prometheus"
        pytest.skip("PROMTOOL IS MISSING: apt-get install prometheus")
    rules = ROOT / "deploy/prometheus/alerts.yml"
    done = subprocess.run(
        [promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# The port


@pytest.mark.once
@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("9180", ("", 9180)),
        (9180, ("", 9180)),
        ("127.0.0.1:9180", ("127.0.0.1", 9180)),
        ("[::1]:9180", ("::1", 9180)),
    ],
)
def test_an_address_is_a_port_or_a_host_and_a_port(given: object, parsed: tuple[str, int]) -> None:
    assert values.address(given) == parsed


@pytest.mark.once
@pytest.mark.parametrize("given", ["x", "0", "65536", ":9180", "host:", "::1:9180", "1.5", ""])
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=r"port|brackets"):
        values.address(given)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def fetch(port: int, path: str = "/metrics", token: str = "") -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    request.add_header("Accept", OPENMETRICS)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return bytes(answer.read())


def reachable(port: int, token: str = "") -> dict[tuple[str, ...], float] | None:
    try:
        return samples(fetch(port, token=token))
    except (urllib.error.URLError, ConnectionError):
        return None


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_node_serves_metrics_while_it_runs(mode: str) -> None:
    port = free_port()
    with Node(
        "--metrics-port", f"127.0.0.1:{port}", "--mode", mode, workers=1, ready=False
    ) as node:
        node.wait_log("ready", DEADLINE)
        finished(tasks.noop.enqueue(), DEADLINE)

        def counted() -> bool:
            found = reachable(port) or {}
            return sum(found[key] for key in found if key[0] == "dbtasks_tasks_total") == 1

        wait_until(counted, DEADLINE, "the task is counted")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(port, "/else")
        if mode == "process":
            first = node.child("metrics")
            assert first != node.pid
            os.kill(first, signal.SIGKILL)
            assert node.child("metrics", DEADLINE, but=first)
            wait_until(lambda: reachable(port), DEADLINE, "another exporter serves")
            stuck = socket.create_connection(("127.0.0.1", port))  # says nothing, holds it up
            finished(tasks.noop.enqueue(), DEADLINE)
            node.leave()
            stuck.close()


@pytest.mark.usefixtures("db")
def test_the_port_wants_the_token_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBTASKS_METRICS_TOKEN", "s3cret")
    port = free_port()
    with Node("--metrics-port", f"127.0.0.1:{port}", workers=1):
        wait_until(lambda: reachable(port, "s3cret"), DEADLINE, "metrics")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fetch(port)


@pytest.mark.usefixtures("db")
def test_a_port_that_is_taken_keeps_no_node_from_working() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with Node("--metrics-port", f"127.0.0.1:{port}", workers=1) as node:
            finished(tasks.noop.enqueue(), DEADLINE)
            node.wait_log(f"metrics cannot be served on port {port}", DEADLINE)
            finished(tasks.noop.enqueue(), DEADLINE)


@pytest.mark.once
def test_a_port_without_the_extra_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from dbtasks_supervisor.config import add_arguments

    monkeypatch.setattr("dbtasks.metrics.is_available", lambda: False)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match=r"--metrics-port.*django-dbtasks\[metrics\]"):
        application.load(parser.parse_args(["--metrics-port", "9180"]))
    assert run("--metrics-port", "x", "--settings", "tests.settings").returncode == 2
