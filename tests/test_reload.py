"""New code: --reload in development, SIGHUP in production. Nobody waits and nothing fails."""

import importlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connections, transaction
from django.tasks import TaskResult
from django.test import override_settings

from dbtasks.models import Node, ScheduledTask
from dbtasks_supervisor.reload import Reload
from dbtasks_supervisor.signals import SignalInbox, unblock_all
from tests.app import tasks
from tests.process import SUPERVISOR, Process, Project, run
from tests.waiting import wait_until

TASKS = """
VERSION = {version}

@task
def version():
    return VERSION
"""
THREAD = '\nthreading.Thread(target=time.sleep, args=(60,), name="stray", daemon=True).start()\n'
SOON = 20.0  # seconds; alone it takes two


class Shop(Project):
    """A project whose one task returns the version of its code."""

    def __init__(self, folder: Path, *, debug: bool = False) -> None:
        super().__init__(folder, tasks=TASKS.format(version=1), settings=f"DEBUG = {debug}")
        sys.path.insert(0, str(folder))
        # An edit within the same second and of the same length would not be seen past a .pyc file.
        writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            self.module: Any = importlib.import_module(f"{self.app}.tasks")
        finally:
            sys.dont_write_bytecode = writes_none
            sys.path.remove(str(folder))

    def edit(self, version: int, more: str = "") -> None:
        self.write_tasks(TASKS.format(version=version) + more)

    def served(self) -> int:
        """The version that a worker has."""
        result = self.module.version.enqueue()
        wait_until(lambda: finished(result), SOON)
        return int(result.return_value)

    def wait_for_version(self, version: int) -> None:
        wait_until(lambda: self.served() == version, SOON, f"version {version}")


@pytest.fixture
def shop(db: None, tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@contextmanager
def serving(shop: Shop, *flags: str, workers: int = 2) -> Iterator[Process]:
    """A node that is ready, and that has to end cleanly with the same pid."""
    with shop.supervise("-w", str(workers), *flags) as process:
        process.wait_for("ready")
        yield process
        assert process.terminate() == 0
    assert not Node.objects.exists()


def finished(result: TaskResult) -> bool:
    result.refresh()
    return result.is_finished


def reload(process: Process, times: int) -> None:
    """SIGHUP, until all workers are new ones; ``times`` is how often we did it by then."""
    old = process.workers
    process.signal(signal.SIGHUP)
    process.wait_for("ready", times=times + 1)
    wait_until(lambda: len(process.workers) == len(old) and not process.workers & old, SOON)


# --reload


@pytest.mark.once
@pytest.mark.parametrize("mode", ["process", "thread"])
def test_an_edited_tasks_module_is_served_soon_by_the_same_parent(shop: Shop, mode: str) -> None:
    with serving(shop, "--reload", "--mode", mode) as process:
        assert shop.served() == 1
        shop.edit(2)
        shop.wait_for_version(2)
        shop.edit(3)
        shop.wait_for_version(3)
        assert process.count("tasks.py changed") == 2


@pytest.mark.once
@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_syntax_error_keeps_the_old_code_serving_until_it_is_mended(
    shop: Shop, mode: str
) -> None:
    with serving(shop, "--reload", "--mode", mode) as process:
        workers = process.workers
        shop.edit(2, "def oops(:\n")
        process.wait_for("not reloading")
        assert process.count("SyntaxError") >= 1
        assert shop.served() == 1
        assert process.workers == workers
        shop.edit(3)
        shop.wait_for_version(3)


@pytest.mark.once
@pytest.mark.parametrize(
    ("debug", "flags", "watches"),
    [
        (True, [], True),
        (True, ["--no-reload"], False),
        (False, [], False),
        (False, ["--reload"], True),
    ],
)
def test_code_is_watched_in_development_or_when_asked_for(
    db: None, tmp_path: Path, debug: bool, flags: list[str], watches: bool
) -> None:
    shop = Shop(tmp_path, debug=debug)
    with serving(shop, *flags, workers=1) as process:
        # The reloader is forked together with the word "ready"; give a wrong one time to appear.
        assert shop.served() == 1
        assert bool(wait_or_give_up(lambda: process.pids("reloader"), watches)) is watches


def wait_or_give_up(condition: Callable[[], set[int]], expected: bool) -> set[int]:
    return wait_until(condition, SOON) if expected else condition()


@pytest.mark.once
@pytest.mark.parametrize(
    ("debug", "flags", "watches"),
    [(True, [], True), (True, ["--burst"], False), (False, ["--burst", "--reload"], True)],
)
def test_burst_does_not_watch_unless_asked_for(
    debug: bool, flags: list[str], watches: bool
) -> None:
    import argparse

    from dbtasks_supervisor.application import load
    from dbtasks_supervisor.config import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with override_settings(DEBUG=debug):
        assert load(parser.parse_args(flags)).reloads is watches


# SIGHUP


@pytest.mark.once
def test_sighup_replaces_the_code_and_every_worker_but_not_the_pid(
    shop: Shop, tmp_path: Path
) -> None:
    pidfile = tmp_path / "node.pid"
    with serving(shop, "--pidfile", str(pidfile)) as process:
        assert shop.served() == 1
        shop.edit(2)
        reload(process, 1)
        assert shop.served() == 2
        assert pidfile.read_text() == f"{process.pid}\n"
        again = run("--pidfile", str(pidfile))
        assert (again.returncode, str(process.pid) in again.stderr) == (4, True)
    assert not pidfile.exists()


@pytest.mark.once
def test_five_reloads_under_load_fail_no_task(shop: Shop) -> None:
    enough = threading.Event()

    def produce() -> None:
        while not enough.is_set():
            shop.module.version.enqueue()
            enough.wait(0.04)
        connections.close_all()

    producer = threading.Thread(target=produce)
    with serving(shop) as process:
        producer.start()
        try:
            for times in range(1, 6):
                reload(process, times)
        finally:
            enough.set()
            producer.join()
        wait_until(lambda: not ScheduledTask.objects.exclude(status="SUCCESSFUL").exists(), SOON)
        assert process.count("ERROR") == 0
    rows = ScheduledTask.objects.all()
    assert rows.count() > 50
    assert {len(row.worker_ids) for row in rows} == {1}


@pytest.mark.once
def test_a_long_task_across_a_reload_finishes_once(shop: Shop, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with serving(shop) as process:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists, SOON)
        old = process.workers
        shop.edit(2)
        process.signal(signal.SIGHUP)
        process.wait_for("ready", times=2)
        shop.wait_for_version(2)
        # The new workers serve; the old one that is busy is still there beside them.
        wait_until(lambda: len(process.workers) == 3 and len(process.workers & old) == 1, SOON)
        assert not finished(result)
        gate.touch()
        wait_until(lambda: finished(result), SOON)
        wait_until(lambda: not process.workers & old, SOON)
    assert result.status == "SUCCESSFUL"
    assert len(result.worker_ids) == 1
    assert result.return_value in old


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("def oops(:\n", "SyntaxError"),
        ('raise RuntimeError("out of stock")\n', "out of stock"),
        (THREAD, "stray"),
    ],
)
@pytest.mark.once
def test_broken_code_is_refused_and_the_old_code_serves_on(
    shop: Shop, more: str, reason: str
) -> None:
    with serving(shop) as process:
        workers = process.workers
        shop.edit(2, more)
        process.signal(signal.SIGHUP)
        process.wait_for("not reloading")
        assert process.count(reason) >= 1
        assert shop.served() == 1
        assert process.workers == workers
        shop.edit(3)
        reload(process, 1)
        assert shop.served() == 3


@pytest.mark.once
def test_broken_settings_are_refused(shop: Shop) -> None:
    with serving(shop) as process:
        shop.settings.write_text(shop.settings.read_text() + '\nTASKS["default"]["QUEUES"] = 5\n')
        process.signal(signal.SIGHUP)
        process.wait_for("not reloading")
        assert shop.served() == 1


@pytest.mark.once
def test_two_reloads_in_a_row_serve_the_newest_code(shop: Shop) -> None:
    with serving(shop) as process:
        shop.edit(2)
        process.signal(signal.SIGHUP)
        process.wait_for("checking the new code")
        shop.edit(3)
        process.signal(signal.SIGHUP)
        shop.wait_for_version(3)


@pytest.mark.once
def test_a_reload_that_is_asked_for_while_one_takes_place_is_not_forgotten(shop: Shop) -> None:
    with serving(shop) as process:
        shop.edit(2)
        process.signal(signal.SIGHUP)
        process.wait_for("replacing the supervisor in place")
        with transaction.atomic():  # SQLite's write lock: no worker gets ready meanwhile
            process.wait_for("took over")
            shop.edit(3)
            process.signal(signal.SIGHUP)
            process.signal(signal.SIGTTIN)
            process.wait_for("one worker more")
        shop.wait_for_version(3)


@pytest.mark.once
@pytest.mark.parametrize("text", ["checking the new code", "replacing the supervisor", "took over"])
def test_sigterm_in_the_middle_of_a_reload_ends_cleanly(shop: Shop, text: str) -> None:
    with shop.supervise("-w", "2") as process:
        process.wait_for("ready")
        process.signal(signal.SIGHUP)
        process.wait_for(text)
        assert process.terminate() == 0
    assert not Node.objects.exists()
    assert not ScheduledTask.objects.filter(status="RUNNING").exists()


@pytest.mark.once
def test_a_worker_that_dies_just_before_the_exec_is_rescued_at_once(
    shop: Shop, tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with serving(shop) as process:
        result = tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists, SOON)
        old = process.workers
        process.signal(signal.SIGHUP)
        process.wait_for("checking the new code")
        process.signal(signal.SIGSTOP)
        try:
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: dead_children(process) > len(old), SOON, "the check to end")
        finally:
            gate.touch()
            process.signal(signal.SIGCONT)
        wait_until(lambda: finished(result), SOON)
        process.wait_for("ready", times=2)
    assert (result.status, len(result.errors)) == ("SUCCESSFUL", 1)
    assert "SIGKILL" in result.errors[0].traceback


def dead_children(process: Process) -> int:
    """How many of them wait for their parent to notice."""
    children = psutil.Process(process.pid).children()
    return sum(child.status() == psutil.STATUS_ZOMBIE for child in children)


@pytest.mark.once
def test_an_interpreter_that_a_deploy_took_away_does_not_end_the_node(
    shop: Shop, tmp_path: Path
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    shutil.copy(Path(sys.prefix, "pyvenv.cfg"), tmp_path)
    (tmp_path / "lib").symlink_to(Path(sys.prefix, "lib"))
    command = (str(python), *SUPERVISOR[1:])
    with shop.supervise("-w", "1", command=command) as process:
        process.wait_for("ready")
        python.unlink()
        process.signal(signal.SIGHUP)
        process.wait_for("not reloading: the check of the new code cannot be started")
        assert shop.served() == 1
        assert process.terminate() == 0


@pytest.mark.once
def test_a_signal_that_arrives_just_before_the_exec_waits_for_the_new_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pending: set[int] = set()

    def execve(*arguments: Any) -> None:
        pending.update(signal.sigpending())
        raise OSError("only to come back")

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: {}

        def __iter__(self) -> Iterator[None]:
            return iter(())

    saved = signal.getsignal(signal.SIGTERM)
    inbox = SignalInbox([signal.SIGTERM])
    monkeypatch.setattr(os, "execve", execve)
    nursery, application = Anything(), Anything()
    nursery.inbox = inbox  # type: ignore[attr-defined]
    application.argv = ("python",)  # type: ignore[attr-defined]
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        everything = (application, nursery, Anything(), None, Anything(), Anything())
        Reload(*everything).execute()  # type: ignore[arg-type]
        assert signal.SIGTERM in pending
        # And it is not lost either where the exec fails.
        assert inbox.read() == [signal.SIGTERM]
    finally:
        unblock_all()
        inbox.close()
        signal.signal(signal.SIGTERM, saved)
