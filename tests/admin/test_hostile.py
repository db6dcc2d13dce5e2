"""Rows that somebody wrote by hand do not close the pages: least of all those with no such time."""

from __future__ import annotations

import contextlib
import datetime
import io
from typing import Any

import pytest
from django.core.management import call_command
from django.db.models import Count, Min
from django.test import Client

from dbtasks.engines import Engine
from dbtasks.fields import EARLIEST, LATEST
from dbtasks.models import ScheduledTask
from tests.admin_site import DASHBOARD, LIST, LIVE
from tests.engines import new_task, put
from tests.test_hostile_rows import ONLY_SQLITE, SQL, Row, rows_for, write
from tests.test_hostile_tables import write_all

FAR = ["'infinity'", "'-infinity'", "'4713-01-01 00:00:00 BC'", "'294276-12-31'"]
NO_TIMES = {"postgresql": FAR, "sqlite": ["'yesterday'", "'2024-99-99'", "5", "''"]}
ENDED = {"status": "FAILED", "ready_queue": None}


def times_of(database: str) -> list[dict[str, Any]]:
    """Each time that Python has not, in each state of a row."""
    rows: list[dict[str, Any]] = []
    for text in NO_TIMES.get(database, []):
        time = SQL(text)
        rows += [
            {"enqueued_at": time},
            {"run_after": time, "last_attempted_at": time},
            {"due_at": time, "ready_queue": None},
            {**ENDED, "enqueued_at": time, "started_at": time, "finished_at": time},
            {**ENDED, "last_attempted_at": time, "finished_at": time},
            {"status": "RUNNING", "ready_queue": None, "claim_node": "n", "claimed_by": "w"}
            | {"last_attempted_at": time, "started_at": time},
        ]
    return rows


@pytest.fixture
def hostile(engine: Engine, database: str) -> set[str]:
    """The ids of the rows that all pages must survive."""
    for row in rows_for(database):
        if row not in ONLY_SQLITE:  # no column of numbers or ids has text elsewhere
            write(row)
    for columns in times_of(database):
        write(Row(columns, None))
    return set(put(engine, new_task()))


PAGES = [DASHBOARD, LIVE, LIST, *(f"{LIST}?state={state}" for state in ("ready", "deferred"))]
PAGES += [f"{LIST}?state={state}" for state in ("running", "failed", "paused")]


@pytest.mark.parametrize("page", PAGES)
def test_pages_open(hostile: set[str], root: Client, page: str) -> None:
    assert root.get(page).status_code == 200


def test_each_of_them_has_a_page_and_can_be_deleted(hostile: set[str], root: Client) -> None:
    for id in ScheduledTask.objects.values_list("id", flat=True):
        assert root.get(f"{LIST}{id}/change/").status_code == 200, id
        assert root.get(f"{LIST}operate/delete/", {"id": id}).status_code == 200, id


@pytest.mark.parametrize("line", ["status", "list --limit 1000", "doctor"])
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_commands_answer(hostile: set[str], line: str, json: list[str]) -> None:
    output = io.StringIO()
    with contextlib.suppress(SystemExit):  # something is wrong, they say
        call_command("dbtasks", *line.split(), *json, stdout=output)
    assert output.getvalue()


def test_a_time_that_python_has_not_is_the_nearest_that_it_has(db: None, database: str) -> None:
    if database != "postgresql":
        pytest.skip("no infinity here")
    for text, expected in (("'infinity'", LATEST), ("'-infinity'", EARLIEST)):
        write(Row({"enqueued_at": SQL(text)}, None))
        row = ScheduledTask.objects.get()
        assert row.enqueued_at == expected
        assert row.started_at is None
        row.delete()


def test_times_can_still_be_compared_and_summed_up(db: None) -> None:
    write(Row({}, None))
    newest = ScheduledTask.objects.order_by("-enqueued_at").values("enqueued_at")[:1]
    assert ScheduledTask.objects.filter(enqueued_at=newest).count() == 1
    assert ScheduledTask.objects.values("enqueued_at").annotate(Count("id")).get()["id__count"] == 1
    (first,) = ScheduledTask.objects.aggregate(Min("enqueued_at")).values()
    assert first == ScheduledTask.objects.get().enqueued_at


def test_a_time_within_reach_is_read_as_it_is(db: None) -> None:
    moment = datetime.datetime(2026, 1, 31, 12, 30, 15, 123456, tzinfo=datetime.UTC)
    ScheduledTask.objects.create(task_path="a.b", backend="default", queue="q", enqueued_at=moment)
    assert ScheduledTask.objects.get(enqueued_at=moment).enqueued_at == moment


TABLES = ("periodictask", "occurrence", "node", "worker")
# Where SQLite has text that is not UTF-8 in a row, Django's ORM cannot read the table.
UNREADABLE = {("sqlite", "periodictask"), ("sqlite", "occurrence")}


@pytest.mark.parametrize("page", [DASHBOARD, LIVE])
def test_rows_of_other_tables_do_not_close_the_dashboard(root: Client, page: str) -> None:
    write_all()
    assert root.get(page).status_code == 200


@pytest.mark.parametrize("table", TABLES)
def test_rows_of_a_table_do_not_close_its_page(root: Client, table: str, database: str) -> None:
    if (database, table) in UNREADABLE:
        pytest.skip("the ORM cannot read text that is not UTF-8")
    write_all()
    assert root.get(f"/admin/dbtasks/{table}/").status_code == 200
