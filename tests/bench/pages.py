"""How long operators wait: every page, command and view beside millions of rows.

    python -m tests.servers postgresql -- .venv/bin/python -m tests.bench.pages
    python -m tests.servers sqlite -- .venv/bin/python -m tests.bench.pages --rows 100000

The times are the best of several: the pages through Django's test client as a superuser, the
commands in this process, so without the start of Python. Tasks are made as in tests/bench/busy.py.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import django

from tests.bench import busy
from tests.bench.databases import Database
from tests.bench.machine import describe
from tests.bench.ours import dbtasks
from tests.bench.table import render

ROWS = 5_000_000
TIMES = 4
PERSON = "pages"
VENDORS = {"mysql": "mariadb"}
LISTS = {
    "unfiltered": "",
    **{
        f"state {state}": f"state={state}"
        for state in ("ready", "deferred", "paused", "running", "failed", "successful")
    },
    "queue": "queue=queue7",
    "queue, one old task": f"queue={busy.RARE_QUEUE}",
    "queue, ready": "state=ready&queue=queue7",
    "queue, failed": "state=failed&queue=queue0",
    "task": "task=shop.tasks.task3",
    "task, one old": f"task={busy.RARE_TASK}",
    "part of a path, one old": "text=rare",
    "node": "worker=web-1",
    "node, one old task": f"worker={busy.RARE_NODE}",
    "last hour": "within=hour",
    "last week, failed": "within=week&state=failed",
    "exception": "error=builtins.ValueError",
}
COMMANDS = (
    "status",
    "list",
    "list --status ready",
    "list --status failed",
    "list --status failed --queue queue0",
    f"list --queue {busy.RARE_QUEUE}",
    f"list --task {busy.RARE_TASK}",
    f"list --node {busy.RARE_NODE}",
    "list --since 1h",
    "nodes",
    "periodic",
    "doctor",
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=ROWS, help=f"default: {ROWS:,}")
    parser.add_argument("--only", default="", metavar="TEXT", help="what has this in its name")
    parser.add_argument("--keep", action="store_true", help="the rows are there: do not make any")
    options = parser.parse_args(arguments)
    url = os.environ.get("DBTASKS_TEST_DATABASE_URL", "")
    if not url:
        parser.error("it needs a database; see the first lines of --help")
    scheme = urlsplit(url).scheme
    database = Database(VENDORS.get(scheme, scheme), url)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    if not options.keep:
        prepare(database, options.rows)
    found = measured(options.only)
    print("\n" + render(["", "this machine"], describe()))
    print(f"\n{options.rows:,} tasks on {database.vendor}\n")
    print(render(["what", "ms", "statements", "answer"], found))
    return 0


def prepare(database: Database, count: int) -> None:
    contender = dbtasks(database)
    contender.migrate()
    now = datetime.datetime.now(datetime.UTC)
    begin = time.monotonic()
    busy.fill(contender, count, now)
    busy.surround(now)
    database.settle()
    print(f"{count:,} rows in {time.monotonic() - begin:.0f} s", flush=True)


def measured(only: str) -> list[list[str]]:
    from tests.admin_site import admin_site, browser_of, forget_people, person

    found = []
    with admin_site():
        forget_people()
        for name, ask in cases(browser_of(person(PERSON, superuser=True))).items():
            if only in name:
                milliseconds, statements, answer = best(ask)
                found.append([name, f"{milliseconds:,.0f}", str(statements), answer])
                print(f"{milliseconds:8,.0f} ms {statements:3} {name}: {answer}", flush=True)
        forget_people()
    return found


def cases(client: Any) -> dict[str, Callable[[], str]]:
    from tests.admin_site import DASHBOARD, LIST, LIVE

    failed = task_of("FAILED")
    pages = {
        "dashboard": DASHBOARD,
        "dashboard, live": LIVE,
        "task, failed": f"{LIST}{failed}/change/",
        "task, running": f"{LIST}{task_of('RUNNING')}/change/",
        **{f"list, {name}": f"{LIST}?{query}" for name, query in LISTS.items()},
        "nodes": "/admin/dbtasks/node/",
        "workers": "/admin/dbtasks/worker/",
        "periodic": "/admin/dbtasks/periodictask/",
        "occurrences": "/admin/dbtasks/occurrence/",
    }
    from dbtasks import views

    return {
        **{name: page(client, path) for name, path in pages.items()},
        **{f"dbtasks {line}": command(line) for line in COMMANDS},
        "healthz": view(views.healthz),
        "metrics": view(views.metrics),
    }


def task_of(status: str) -> str:
    from dbtasks.models import ScheduledTask

    return str(ScheduledTask.objects.filter(status=status).values_list("id", flat=True)[0])


def page(client: Any, path: str) -> Callable[[], str]:
    def ask() -> str:
        response = client.get(path)
        context = getattr(response, "context", None) or {}
        told = "" if "lines" not in context else f", {len(context['lines'])} tasks"
        return f"{response.status_code}, {len(response.content) / 1000:.0f} kB{told}"

    return ask


def command(line: str) -> Callable[[], str]:
    from django.core.management import call_command

    def ask() -> str:
        output, code = io.StringIO(), "0"
        try:
            call_command("dbtasks", *line.split(), stdout=output, stderr=output)
        except SystemExit as ended:
            code = str(ended.code)
        return f"exit {code}, {len(output.getvalue().splitlines())} lines"

    return ask


def view(function: Callable[[Any], Any]) -> Callable[[], str]:
    from django.contrib.auth.models import User
    from django.test import RequestFactory

    def ask() -> str:
        request = RequestFactory().get("/")
        request.user = User(is_staff=True)
        response = function(request)
        return f"{response.status_code}, {len(response.content) / 1000:.0f} kB"

    return ask


def best(ask: Callable[[], str]) -> tuple[float, int, str]:
    """Milliseconds, statements, and what was answered."""
    times, answer, counted = [], "", 0
    for _ in range(TIMES):
        with counting() as seen:
            begin = time.perf_counter()
            answer = ask()
            times.append(time.perf_counter() - begin)
        counted = len(seen)
    return min(times) * 1000, counted, answer


@contextlib.contextmanager
def counting() -> Iterator[list[str]]:
    """The statements of this thread."""
    from django.db import connection

    seen: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield seen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
