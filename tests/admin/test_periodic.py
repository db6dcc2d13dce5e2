"""Periodic entries on the dashboard: what they say, and running, pausing and resuming them."""

from __future__ import annotations

from typing import Any

from django.test import Client

from dbtasks import periodic
from dbtasks.engines import Engine
from dbtasks.models import ScheduledTask
from tests.admin.test_tasks import messages_of, text_of
from tests.admin_site import (
    DASHBOARD,
    EVIL,
    LIST,
    assert_escaped,
    browser_of,
    log_of_actions,
    person,
)

NOOP = "tests.app.tasks.noop"


def switch(client: Client, name: str, entry: str, **values: str) -> Any:
    data = {"entry": entry, "confirmed": "yes", **values}
    return client.post(f"{LIST}periodic/{name}/", data, follow=True)


def test_entries_are_shown(engine: Engine, root: Client) -> None:
    periodic.schedule("nightly", NOOP, "30 3 * * *", timezone="Europe/Berlin")
    page = root.get(DASHBOARD)
    (line,) = page.context["picture"].entries
    assert (line.name, line.schedule) == ("nightly", "30 3 * * * Europe/Berlin")
    assert line.next_words.startswith("in ")
    assert line.last_words == "never"
    assert "nightly" in text_of(page)
    assert root.get("/admin/dbtasks/periodictask/").status_code == 200


def test_an_entry_is_run_now_paused_and_resumed(engine: Engine, root: Client) -> None:
    periodic.schedule("nightly", NOOP, "30 3 * * *")
    (told,) = messages_of(switch(root, "run", "nightly"))
    assert told.startswith("Periodic entry nightly is enqueued as ")
    row = ScheduledTask.objects.get()
    assert str(row.pk) in told
    (line,) = root.get(DASHBOARD).context["picture"].entries
    assert (line.last_state, line.last_task) == ("ready", str(row.pk))
    response = switch(root, "pause", "nightly")
    assert messages_of(response) == ["Periodic entry nightly is paused."]
    assert [entry.paused for entry in periodic.entries()] == [True]
    assert "Resume" in text_of(response)
    assert messages_of(switch(root, "resume", "nightly")) == ["Periodic entry nightly is resumed."]
    assert [entry.paused for entry in periodic.entries()] == [False]
    assert [(name, message) for _, name, message in log_of_actions()] == [
        ("periodic entry nightly", "Run now."),
        ("periodic entry nightly", "Pause."),
        ("periodic entry nightly", "Resume."),
    ]


def test_what_cannot_be_done_is_told(engine: Engine, root: Client) -> None:
    (told,) = messages_of(switch(root, "pause", "unknown"))
    assert told.startswith("Nothing was done: there is no periodic entry 'unknown'")
    periodic.schedule("alone", NOOP, "1h", overlap="skip")
    switch(root, "run", "alone")
    (told,) = messages_of(switch(root, "run", "alone"))
    assert told.startswith("Nothing was done: ")
    assert ScheduledTask.objects.count() == 1
    assert len(log_of_actions()) == 1


def test_looking_does_nothing(engine: Engine, root: Client) -> None:
    periodic.schedule("nightly", NOOP, "30 3 * * *")
    for name in ("run", "pause", "resume"):
        query = {"entry": "nightly", "confirmed": "yes"}
        assert root.get(f"{LIST}periodic/{name}/", query).status_code == 200
    assert root.get(f"{LIST}periodic/explode/", {"entry": "nightly"}).status_code == 404
    assert root.get(f"{LIST}periodic/run/").status_code == 404
    assert ScheduledTask.objects.count() == 0
    assert [entry.paused for entry in periodic.entries()] == [False]


def test_each_asks_for_its_permission(engine: Engine) -> None:
    periodic.schedule("nightly", NOOP, "30 3 * * *")
    runs = browser_of(person("runs", "view_scheduledtask", "run_periodictask"))
    pauses = browser_of(person("pauses", "view_scheduledtask", "pause_periodictask"))
    assert switch(runs, "pause", "nightly").status_code == 403
    assert switch(runs, "resume", "nightly").status_code == 403
    assert switch(pauses, "run", "nightly").status_code == 403
    assert ScheduledTask.objects.count() == 0
    assert [entry.paused for entry in periodic.entries()] == [False]
    assert switch(runs, "run", "nightly").status_code == 200
    assert switch(pauses, "pause", "nightly").status_code == 200
    strict = browser_of(person("root", superuser=True), enforce_csrf_checks=True)
    assert switch(strict, "resume", "nightly").status_code == 403
    assert [entry.paused for entry in periodic.entries()] == [True]


def test_names_are_escaped(engine: Engine, root: Client) -> None:
    periodic.schedule(EVIL, NOOP, "1h")
    page = root.get(DASHBOARD)
    assert EVIL in text_of(page)
    assert_escaped(page, "dashboard")
    assert_escaped(switch(root, "run", EVIL), "run")
    assert_escaped(root.get("/admin/dbtasks/periodictask/"), "list")
