"""`manage.py dbtasks`: what it prints for people, pipes and programs, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, ProgrammingError

from dbtasks.console import subcommands
from dbtasks.console.keys import keys
from dbtasks.console.output import Output, cell, duration, one_line, printable
from dbtasks.engines import Engine
from dbtasks.models import ScheduledTask
from tests.engines import EVERYTHING, ME, fresh_engine, new_task, node, outcome_of, put


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Said(tuple):
    """The exit code, stdout and stderr of a call."""

    code = property(lambda self: self[0])
    out = property(lambda self: self[1])
    err = property(lambda self: self[2])

    @property
    def lines(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]

    @property
    def json(self):
        return json.loads(self.out)


def dbtasks(*arguments: object, terminal: bool = False) -> Said:
    out, err = Terminal() if terminal else io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command("dbtasks", *map(str, arguments), stdout=out, stderr=err)
    except CommandError as error:
        code, _ = error.returncode, err.write(str(error))
    except SystemExit as left:
        code = left.code
    return Said((code, out.getvalue(), err.getvalue()))


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


def done(engine: Engine, **changes) -> str:
    """The id of a row that is finished."""
    (claimed,) = engine.claim(ME, EVERYTHING)
    engine.finish([outcome_of(claimed, **changes)])
    return str(uuid.UUID(claimed.id))


@pytest.mark.once
def test_each_subcommand_says_what_it_does():
    for name, subcommand in subcommands().items():
        assert subcommand.HELP.endswith("."), name
    assert {"status", "list", "show"} <= set(subcommands())


# list


def test_list_is_newest_first_and_filtered(engine):
    ids = [str(uuid.UUID(id)) for id in put(engine, new_task("a"), new_task("b"), new_task("a"))]
    done(engine, status="FAILED")
    assert [line[0] for line in dbtasks("list").lines] == ids[::-1]
    assert [line[0] for line in dbtasks("list", "--queue", "a", "--status", "ready").lines] == [
        ids[2]
    ]
    assert dbtasks("list", "--status", "failed").lines[0][:4] == [ids[0], "failed", "a", "0"]
    assert dbtasks("list", "--status", "running") == Said((1, "", ""))
    assert len(dbtasks("list", "--task", "tests.app.*").lines) == 3
    assert dbtasks("list", "--task", "tests.app").code == 1
    assert len(dbtasks("list", "--since", "1h").lines) == 3
    assert dbtasks("list", "--since", "2999-01-01").code == 1
    assert dbtasks("list", "--node", "nobody").code == 1


def test_list_goes_page_by_page(engine):
    ids = [str(uuid.UUID(id)) for id in put(engine, *(new_task() for _ in range(5)))][::-1]
    said = dbtasks("list", "--limit", 2, terminal=True)
    assert said.out.splitlines()[0].startswith("ID ")
    assert f"--before {ids[1]}" in said.err
    page = dbtasks("list", "--limit", 2, "--before", ids[1])
    assert [line[0] for line in page.lines] == ids[2:4]
    assert dbtasks("list", "--limit", 2, "--before", ids[3], terminal=True).err == ""


def test_list_as_json(engine):
    put(engine, new_task(priority=3))
    (row,) = dbtasks("list", "--json").json
    assert (row["status"], row["priority"], row["finished"]) == ("ready", 3, None)


def test_list_finds_what_a_node_runs_and_ran(engine):
    from dbtasks.engines import Claimant

    put(engine, new_task(), new_task())
    engine.renew_lease(node("n1"))
    (claimed,) = engine.claim(Claimant("n1", "web-1.abc"), EVERYTHING)
    assert len(dbtasks("list", "--node", "web").lines) == 1
    assert len(dbtasks("list", "--node", "n1's name").lines) == 1
    who = Claimant("n1", "web-1.abc")
    engine.finish([outcome_of(claimed, who)])
    assert len(dbtasks("list", "--node", "web").lines) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ("list", "--limit", 0),
        ("list", "--before", "abc"),
        ("list", "--since", "yesterday"),
        ("list", "--since", "2030-99-99"),
        ("list", "--status", "odd"),
        ("show", "abc"),
        ("list", "--backend", "nobody"),
    ],
)
def test_wrong_usage_is_told_in_one_line(engine, wrong):
    said = dbtasks(*wrong)
    assert said.code in (1, 2)
    assert said.out == ""
    assert said.err or wrong[2] == "odd"


# show


def test_show_tells_all(engine):
    put(engine, new_task(args='["\\u001b[31m"]', kwargs='{"a":1}'))
    errors = '[{"exception_class_path":"a.B","traceback":"one\\ntwo \\u001b[2J"}]'
    id = done(engine, status="FAILED", errors=errors)
    said = dbtasks("show", id, terminal=True)
    assert said.code == 0
    assert "\x1b" not in said.out
    assert "error 1: a.B" in said.out
    assert "two \\x1b[2J" in said.out
    (row,) = dbtasks("show", id, "--json").json
    assert (row["args"], row["kwargs"], row["status"]) == (["\x1b[31m"], {"a": 1}, "failed")
    assert row["workers"] == [ME.worker]
    assert ["status", "failed"] in dbtasks("show", id).lines


def test_show_says_which_task_does_not_exist(engine):
    (id,) = put(engine, new_task())
    missing = uuid.uuid4()
    said = dbtasks("show", id, missing)
    assert said.code == 1
    assert f"{missing} does not exist" in said.err
    assert str(uuid.UUID(id)) in said.out


# status


def test_status_of_nothing_is_a_warning(engine):
    said = dbtasks("status", terminal=True)
    assert said.code == 1
    assert "no node is running" in said.out
    assert "0 ready" in said.out


def test_status_tells_nodes_queues_and_troubles(engine):
    engine.renew_lease(node())
    assert dbtasks("status").code == 0
    put(engine, new_task("email"), new_task("email"))
    engine.pause("queue", "email", "ada", "why not")
    said = dbtasks("status", "--json")
    assert said.code == 1
    assert said.json["counts"] == {"ready": 2, "running": 0, "deferred": 0, "paused": 0}
    assert [row["state"] for row in said.json["nodes"]] == ["running"]
    (queue,) = said.json["queues"]
    assert (queue["queue"], queue["ready"], queue["paused"]) == ("email", 2, True)
    (trouble,) = said.json["troubles"]
    assert trouble["code"] == "queue-paused"
    assert trouble["advice"].endswith(": manage.py dbtasks resume --queue email")
    assert ["count", "ready", "2"] in dbtasks("status").lines
    assert "email" in dbtasks("status", terminal=True).out


# The database is not as it should be


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OperationalError("connection refused"), "connection refused"),
        (ProgrammingError('relation "x" does not exist'), "manage.py migrate"),
    ],
)
def test_a_database_that_cannot_be_asked_is_no_traceback(engine, monkeypatch, error, told):
    def broken(*arguments, **more):
        raise error

    monkeypatch.setattr(ScheduledTask.objects, "using", broken)
    said = dbtasks("list")
    assert (said.code, said.out) == (1, "")
    assert told in said.err


def started(*arguments: str, stdout: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "django", "dbtasks", *arguments]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def test_a_real_pipe_that_nobody_reads_is_silent(engine):
    put(engine, new_task())
    reader, writer = os.pipe()
    os.close(reader)
    process = started("list", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_full_disk_is_told_in_one_line(engine):
    put(engine, new_task())
    with open("/dev/full", "w") as full:
        process = started("list", stdout=full.fileno())
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert "cannot write" in err


# Output


@pytest.mark.once
def test_a_pipe_that_nobody_reads_is_silent(monkeypatch, engine):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    put(engine, new_task())
    call_command("dbtasks", "list", stdout=Closed(), stderr=io.StringIO())


@pytest.mark.once
def test_what_is_printed_fits_into_the_stream():
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    Output(stream, io.StringIO()).line("grün")
    stream.flush()
    assert buffer.getvalue() == b"gr\\xfcn\n"


@pytest.mark.once
def test_cells_are_one_line_without_control_characters():
    assert one_line("a\tb\nc\x1b[0m\\") == "a\\tb\\nc\\x1b[0m\\\\"
    assert printable("a\x1bb\n\tc") == "a\\x1bb\n\tc"
    assert (cell(None), cell(None, exact=True)) == ("-", "")
    assert (cell(True), cell(1.50), cell({"a": [1]})) == ("yes", "1.5", '{"a": [1]}')


@pytest.mark.once
@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0.0s"),
        (9.96, "10.0s"),
        (59, "59s"),
        (61, "1m 1s"),
        (3600, "1h 0m"),
        (90_061, "1d 1h"),
        (-61, "-1m 1s"),
    ],
)
def test_durations_are_told_in_two_units(seconds, told):
    assert duration(seconds) == told


# Operations


def ready(engine: Engine, count: int = 1, **changes) -> list[str]:
    return [str(uuid.UUID(id)) for id in put(engine, *(new_task(**changes) for _ in range(count)))]


def test_retry_and_cancel_tell_each_id_its_outcome(engine):
    failed, waiting = ready(engine, 2)
    done(engine, status="FAILED")
    missing = str(uuid.uuid4())
    said = dbtasks("retry", failed, waiting, missing)
    assert said.code == 0
    assert said.lines == [
        [failed, "ready again"],
        [waiting, "refused: is ready already"],
        [missing, "refused: does not exist"],
    ]
    assert dbtasks("retry", failed).code == 1
    (claimed,) = engine.claim(ME, EVERYTHING)
    said = dbtasks("cancel", failed, waiting, "--grace", "1m", "--json")
    running = str(uuid.UUID(claimed.id))
    assert {row["id"]: row["outcome"] for row in said.json} == {
        row: "asked to end" if row == running else "cancelled" for row in (failed, waiting)
    }
    (request,) = engine.cancel_requests()
    assert (request.id, request.grace) == (claimed.id, 60.0)


def test_retry_of_all_that_match(engine):
    ready(engine, 3)
    ready(engine, 2, queue="b")
    for _ in range(5):
        done(engine, status="FAILED")
    assert len(dbtasks("retry", "--status", "failed", "--queue", "b").lines) == 2
    said = dbtasks("retry", "--status", "failed", "--task", "tests.app.*", "--since", "1d")
    assert len(said.lines) == 3
    said = dbtasks("retry", "--status", "failed")
    assert (said.code, said.out) == (1, "")
    assert "no such task" in said.err


@pytest.mark.parametrize(
    "wrong",
    [
        ("retry",),
        ("cancel", uuid.uuid4(), "--status", "ready"),
        ("cancel", uuid.uuid4(), "--queue", "a"),
        ("cancel", uuid.uuid4(), "--grace", "soon"),
        ("cancel", "abc"),
        ("prune", "--older-than", "soon"),
        ("pause", "--queue", ""),
    ],
)
def test_operations_refuse_wrong_usage_before_they_do_anything(engine, wrong):
    said = dbtasks(*wrong)
    assert (said.code, said.out) == (2, "")
    assert said.err


def test_pause_and_resume(engine):
    assert dbtasks("pause").code == 1
    said = dbtasks("pause", "--queue", "email", "--by", "ada", "--reason", "relay down")
    assert (said.code, said.lines) == (0, [["queue", "email", "paused"]])
    assert dbtasks("pause", "--queue", "email").code == 1
    assert dbtasks("pause", "--task", "a.b", "--json").json[0]["outcome"] == "paused"
    kind, name, _, by, reason = dbtasks("pause").lines[0]
    assert (kind, name, by, reason) == ("queue", "email", "ada", "relay down")
    assert dbtasks("resume", "--queue", "email").code == 0
    said = dbtasks("resume", "--queue", "email")
    assert (said.code, said.lines) == (1, [["queue", "email", "was not paused"]])


def test_prune_deletes_and_counts(engine):
    ready(engine, 3)
    for status in ("SUCCESSFUL", "FAILED"):
        done(engine, status=status)
    said = dbtasks("prune", "--older-than", "0s", "--dry-run")
    assert (said.code, said.lines) == (0, [["would_delete", "2"]])
    assert dbtasks("prune", "--status", "failed", "--json").json == {"deleted": 1}
    said = dbtasks("prune", "--older-than", "0s", terminal=True)
    assert said.out == "1 deleted\n"
    assert "1 …" in said.err
    assert dbtasks("prune", "--older-than", "1d").code == 1
    assert engine.counts().ready == 1


# enqueue


def test_enqueue_takes_json_arguments(engine):
    said = dbtasks("enqueue", "tests.app.tasks.add", "2", "-k", "b=3", "--priority", 7)
    assert said.code == 0
    row = ScheduledTask.objects.get(pk=said.lines[0][0])
    assert (row.args, row.kwargs, row.priority, row.status) == ([2], {"b": 3}, 7, "READY")


def test_enqueue_for_later_and_into_another_queue(engine):
    said = dbtasks("enqueue", "tests.app.tasks.noop", "--run-after", "10m", "--queue", "b")
    row = ScheduledTask.objects.get(pk=said.lines[0][0])
    assert (row.queue, row.ready_queue) == ("b", None)
    assert row.due_at is not None
    said = dbtasks("enqueue", "tests.app.tasks.noop", "--run-after", "2999-01-01T08:00")
    assert ScheduledTask.objects.get(pk=said.lines[0][0]).due_at.year == 2999


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tests.app.tasks.nothing",), "there is no task"),
        (("tests.app.models.Note",), "there is no task"),
        (("nonsense",), "there is no task"),
        (("tests.app.tasks.add", "abc"), "argument 1 is no JSON"),
        (("tests.app.tasks.add", "NaN"), "JSON has no NaN"),
        (("tests.app.tasks.add",), "missing a required argument: 'a'"),
        (("tests.app.tasks.add", "1", "-k", "c=2"), "unexpected keyword argument 'c'"),
        (("tests.app.tasks.add", "1", "-k", "b"), "write NAME=JSON"),
        (("tests.app.tasks.noop", "--priority", "1000"), "priority"),
        (("tests.app.tasks.noop", "--queue", "a,b"), "queue_name"),
        (("tests.app.tasks.noop", "--run-after", "soon"), "write a Duration"),
    ],
)
def test_enqueue_says_what_is_wrong(engine, arguments, told):
    said = dbtasks("enqueue", *arguments)
    assert (said.code, said.out) == (2, "")
    assert told in said.err
    assert not ScheduledTask.objects.exists()


# nodes


def worker_fields(id: str, **changes):
    return {
        "id": id,
        "kind": "worker",
        "pid": 7,
        "state": "busy",
        "task_id": "",
        "task_path": "a.b",
        "task_seconds": 1.5,
        "done": 3,
        "failed": 1,
        "restarts": 0,
        "memory": 5 << 20,
    } | changes


def test_nodes_shows_each_worker(engine):
    assert dbtasks("nodes").code == 1
    engine.renew_lease(node())
    engine.save_workers(node().id, [worker_fields("w-1"), worker_fields("w-2", state="idle")])
    said = dbtasks("nodes")
    assert said.code == 0
    assert [line[:2] for line in said.lines] == [
        ["node", "node-1's name"],
        ["worker", "w-1"],
        ["worker", "w-2"],
    ]
    (shown,) = dbtasks("nodes", "--json").json
    assert (shown["workers"][0]["memory"], shown["busy"]) == (5 << 20, 1)
    assert "5M" in dbtasks("nodes", terminal=True).out


# status --watch


def watched(screens: int, terminal: Terminal, *between) -> str:
    """What --watch wrote in so many screens; `between`: what happens after each."""
    from dbtasks.console import watch

    acts = iter(between)
    left = screens

    def rest() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        next(acts, lambda: None)()

    watch.watch("default", Output(terminal, io.StringIO()), rest)
    return terminal.getvalue()


def without_rich(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.live", None)


def test_watch_without_rich_is_plain_text(engine, monkeypatch):
    without_rich(monkeypatch)
    engine.renew_lease(node())
    engine.save_workers(node().id, [worker_fields("w-1", task_path="a.b\x1b[2J")])
    put(engine, new_task("email"))
    shown = watched(2, Terminal())
    assert shown.count("\x1b[H\x1b[2J") == 2
    assert "1 ready" in shown
    assert "a.b\\x1b[2J" in shown


def test_watch_with_rich_shows_the_same(engine, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    engine.renew_lease(node())
    engine.save_workers(node().id, [worker_fields("w-1", task_path="[bold]a.b\x1b]0;x\x07")])
    engine.pause("queue", "email", "[red]ada", "")
    put(engine, new_task("email"))
    shown = watched(2, Terminal())
    for told in ("1 ready", "[bold]a.b\\x1b]0;x\\x07", "[red]ada", "node-1's name", "email"):
        assert told in shown


def test_watch_ends_when_it_is_asked_to(engine, monkeypatch):
    from dbtasks.console import watch

    without_rich(monkeypatch)
    terminal = Terminal()
    watch.watch("default", Output(terminal, io.StringIO()), lambda: True)
    assert terminal.getvalue().count("\x1b[H\x1b[2J") == 1


def test_a_key_ends_the_waiting_and_the_terminal_is_as_before(monkeypatch):
    termios = pytest.importorskip("termios")
    master, slave = os.openpty()
    with open(slave) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(slave)
        with keys() as wait:
            assert not termios.tcgetattr(slave)[3] & termios.ECHO
            os.write(master, b"q")
            assert wait(60) == "q"
            assert wait(0) == ""
        assert termios.tcgetattr(slave) == before
    os.close(master)


def test_without_a_terminal_there_are_no_keys(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("q"))
    with keys() as wait:
        assert wait(0) == ""


def test_a_narrow_terminal_does_without_some_columns(engine, monkeypatch):
    without_rich(monkeypatch)
    engine.renew_lease(node())
    engine.save_workers(node().id, [worker_fields("w-1", task_path="a.b", state="busy")])
    put(engine, new_task("email"))
    monkeypatch.setenv("COLUMNS", "200")
    assert "RESTARTS" in watched(1, Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    narrow = watched(1, Terminal())
    assert "RESTARTS" not in narrow
    assert "KIND" not in narrow
    for told in ("busy", "a.b", "email", "node-1's name"):
        assert told in narrow


def test_who_has_run_one_task_for_long_stands_first(engine, monkeypatch):
    without_rich(monkeypatch)
    engine.renew_lease(node())
    seconds = {"w-1": 2.0, "w-2": 900.0, "w-3": None}
    workers = [worker_fields(name, task_seconds=spent) for name, spent in seconds.items()]
    engine.save_workers(node().id, workers)
    shown = watched(1, Terminal())
    assert shown.index("w-2") < shown.index("w-1") < shown.index("w-3")


def test_watch_goes_on_while_the_database_is_away(engine, monkeypatch):
    from dbtasks.console import watch

    without_rich(monkeypatch)
    engine.renew_lease(node())
    real = watch.report

    def away() -> None:
        def report(backend):
            raise OperationalError("connection refused")

        monkeypatch.setattr(watch, "report", report)

    def back() -> None:
        monkeypatch.setattr(watch, "report", real)

    _, one, two, three = watched(3, Terminal(), away, back).split("\x1b[H\x1b[2J")
    assert "NO ANSWER" not in one
    assert "NO ANSWER, last seen" in two
    assert "connection refused" in two
    assert "All is well." in two
    assert "NO ANSWER" not in three


@pytest.mark.parametrize(
    ("arguments", "terminal"),
    [(("--watch",), False), (("--watch", "--json"), True), (("--watch", "--interval", "0"), True)],
)
def test_watch_says_what_it_needs(engine, arguments, terminal):
    said = dbtasks("status", *arguments, terminal=terminal)
    assert said.code == 2
    assert "--watch" in said.err or "--interval" in said.err


def test_status_tells_the_rates_of_the_last_minutes(engine):
    from dbtasks.console.status import report
    from dbtasks.models import Statistic

    minute = int(engine.now().timestamp()) // 60 - 1
    Statistic.objects.create(
        backend="default",
        minute=minute,
        queue="email",
        task_path="a.b",
        succeeded=20,
        failed=5,
    )
    rate = report("default").rates["email"]
    assert (rate.per_minute, rate.failed) == (5.0, 5)
    assert "email" in [queue["queue"] for queue in dbtasks("status", "--json").json["queues"]]
