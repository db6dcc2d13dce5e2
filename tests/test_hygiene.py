"""What a task does to its process or its connections does not reach the next task."""

import contextlib
import locale
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, connections
from django.tasks import TaskResultStatus, task
from django.utils import timezone, translation

from tests.app import tasks
from tests.app.models import Note
from tests.node import Node, finished

SUCCESSFUL = TaskResultStatus.SUCCESSFUL
KEPT: list[Any] = []  # what tasks hold on to beyond their end


# Tasks that change the process


@task
def change_directory(folder: str) -> None:
    os.chdir(folder)


@task
def change_umask(folder: str) -> None:
    os.umask(0o007)


@task
def change_locale(folder: str) -> None:
    locale.setlocale(locale.LC_ALL, "POSIX")


@task
def change_zone(folder: str) -> None:
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()


@task
def change_zone_and_hide_it(folder: str) -> None:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "Asia/Kathmandu"
    time.tzset()
    os.environ.pop("TZ") if before is None else os.environ.update(TZ=before)


@task
def activate(folder: str) -> None:
    timezone.activate("Asia/Kathmandu")
    translation.activate("de")


@task
def take_signals(folder: str) -> None:
    """All of them, as a library with its own idea of them would."""
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(signum, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


@task
def block_signals(folder: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


@task
def leave_timers(folder: str) -> None:
    """The handlers of two of them, the default ones, would end the process."""
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0.2, 0.2)


@task
def divert_output(folder: str) -> None:
    sys.stdout = sys.stderr = open(Path(folder, "output"), "w")  # noqa: SIM115


@task
def start_thread(folder: str) -> None:
    """One that lives on, with a connection of its own."""

    def work() -> None:
        connections["default"].ensure_connection()
        while True:
            signal.pause()

    threading.Thread(target=work, daemon=False).start()


@task
def start_processes(folder: str) -> None:
    KEPT.extend(subprocess.Popen(["/bin/sleep", "600"]) for _ in range(3))


@task
def describe() -> dict[str, Any]:
    umask = os.umask(0)
    os.umask(umask)
    handlers = [
        str(signal.getsignal(signum)).partition(" of ")[0]
        for signum in signal.valid_signals()
        if signum < signal.SIGRTMIN
    ]
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "directory": os.getcwd(),
        "umask": umask,
        "locale": locale.setlocale(locale.LC_ALL),
        "zone": [os.environ.get("TZ"), *time.tzname],
        "django": [timezone.get_current_timezone_name(), translation.get_language()],
        "handlers": handlers,
        "wakeup": wakeup,
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "output": [sys.stdout.fileno(), sys.stderr.fileno()],
        "pid": os.getpid(),
    }


@task
def use_cpu(seconds: float) -> None:
    """So that timers of all kinds would go off."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


@task
def say(text: str, times: int = 1) -> None:
    for _ in range(times):
        print(text)


# Each of these leaves a connection in a state of its own


@task
def leave_cursor_open() -> None:
    """Half of its rows are read, and somebody keeps it."""
    for number in range(3):
        Note.objects.create(text=f"row {number}")
    rows = Note.objects.order_by("id").iterator(chunk_size=1)
    KEPT.append((rows, next(rows)))


@task
def leave_raw_cursor_open() -> None:
    """As Django would not do it: MySQL's rows are still under way, PostgreSQL's are a portal."""
    raw = connection.connection
    if connection.vendor == "mysql":
        from MySQLdb.cursors import SSCursor

        cursor = raw.cursor(SSCursor)
    else:
        cursor = raw.cursor()
    cursor.execute("SELECT id FROM app_note UNION ALL SELECT 1 UNION ALL SELECT 2")
    KEPT.append((cursor, cursor.fetchone()))


@task
def spoil_transaction() -> None:
    connection.set_autocommit(False)
    with contextlib.suppress(Exception), connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


# With a node of its own, so before the others


@pytest.mark.once
def test_a_deploy_may_remove_the_directory_under_a_node(
    tables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the release before last is: its workers go on, and a dead one is replaced."""
    release = tmp_path / "release"
    release.mkdir()
    monkeypatch.setattr("tests.node.ROOT", release)
    with Node(workers=1) as node:
        release.rmdir()
        victim = finished(tasks.pid.enqueue()).return_value
        os.kill(victim, signal.SIGKILL)
        assert finished(tasks.pid.enqueue()).return_value == node.child("1", but=victim)
        assert node.log().count("died") == 1


# All others share one


@pytest.fixture(scope="module")
def shared(tables: None) -> Iterator[Node]:
    """One node with one worker, which all tests of this module share and none may end."""
    from tests.conftest import empty_tables

    empty_tables()
    connections.close_all()
    with Node(workers=1) as node:
        yield node
    connections.close_all()


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    before = shared.worker_pids()
    began = len(shared.log())
    yield shared
    print(shared.log()[began:])  # pytest shows it for a test that failed
    assert shared.worker_pids() == before, "its worker lives on"
    connections.close_all()


# The process


@pytest.mark.once
@pytest.mark.parametrize(
    "name",
    [
        "change_directory",
        "change_umask",
        "change_locale",
        "change_zone",
        "change_zone_and_hide_it",
        "activate",
        "take_signals",
        "block_signals",
        "leave_timers",
        "divert_output",
        "start_thread",
        "start_processes",
    ],
)
def test_the_next_task_finds_the_process_as_it_was(node: Node, tmp_path: Path, name: str) -> None:
    before = finished(describe.enqueue()).return_value
    assert finished(globals()[name].enqueue(str(tmp_path))).status == SUCCESSFUL
    assert finished(describe.enqueue()).return_value == before
    assert finished(use_cpu.enqueue(0.3)).status == SUCCESSFUL


@pytest.mark.once
def test_stacks_are_dumped_after_a_task_took_all_signals(node: Node, tmp_path: Path) -> None:
    assert finished(take_signals.enqueue(str(tmp_path))).status == SUCCESSFUL
    finished(tasks.noop.enqueue())
    shown = node.log().count("Current thread")
    os.kill(node.child("1"), signal.SIGUSR2)
    node.wait_log("Current thread", times=shown + 1)


@pytest.mark.once
def test_what_a_task_prints_is_in_the_log_at_its_end(node: Node) -> None:
    finished(say.enqueue("printed by a task"))
    finished(tasks.noop.enqueue())
    node.wait_log("printed by a task", 1)


@pytest.mark.once
def test_megabytes_of_output_harm_nobody(node: Node) -> None:
    assert finished(say.enqueue("x" * 1023, 3000)).status == SUCCESSFUL
    assert finished(tasks.noop.enqueue()).status == SUCCESSFUL
    assert node.log_path.stat().st_size > 3_000_000


# Its connections


@pytest.mark.parametrize(
    "name", ["leave_cursor_open", "leave_raw_cursor_open", "spoil_transaction"]
)
def test_the_next_task_finds_a_connection_that_works(node: Node, name: str) -> None:
    for _ in range(2):
        result = finished(globals()[name].enqueue())
        assert (result.status, result.attempts) == (SUCCESSFUL, 1)
        Note.objects.create(text="by another process")  # a snapshot that is kept would be too old
        follower = finished(tasks.note.enqueue(f"after {name}"))
        assert (follower.status, follower.attempts) == (SUCCESSFUL, 1)
    assert Note.objects.filter(text=f"after {name}").count() == 2
