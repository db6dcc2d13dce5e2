"""The dashboard: what it says in calm and in trouble, its JSON, and what can be done from it."""

from __future__ import annotations

import datetime
import json
import re
import uuid
from typing import Any

import pytest
from django.test import Client, override_settings

from dbtasks import operations
from dbtasks.admin import charts
from dbtasks.admin.attempts import attempts_of, both_ends
from dbtasks.admin.words import duration, number, size
from dbtasks.engines import Engine
from dbtasks.engines.looks import Text
from dbtasks.models import Node, ScheduledTask, Statistic, Worker
from tests.admin.test_tasks import TWO, failed, messages_of, text_of
from tests.admin_site import (
    DASHBOARD,
    EVIL,
    LIST,
    LIVE,
    assert_escaped,
    browser_of,
    log_of_actions,
    person,
)
from tests.engines import EVERYTHING, ME, fresh_engine, new_task, node, outcome_of, put, statements

PARTS = {"headline", "now", "queues", "nodes", "periodic", "failures"}


def count(engine: Engine, path: str = "a.b", **counts: int) -> None:
    """Statistics of this minute, as the database's clock has it."""
    minute = int(engine.now().timestamp() // 60)
    Statistic.objects.create(
        backend=engine.backend, minute=minute, queue="default", task_path=path, **counts
    )


def live(client: Client, **query: str) -> dict[str, Any]:
    response = client.get(LIVE, query)
    assert response.status_code == 200, response.content[:2000]
    assert response["Content-Type"] == "application/json"
    assert "no-store" in response["Cache-Control"]
    return dict(json.loads(response.content))


def headline(client: Client) -> str:
    return str(client.get(DASHBOARD).context["headline"])


def test_an_empty_queue_without_nodes_says_so(engine: Engine, root: Client) -> None:
    page = root.get(DASHBOARD)
    assert page.context["severity"] == "worrying"
    assert headline(root).startswith("No node is running")
    text = text_of(page)
    assert "No queue has ready tasks" in text
    assert "manage.py taskrunner" in text


def test_a_calm_queue_is_well(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    count(engine, succeeded=10)
    put(engine, new_task(), new_task())
    assert headline(root) == "All is well. 2 tasks ready; 1 node, 0 workers."
    assert root.get(DASHBOARD).context["severity"] == "fine"


def test_many_failures_are_the_first_thing_it_says(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    failed(engine, error="shop.Broken", task_path="shop.tasks.charge")
    count(engine, succeeded=10, failed=5)
    count(engine, "shop.tasks.charge", failed=85)
    page = root.get(DASHBOARD)
    assert page.context["severity"] == "critical"
    assert page.context["headline"] == (
        "90 of 100 tasks failed in the last 10 minutes, most of them shop.tasks.charge with Broken."
    )
    assert "Retry these" in text_of(page)
    (group,) = page.context["picture"].groups
    assert (group.task_path, group.exception, group.count) == (
        "shop.tasks.charge",
        "shop.Broken",
        1,
    )


def test_a_few_failures_are_no_alarm(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    count(engine, succeeded=1000, failed=20)
    assert root.get(DASHBOARD).context["severity"] == "fine"


def test_a_queue_that_falls_behind_is_told(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    old = engine.now() - datetime.timedelta(minutes=25)
    put(engine, new_task("email", enqueued_at=old))
    page = root.get(DASHBOARD)
    assert "Queue email" in page.context["headline"]
    assert "25 min" in text_of(page)


def test_a_paused_queue_waits_without_alarm(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    put(engine, new_task("email", enqueued_at=engine.now() - datetime.timedelta(minutes=25)))
    operations.pause(queue="email", by="ada")
    page = root.get(DASHBOARD)
    assert page.context["headline"].startswith("Queue email is paused")
    assert page.context["picture"].waits is None
    assert not any(card["alarm"] for card in page.context["cards"])


def test_a_task_that_ends_its_workers_is_named(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    count(engine, "shop.tasks.fatal", rescued=5)
    page = root.get(DASHBOARD)
    assert page.context["severity"] == "critical"
    assert page.context["headline"].endswith("all of them shop.tasks.fatal.")


def test_a_silent_node_is_told(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    engine.renew_lease(node("node-2", lease=-100.0))
    text = text_of(root.get(DASHBOARD))
    assert "node-2's name" in text
    assert "Silent for" in text


def test_figures_are_those_of_the_queue(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    count(engine, succeeded=7, failed=1)
    put(engine, *(new_task() for _ in range(3)), new_task(due_in=100))
    engine.claim(ME, EVERYTHING, 1)
    cards = {card["name"]: card["value"] for card in root.get(DASHBOARD).context["cards"]}
    assert cards["ready"] == "2"
    assert cards["running"] == "1"
    assert cards["deferred"] == "1"
    assert cards["failed in the last hour"] == "1"
    assert cards["finished in the last hour"] == "8"


def test_workers_are_shown_with_what_they_do(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    task = str(uuid.uuid4())
    row = {
        "id": "node-1-1-x",
        "kind": "worker",
        "pid": 7,
        "state": "busy",
        "task_id": task,
        "task_path": "shop.tasks.charge",
        "task_seconds": 75.0,
        "done": 1234,
        "failed": 5,
        "restarts": 2,
        "memory": 64_000_000,
        "cpu_seconds": 30.0,
        "up_seconds": 120.0,
    }
    Worker.objects.create(node_id=ME.node, last_seen=engine.now(), **row)
    page = root.get(DASHBOARD)
    text = text_of(page)
    for part in ("node-1-1-x", "Busy", "charge", "75 s", "64 MB", "25 %", "1,234"):
        assert part in text, part
    assert f"{LIST}{task}/change/" in page.content.decode()


def test_the_json_has_the_parts_of_the_page(engine: Engine, root: Client) -> None:
    put(engine, new_task("email"))
    news = live(root)
    assert set(news["parts"]) == PARTS
    assert "email" in news["parts"]["queues"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d", news["at"])
    page = root.get(DASHBOARD).content.decode()
    assert set(re.findall(r'data-dbtasks-part="(\w+)"', page)) == PARTS


def test_parts_are_the_same_as_long_as_nothing_happens(engine: Engine, root: Client) -> None:
    """No token and no clock in them, so that an open page has nothing to replace."""
    failed(engine)
    first, second = (live(root)["parts"] for _ in range(2))
    for name in ("queues", "periodic", "failures"):
        assert first[name] == second[name]


def test_it_costs_few_statements_and_none_counts_the_history(engine: Engine, root: Client) -> None:
    engine.renew_lease(node())
    for _ in range(3):
        failed(engine)
    put(engine, *(new_task(f"queue-{number}") for number in range(30)))
    with statements() as seen:
        live(root)
    ours = [sql for sql, _ in seen if "dbtasks_" in sql]
    assert len(ours) <= 18, len(ours)
    for sql in ours:
        counts_rows = "COUNT(" in sql.upper() and "dbtasks_scheduledtask" in sql
        assert not counts_rows or "LIMIT" in sql or "claim_node" in sql, sql


def test_who_may_not_look_gets_nothing(engine: Engine) -> None:
    stranger, staff = Client(), browser_of(person("staff"))
    for address in (DASHBOARD, LIVE):
        assert stranger.get(address)["Location"].startswith("/admin/login/")
        assert staff.get(address).status_code == 403


def test_who_may_only_look_finds_no_switches(engine: Engine) -> None:
    failed(engine)
    put(engine, new_task())
    page = browser_of(person("guest", "view_scheduledtask")).get(DASHBOARD)
    assert page.status_code == 200
    for part in ("switch/", "operate/", "periodic/"):
        assert part not in page.content.decode(), part


def test_what_rows_say_is_escaped(engine: Engine, root: Client) -> None:
    now = engine.now()
    Node.objects.create(
        id=EVIL[:32], name=EVIL, host=EVIL, pid=1, kind="x", backend="default", state=EVIL[:16],
        started_at=now, last_seen=now, expires_at=now,
    )  # fmt: skip
    Worker.objects.create(
        id=EVIL, node_id=EVIL[:32], kind="worker", pid=2, state="idle", last_seen=now,
        task_id=EVIL[:36], task_path=EVIL,
    )  # fmt: skip
    id = failed(engine, task_path=EVIL, queue=EVIL)
    ScheduledTask.objects.filter(pk=id).update(
        errors=[{"exception_class_path": EVIL.replace('"', ""), "traceback": EVIL}]
    )
    put(engine, new_task(EVIL, task_path=EVIL))
    operations.pause(queue=EVIL, by=EVIL, reason=EVIL)
    operations.pause(task=EVIL, by=EVIL, reason=EVIL)
    page = root.get(DASHBOARD)
    assert page.status_code == 200
    assert_escaped(page, "dashboard")
    for name, html in live(root)["parts"].items():
        assert_escaped(None, name, html)
    for parameter in ("queue", "task"):
        for switch in ("pause", "resume"):
            assert_escaped(root.get(f"{LIST}switch/{switch}/", {parameter: EVIL}), switch)
    assert_escaped(root.get(f"{LIST}periodic/run/", {"entry": EVIL}), "run")
    for table in ("node", "worker", "periodictask", "occurrence"):
        assert_escaped(root.get(f"/admin/dbtasks/{table}/"), table)


def test_the_index_of_the_app_leads_to_it(engine: Engine, root: Client) -> None:
    assert DASHBOARD in root.get("/admin/dbtasks/").content.decode()


@override_settings(TASKS=TWO)
def test_each_backend_has_its_own(engine: Engine, root: Client) -> None:
    put(fresh_engine("reports"), new_task("a"), new_task("a"))
    page = root.get(DASHBOARD, {"backend": "reports"})
    assert page.context["picture"].ready == 2
    assert f"{LIVE}?backend=reports" in page.content.decode()
    assert root.get(DASHBOARD).context["picture"].ready == 0
    root.post(f"{LIST}switch/pause/?backend=reports", {"queue": "a", "confirmed": "yes"})
    assert [pause.name for pause in operations.pauses("reports")] == ["a"]
    assert operations.pauses("default") == []


# Pausing


def switch(client: Client, name: str, **values: str) -> Any:
    return client.post(f"{LIST}switch/{name}/", {"confirmed": "yes", **values}, follow=True)


def test_a_queue_is_paused_and_resumed(engine: Engine, root: Client) -> None:
    response = switch(root, "pause", queue="email", reason="the printer burns")
    assert messages_of(response) == ["Queue email is paused."]
    (pause,) = operations.pauses()
    assert (pause.kind, pause.name, pause.by) == ("queue", "email", "root")
    assert "the printer burns" in text_of(response)
    assert messages_of(switch(root, "pause", queue="email")) == ["Queue email was paused already."]
    assert messages_of(switch(root, "resume", queue="email")) == ["Queue email is resumed."]
    assert messages_of(switch(root, "resume", queue="email")) == [
        "Queue email was resumed already."
    ]
    assert operations.pauses() == []
    assert [(name, message) for _, name, message in log_of_actions()] == [
        ("queue email", "Paused: the printer burns."),
        ("queue email", "Resumed."),
    ]


def test_a_task_is_paused_and_resumed(engine: Engine, root: Client) -> None:
    switch(root, "pause", task="shop.tasks.charge")
    assert "shop.tasks.charge" in text_of(root.get(DASHBOARD))
    assert [pause.kind for pause in operations.pauses()] == ["task"]
    switch(root, "resume", task="shop.tasks.charge")
    assert operations.pauses() == []


def test_pausing_asks_first(engine: Engine, root: Client) -> None:
    assert root.get(f"{LIST}switch/pause/", {"queue": "a", "confirmed": "yes"}).status_code == 200
    assert root.post(f"{LIST}switch/pause/", {"queue": "a"}).status_code == 200
    assert operations.pauses() == []
    assert root.get(f"{LIST}switch/pause/").status_code == 404
    assert root.get(f"{LIST}switch/explode/", {"queue": "a"}).status_code == 404


def test_pausing_asks_for_its_permission(engine: Engine) -> None:
    client = browser_of(person("guest", "view_scheduledtask", "cancel_scheduledtask"))
    assert switch(client, "pause", queue="a").status_code == 403
    assert client.get(f"{LIST}switch/pause/", {"queue": "a"}).status_code == 403
    assert operations.pauses() == []
    client = browser_of(person("boss", "view_scheduledtask", "pause_scheduledtask"))
    assert switch(client, "pause", queue="a").status_code == 200
    assert len(operations.pauses()) == 1


def test_pausing_from_another_site_is_refused(engine: Engine) -> None:
    client = browser_of(person("root", superuser=True), enforce_csrf_checks=True)
    assert switch(client, "pause", queue="a").status_code == 403
    assert operations.pauses() == []


def test_a_name_that_cannot_be_is_told(engine: Engine, root: Client) -> None:
    (told,) = messages_of(switch(root, "pause", queue="x" * 1000))
    assert told.startswith("Nothing was done: ")
    assert operations.pauses() == []


# Charts and words


def test_charts_say_in_words_what_they_show(engine: Engine) -> None:
    samples = [charts.Sample()] * 58 + [charts.Sample(30, 12, 0.5, 2.0), charts.Sample(1, 0)]
    end = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    drawn = charts.throughput(samples, end)
    assert "31 successful, 12 failed; at most 50 per minute" in drawn
    assert drawn.count('class="failed"') == 1
    assert drawn.count('class="done"') == 2
    times = charts.run_times(samples, end)
    assert "median up to 500 ms" in times
    assert "95th percentile up to 2.0 s" in times
    assert times.count("<circle") == 2
    assert "<path" in charts.run_times([], end)
    assert "0 successful" in charts.throughput([], end)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "—"),
        (-3, "0 ms"),
        (0.085, "85 ms"),
        (1.25, "1.2 s"),
        (59, "59 s"),
        (119, "119 s"),
        (125, "2 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 d 1 h"),
        (864_000, "10 d"),
    ],
)
def test_durations_in_words(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_numbers_and_sizes_in_words() -> None:
    assert number(1234) == "1,234"
    assert number(10_001, 10_000) == "10,000+"
    assert [size(amount) for amount in (None, 7, 1500, 85_000, 2_500_000_000)] == [
        "—",
        "7 B",
        "1.5 kB",
        "85 kB",
        "2.5 GB",
    ]


def test_attempts_of_a_cut_column() -> None:
    entries = [{"exception_class_path": f"e.E{n}", "traceback": "t" * 50} for n in range(3)]
    text = json.dumps(entries)
    whole, more = attempts_of(Text(len(text), text), ["a", "b", "c"])
    assert ([each.exception for each in whole], more) == (["e.E2", "e.E1", "e.E0"], False)
    assert [each.worker for each in whole] == ["c", "b", "a"]
    cut, more = attempts_of(Text(len(text), text[:-20]), ["a", "b", "c"])
    assert ([each.exception for each in cut], more) == (["e.E1", "e.E0"], True)
    (raw,), more = attempts_of(Text(1000, '[{"exception'), [])
    assert (raw.traceback, more) == ('[{"exception', True)
    assert attempts_of(None, []) == ([], False)
    assert both_ends("short") == ("short", 0)


def test_finished_rows_do_not_make_it_slower_than_a_window(engine: Engine, root: Client) -> None:
    """The look at failures ends after its window, and says how far back that is."""
    failed(engine)
    put(engine, *(new_task() for _ in range(20)))
    for row in engine.claim(ME, EVERYTHING, 20):
        engine.finish([outcome_of(row)])
    page = root.get(DASHBOARD)
    assert [group.count for group in page.context["picture"].groups] == [1]
    assert page.context["picture"].groups_reach is None
