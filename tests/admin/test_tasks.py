"""The pages about scheduled tasks: what they find, what can be done there, and who may do it."""

from __future__ import annotations

import html
import re
import uuid
from typing import Any

import pytest
from django.test import Client, override_settings

from dbtasks import operations
from dbtasks.engines import Engine
from dbtasks.models import ScheduledTask
from tests.admin_site import (
    EVERY_OPERATION,
    EVIL,
    LIST,
    assert_escaped,
    browser_of,
    log_of_actions,
    person,
)
from tests.engines import (
    EVERYTHING,
    ME,
    assert_consistent,
    columns,
    fresh_engine,
    new_task,
    outcome_of,
    put,
    statements,
    stored,
)

DOES = "tests.app.tasks.noop"


def failed(engine: Engine, error: str = "builtins.ValueError", **changes: Any) -> str:
    """The id of a new task that failed with that exception."""
    (id,) = put(engine, new_task(**changes))
    (claimed,) = engine.claim(ME, EVERYTHING, 1)
    assert claimed.id == id
    errors = f'[{{"exception_class_path":"{error}","traceback":"Traceback\\n{error}: no"}}]'
    engine.finish([outcome_of(claimed, status="FAILED", return_value=None, errors=errors)])
    return id


def one_of_each(engine: Engine) -> dict[str, str]:
    """The id of a task in each state."""
    found = {"failed": failed(engine)}
    for state in ("successful", "running"):
        put(engine, new_task())
        (claimed,) = engine.claim(ME, EVERYTHING, 1)
        found[state] = claimed.id
        if state == "successful":
            engine.finish([outcome_of(claimed)])
    (found["ready"],) = put(engine, new_task("email"))
    (found["deferred"],) = put(engine, new_task(due_in=3600))
    (found["paused"],) = put(engine, new_task(task_path="tests.app.tasks.add"))
    operations.pause(task="tests.app.tasks.add")
    claimed_rows = engine.claim(ME, EVERYTHING, 5)
    held = [row for row in claimed_rows if row.id == found["paused"]]
    if held:
        engine.park(ME, [(row.id, row.attempt, row.task_path) for row in held])
    engine.release(ME, [(row.id, row.attempt) for row in claimed_rows if row not in held])
    return found


def shown(response: Any) -> set[str]:
    """The ids of the tasks in a list."""
    assert response.status_code == 200, response.content[:2000]
    ids = re.findall(r'name="id" value="([0-9a-f-]{36})"', response.content.decode())
    return {uuid.UUID(id).hex for id in ids}


def text_of(response: Any) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", response.content.decode()))


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def confirm(client: Client, name: str, *ids: str, follow: bool = True, **values: object) -> Any:
    data = {"ids": ",".join(ids), "confirmed": "yes", **values}
    return client.post(f"{LIST}operate/{name}/", data, follow=follow)


def test_each_state_has_its_list(engine: Engine, root: Client) -> None:
    tasks = one_of_each(engine)
    assert shown(root.get(LIST)) == set(tasks.values())
    for state, id in tasks.items():
        assert shown(root.get(LIST, {"state": state})) == {id}, state


def test_filters_find_what_they_say(engine: Engine, root: Client) -> None:
    mail = failed(engine, queue="email", task_path="shop.tasks.send", error="smtplib.SMTPError")
    other = failed(engine)
    (ready,) = put(engine, new_task("email", task_path="shop.tasks.send"))
    for query, expected in (
        ({"queue": "email"}, {mail, ready}),
        ({"task": "shop.tasks.send"}, {mail, ready}),
        ({"task": "shop.tasks"}, set()),
        ({"text": "tasks.se"}, {mail, ready}),
        ({"error": "smtplib.SMTPError"}, {mail}),
        ({"state": "failed", "queue": "default"}, {other}),
        ({"state": "ready", "queue": "email"}, {ready}),
        ({"worker": ME.worker}, {mail, other}),
        ({"within": "hour"}, {mail, other, ready}),
        ({"state": "nonsense", "within": "for ever"}, {mail, other, ready}),
    ):
        assert shown(root.get(LIST, query)) == expected, query


def test_an_id_leads_to_its_task(engine: Engine, root: Client) -> None:
    id = failed(engine)
    response = root.get(LIST, {"text": str(uuid.UUID(id))})
    assert response["Location"] == f"{LIST}{uuid.UUID(id)}/change/"


def test_lists_go_on_where_they_ended(engine: Engine, root: Client) -> None:
    ids = put(engine, *(new_task() for _ in range(250)))
    for query in ({}, {"state": "ready"}):
        seen: list[str] = []
        address = LIST
        while address:
            response = root.get(address, query if address == LIST else None)
            seen += shown(response)
            address = response.context["following"]
        assert sorted(seen) == sorted(ids), query


def test_a_list_costs_few_statements_and_counts_nothing(engine: Engine, root: Client) -> None:
    for _ in range(3):
        failed(engine)
    put(engine, *(new_task() for _ in range(120)))
    for state in ("", "ready", "failed", "deferred", "running"):
        with statements() as seen:
            root.get(LIST, {"state": state})
        ours = [sql for sql, _ in seen if "dbtasks_" in sql]
        assert len(ours) <= 8, ours
        for sql in ours:
            assert "COUNT(" not in sql.upper() or "LIMIT" in sql.upper(), sql


def test_nonsense_in_a_query_is_no_error(engine: Engine, root: Client) -> None:
    failed(engine)
    for query in (
        {"before": "nonsense"},
        {"offset": "-1"},
        {"offset": "9" * 30, "state": "ready"},
        {"offset": "²"},
        {"text": "\0"},
        {"queue": "\ud800".encode("utf-8", "surrogatepass"), "task": "x" * 5000},
        {"worker": "%' OR 1=1 --", "error": "'"},
        {"p": "7", "o": "1", "status__exact": "FAILED"},
    ):
        assert root.get(LIST, query).status_code == 200, query
    assert root.get(LIST, {"backend": "nonsense"}).status_code == 404


def test_a_task_shows_all_that_is_known(engine: Engine, root: Client) -> None:
    policy = '{"max_attempts":5,"backoff":[1.0,120.0],"retain":604800.0}'
    id = failed(engine, args='["ada",1]', kwargs='{"vip":true}', policy=policy)
    response = root.get(f"{LIST}{uuid.UUID(id)}/change/")
    text = text_of(response)
    for part in (
        '"ada"',
        '"vip": true',
        "builtins.ValueError: no",
        ME.worker,
        DOES,
        "Max attempts",
        "1.0 s, then 2 min",
        "7 d",
    ):
        assert part in text, part
    assert [event.what for event in response.context["timeline"]] == [
        "Enqueued",
        "First started",
        "Failed",
    ]


def test_a_task_that_is_gone_is_told(engine: Engine, root: Client) -> None:
    for id in (str(uuid.uuid4()), "nonsense", EVIL):
        response = root.get(f"{LIST}{id.replace('/', '_2F')}/change/")
        assert response.status_code == 404
        assert EVIL not in response.content.decode()


def test_giant_arguments_and_tracebacks_are_cut(engine: Engine, root: Client) -> None:
    giant = "x" * 3_000_000
    id = failed(engine, args=f'["{giant}"]')
    trace = "first" + "y" * 3_000_000 + "last"
    ScheduledTask.objects.filter(pk=id).update(
        errors=[{"exception_class_path": "E", "traceback": trace}] * 2, return_value=giant
    )
    for address in (LIST, f"{LIST}?error=E", f"{LIST}{uuid.UUID(id)}/change/"):
        response = root.get(address)
        assert response.status_code == 200
        assert len(response.content) < 700_000, address
    assert "3,000,004 characters" in text_of(response)


def test_a_long_traceback_shows_how_it_began_and_ended(engine: Engine, root: Client) -> None:
    id = failed(engine)
    trace = "first" + "y" * 100_000 + "last"
    ScheduledTask.objects.filter(pk=id).update(
        errors=[{"exception_class_path": "E", "traceback": trace}]
    )
    text = text_of(root.get(f"{LIST}{uuid.UUID(id)}/change/"))
    assert "firstyyy" in text
    assert "yyylast" in text
    assert "80,009 characters left out" in text


@pytest.mark.parametrize("errors", [{"a": 1}, "text", 7, [], [None, 3, [1]], [{"traceback": 1}]])
def test_a_row_written_by_hand_can_be_looked_at(
    engine: Engine, root: Client, errors: object
) -> None:
    id = failed(engine)
    ScheduledTask.objects.filter(pk=id).update(
        errors=errors, args=errors, worker_ids=errors, policy="nonsense"
    )
    for address in (LIST, f"{LIST}{uuid.UUID(id)}/change/"):
        assert root.get(address).status_code == 200


# What can be done


def test_every_operation_does_what_it_says_and_is_logged(engine: Engine, root: Client) -> None:
    tasks = one_of_each(engine)
    response = confirm(root, "retry", tasks["failed"])
    assert messages_of(response) == ["1 task retried."]
    assert response.request["PATH_INFO"] == f"{LIST}{uuid.UUID(tasks['failed'])}/change/"
    assert stored(tasks["failed"]).status == "READY"
    assert messages_of(confirm(root, "run", tasks["deferred"])) == ["1 task made ready."]
    assert stored(tasks["deferred"]).due_at is None
    assert messages_of(confirm(root, "priority", tasks["ready"], priority="7")) == [
        "1 task given another priority."
    ]
    assert stored(tasks["ready"]).priority == 7
    assert messages_of(confirm(root, "queue", tasks["ready"], queue="slow")) == ["1 task moved."]
    assert stored(tasks["ready"]).queue == "slow"
    assert messages_of(confirm(root, "cancel", tasks["ready"], grace="5")) == ["1 task cancelled."]
    assert stored(tasks["ready"]).status == "FAILED"
    response = confirm(root, "delete", tasks["ready"])
    assert messages_of(response) == ["1 task deleted."]
    assert response.request["PATH_INFO"] == LIST
    assert not ScheduledTask.objects.filter(pk=tasks["ready"]).exists()
    (told,) = messages_of(confirm(root, "cancel", tasks["running"], grace="5"))
    assert told == "1 running task asked to end; look again in a few seconds."
    assert [message for _, _, message in log_of_actions()] == [
        "Retry.",
        "Run now.",
        "Change priority (priority 7).",
        "Change queue (queue slow).",
        "Cancel (grace 5.0).",
        "Delete.",
        "Cancel (grace 5.0).",
    ]
    assert log_of_actions()[0][0] == str(uuid.UUID(tasks["failed"]))
    for row in ScheduledTask.objects.all():
        assert_consistent(row)


def test_a_second_click_is_refused_and_told(engine: Engine, root: Client) -> None:
    id = failed(engine)
    confirm(root, "retry", id)
    (told,) = messages_of(confirm(root, "retry", id))
    assert told.startswith("1 task not retried, ")
    assert len(log_of_actions()) == 1


def test_a_worker_that_was_faster_wins_and_that_is_told(engine: Engine, root: Client) -> None:
    (id,) = put(engine, new_task())
    page = root.get(f"{LIST}operate/delete/", {"id": id})
    assert "1 ready" in text_of(page)
    engine.claim(ME, EVERYTHING, 1)  # between the question and the answer
    (told,) = messages_of(confirm(root, "delete", id))
    assert told.startswith("1 task not deleted, ")
    assert stored(id).claimed_by == ME.worker
    assert log_of_actions() == []


def test_many_are_done_and_the_others_named_with_the_reason(engine: Engine, root: Client) -> None:
    ids = [failed(engine) for _ in range(3)]
    (ready,) = put(engine, new_task())
    done, refused = messages_of(confirm(root, "retry", *ids, ready, query="state=failed"))
    assert done == "3 tasks retried."
    assert refused.startswith("1 task not retried, ")
    assert ready[:8] in refused
    assert len(log_of_actions()) == 3


def test_all_that_a_filter_finds(engine: Engine, root: Client) -> None:
    ids = [failed(engine, error="a.B") for _ in range(120)]
    other = failed(engine)
    page = root.post(
        f"{LIST}operate/retry/", {"all": "1", "query": "state=failed&error=a.B", "id": ids[:2]}
    )
    assert page.context["total"] == 120
    confirm(root, "retry", *page.context["ids"].split(","), query="state=failed&error=a.B")
    assert stored(other).status == "FAILED"
    assert {stored(id).status for id in ids} == {"READY"}


def test_all_means_the_pages_before_this_one_too(engine: Engine, root: Client) -> None:
    ids = put(engine, *(new_task() for _ in range(3)))
    page = root.post(
        f"{LIST}operate/delete/", {"all": "1", "query": f"state=ready&offset=2&before={ids[0]}"}
    )
    assert page.context["total"] == 3


def test_the_history_of_a_task_has_what_was_done(engine: Engine, root: Client) -> None:
    id = failed(engine)
    confirm(root, "retry", id)
    history = root.get(f"{LIST}{uuid.UUID(id)}/history/")
    assert history.status_code == 200
    assert "Retry." in text_of(history)


def test_the_group_of_a_dashboard_is_asked_about(engine: Engine, root: Client) -> None:
    failed(engine, error="a.B")
    page = root.get(f"{LIST}operate/retry/", {"all": "1", "query": f"task={DOES}&error=a.B"})
    assert page.context["total"] == 1


def test_nothing_selected_is_told(engine: Engine, root: Client) -> None:
    response = root.post(f"{LIST}operate/retry/", {"query": ""}, follow=True)
    assert messages_of(response) == ["Nothing was selected, so nothing was done."]


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("priority", {"priority": "101"}, "less than or equal to 100"),
        ("priority", {"priority": "high"}, "whole number"),
        ("priority", {}, "required"),
        ("queue", {"queue": "a,b"}, "not possible"),
        ("queue", {"queue": "x" * 129}, "at most 128"),
        ("cancel", {"grace": "-1"}, "greater than or equal to 0"),
    ],
)
def test_bad_input_is_refused_beside_its_field(
    engine: Engine, root: Client, name: str, values: dict[str, str], told: str
) -> None:
    (id,) = put(engine, new_task())
    before = columns(id)
    response = confirm(root, name, id, **values)
    assert told in text_of(response)
    assert columns(id) == before
    assert log_of_actions() == []


def test_what_is_no_id_is_a_bad_request(engine: Engine, root: Client) -> None:
    assert confirm(root, "retry", "nonsense").status_code == 400
    too_many = ",".join(str(uuid.uuid4()) for _ in range(1001))
    assert confirm(root, "retry", too_many).status_code == 400
    assert root.get(f"{LIST}operate/explode/").status_code == 404


# Who may do it


def test_looking_does_nothing(engine: Engine, root: Client) -> None:
    """No GET changes a row, also with all that a POST would need; nor does a POST that asks."""
    tasks = one_of_each(engine)
    before = [columns(id) for id in tasks.values()]
    for name in EVERY_OPERATION:
        values = {"ids": ",".join(tasks.values()), "priority": "1", "queue": "q", "grace": "0"}
        assert root.get(f"{LIST}operate/{name}/", {**values, "confirmed": "yes"}).status_code == 200
        assert root.post(f"{LIST}operate/{name}/", values).status_code == 200
    assert [columns(id) for id in tasks.values()] == before
    assert log_of_actions() == []


@pytest.mark.parametrize("name", EVERY_OPERATION)
def test_each_operation_asks_for_its_own_permission(engine: Engine, name: str) -> None:
    tasks = one_of_each(engine)
    before = [columns(id) for id in tasks.values()]
    others = [permission for key, permission in EVERY_OPERATION.items() if key != name]
    allowed_all_else = browser_of(person("other", "view_scheduledtask", *others))
    may_not_look = browser_of(person("blind", EVERY_OPERATION[name]))
    values = {"priority": "1", "queue": "q", "grace": "0"}
    for client in (allowed_all_else, may_not_look):
        assert confirm(client, name, *tasks.values(), **values).status_code == 403
        assert client.get(f"{LIST}operate/{name}/", {"id": tasks["ready"]}).status_code == 403
    assert [columns(id) for id in tasks.values()] == before
    page = allowed_all_else.get(LIST).content.decode()
    assert f"operate/{name}/" not in page
    permitted = browser_of(person("permitted", "view_scheduledtask", EVERY_OPERATION[name]))
    assert f"operate/{name}/" in permitted.get(LIST).content.decode()
    assert confirm(permitted, name, *tasks.values(), **values).status_code == 200
    assert log_of_actions()


def test_who_may_look_sees_no_buttons(engine: Engine) -> None:
    id = failed(engine)
    client = browser_of(person("guest", "view_scheduledtask"))
    for address in (LIST, f"{LIST}{uuid.UUID(id)}/change/"):
        response = client.get(address)
        assert response.status_code == 200
        assert "operate/" not in response.content.decode()


def test_strangers_are_sent_to_the_login(engine: Engine) -> None:
    id = failed(engine)
    before = columns(id)
    client = Client()
    for address in (LIST, f"{LIST}{uuid.UUID(id)}/change/", f"{LIST}operate/retry/?id={id}"):
        assert client.get(address)["Location"].startswith("/admin/login/")
    response = confirm(client, "delete", id, follow=False)
    assert response["Location"].startswith("/admin/login/")
    assert columns(id) == before


def test_staff_without_any_permission_sees_nothing(engine: Engine) -> None:
    id = failed(engine)
    client = browser_of(person("staff"))
    for address in (LIST, f"{LIST}{uuid.UUID(id)}/change/"):
        assert client.get(address).status_code == 403


def test_a_post_from_another_site_is_refused(engine: Engine) -> None:
    id = failed(engine)
    before = columns(id)
    client = browser_of(person("root", superuser=True), enforce_csrf_checks=True)
    assert confirm(client, "delete", id).status_code == 403
    assert columns(id) == before


def test_rows_cannot_be_edited_or_deleted_behind_the_engine(engine: Engine, root: Client) -> None:
    id = failed(engine)
    before = columns(id)
    row = f"{LIST}{uuid.UUID(id)}/"
    assert root.post(f"{row}change/", {"status": "READY"}).status_code == 403
    assert root.post(f"{row}delete/", {"post": "yes"}).status_code == 403
    assert root.get(f"{LIST}add/").status_code == 403
    root.post(LIST, {"action": "delete_selected", "_selected_action": id, "post": "yes"})
    assert columns(id) == before


# What hostile rows say


def test_what_rows_say_is_escaped_on_every_page(engine: Engine, root: Client) -> None:
    id = failed(engine, task_path=f"a.{EVIL}", queue=EVIL, args=f'["{EVIL[:20]}"]')
    ScheduledTask.objects.filter(pk=id).update(
        args=[EVIL],
        kwargs={EVIL: EVIL},
        return_value=EVIL,
        periodic=EVIL,
        worker_ids=[EVIL],
        claimed_by=None,
        errors=[{"exception_class_path": EVIL, "traceback": EVIL}],
    )
    pages = [
        LIST,
        f"{LIST}?state=failed",
        f"{LIST}{uuid.UUID(id)}/change/",
        f"{LIST}operate/retry/?id={id}",
        f"{LIST}operate/delete/?id={id}",
    ]
    for parameter in ("state", "queue", "task", "text", "worker", "error", "within"):
        pages.append(f"{LIST}?{parameter}={EVIL.replace('#', '')}")
    for page in pages:
        response = root.get(page)
        assert response.status_code == 200, page
        assert_escaped(response, page)
    for name in ("retry", "delete", "cancel"):
        response = confirm(root, name, id, query=f"queue={EVIL}", grace="1")
        assert_escaped(response, name)


# Several backends

TWO = {
    "default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": [], "OPTIONS": {}},
    "reports": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": ["a", "b"], "OPTIONS": {}},
    "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
}


@override_settings(TASKS=TWO)
def test_each_backend_has_its_own_lists(engine: Engine, root: Client) -> None:
    (mine,) = put(engine, new_task())
    (theirs,) = put(fresh_engine("reports"), new_task("a"))
    assert shown(root.get(LIST)) == {mine}
    page = root.get(LIST, {"backend": "reports"})
    assert shown(page) == {theirs}
    assert "?backend=reports" in page.content.decode()
    assert "dummy" not in [alias for alias, _, _ in page.context["backends"]]
    assert root.get(LIST, {"backend": "dummy"}).status_code == 404
    task = root.get(f"{LIST}{uuid.UUID(theirs)}/change/").content.decode()
    assert f"operate/delete/?backend=reports&amp;id={uuid.UUID(theirs)}" in task
    assert messages_of(confirm(root, "delete", theirs))[0].startswith("1 task not deleted")
    response = root.post(
        f"{LIST}operate/queue/?backend=reports",
        {"ids": theirs, "confirmed": "yes", "queue": "b"},
        follow=True,
    )
    assert messages_of(response) == ["1 task moved."]
    assert stored(theirs).queue == "b"


@override_settings(TASKS={"default": TWO["dummy"]})
def test_without_a_backend_of_ours_the_pages_say_so(engine: Engine, root: Client) -> None:
    assert root.get(LIST).status_code == 404
    assert root.get(f"{LIST}{uuid.uuid4()}/change/").status_code == 404
