"""What the log says about tasks, and that a log which nobody takes holds up no node."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbtasks import signals
from dbtasks.tally import as_message
from dbtasks.testing import running
from dbtasks_supervisor.relay import TELL_EVERY, Relay
from tests.app import tasks
from tests.node import ROOT, finished
from tests.process import Project
from tests.test_statistics import cells
from tests.waiting import wait_until

DEADLINE = 30.0
FIELDS = ("task_id", "task_path", "queue", "worker_id", "attempt", "duration_ms")


def run(caplog: pytest.LogCaptureFixture, *results: Any) -> list[logging.LogRecord]:
    """The records about the tasks."""
    caplog.set_level(logging.DEBUG, "dbtasks")
    with running(workers=1, init_periodic=False) as runner:
        for result in results:
            assert runner.wait_for(result, DEADLINE)
    return [record for record in caplog.records if hasattr(record, "task_id")]


@pytest.mark.usefixtures("db")
def test_a_task_that_ends_well_is_one_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    result = tasks.echo.enqueue("a secret argument")
    (record,) = run(caplog, result)
    assert record.levelname == "DEBUG"
    assert all(hasattr(record, field) for field in FIELDS)
    assert record.__dict__["task_id"] == result.id
    assert "secret" not in caplog.text


@pytest.mark.usefixtures("db")
def test_a_failure_is_one_error_with_its_traceback_once(caplog: pytest.LogCaptureFixture) -> None:
    flaky = tasks.fail.using(max_attempts=2, backoff=0.01)  # type: ignore[attr-defined]
    first, last = run(caplog, flaky.enqueue("no luck"))
    assert (first.levelname, last.levelname) == ("WARNING", "ERROR")
    assert first.exc_info is None
    assert last.exc_info is not None
    assert caplog.text.count("Traceback (most recent call last)") == 1


@pytest.mark.once
def test_rates_are_one_line_in_ten_minutes_if_there_are_any(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Nobody:
        def of_kind(self, kind: Any) -> list[Any]:
            return []

    caplog.set_level(logging.INFO, "dbtasks")
    relay = Relay(Nobody())  # type: ignore[arg-type]
    now = time.monotonic()
    relay.tell_rates(now + TELL_EVERY + 1)
    told = as_message(cells(2, succeeded=3, failed=1, retried=2).items())
    relay.receive({"kind": "counted", "cells": told})
    relay.tell_rates(now)
    assert not caplog.messages
    relay.tell_rates(now + 3 * TELL_EVERY)
    relay.tell_rates(now + 5 * TELL_EVERY)
    assert caplog.messages == [
        "in 10 min: 6 tasks succeeded, 2 failed, 4 attempts failed, 0 were rescued"
    ]


@contextlib.contextmanager
def full_pipe() -> Iterator[int]:
    """The end to write to of a pipe that takes nothing more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    os.set_blocking(writer, True)
    try:
        yield writer
    finally:
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("sink", [full_pipe, full_disk])
def test_a_log_that_nobody_takes_holds_up_no_node(sink: Any) -> None:
    command = [sys.executable, "-m", "dbtasks_supervisor.cli", "--settings", "tests.settings"]
    results = [tasks.fail.enqueue("x" * 5000) for _ in range(20)]
    with sink() as stderr:
        node = subprocess.Popen(
            [*command, "-w", "1", "-v", "2"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            for result in results:
                finished(result, DEADLINE)
            node.send_signal(signal.SIGTERM)
            assert node.wait(DEADLINE) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()


@pytest.mark.usefixtures("db")
def test_usr1_opens_the_files_of_every_process_again(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    logging_settings = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(processName)s %(message)s"}},
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "filename": str(log),
                "formatter": "plain",
            }
        },
        "loggers": {"dbtasks": {"handlers": ["file"], "level": "DEBUG"}},
    }
    settings = f'LOGGING_CONFIG = "logging.config.dictConfig"\nLOGGING = {logging_settings!r}'
    project = Project(tmp_path / "project", settings=settings)

    def tells(pattern: str) -> bool:
        return log.exists() and re.search(pattern, log.read_text()) is not None

    with project.supervise("-w", "1") as node:
        wait_until(lambda: tells("node ready"), DEADLINE, "ready")
        finished(tasks.noop.enqueue(), DEADLINE)
        wait_until(lambda: tells("node-1 task tests.app.tasks.noop done"), DEADLINE, "a line")
        log.rename(tmp_path / "app.log.1")
        node.signal(signal.SIGUSR1)
        wait_until(log.exists, DEADLINE, "a new file")
        node.signal(signal.SIGTTIN)

        def told_again() -> bool:
            finished(tasks.noop.enqueue(), DEADLINE)
            return tells("node-1 task tests.app.tasks.noop done")

        wait_until(told_again, DEADLINE, "the worker writes to the new file")
        wait_until(lambda: tells("node one worker more"), DEADLINE, "so does the parent")


def test_the_sentry_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    class Scope:
        def __enter__(self) -> Scope:
            return self

        def __exit__(self, *exception: object) -> None:
            pass

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: told.append((name, *arguments))

    fake: Any = types.ModuleType("sentry_sdk")
    fake.init = lambda dsn: told.append(("init", dsn))
    fake.new_scope = Scope
    fake.capture_exception = lambda error: told.append(("exception", str(error)))
    fake.capture_message = lambda text, level: told.append((level, text))
    fake.flush = lambda timeout: told.append(("flush",))
    monkeypatch.setitem(sys.modules, "sentry_sdk", fake)
    before = {name: list(one.receivers) for name, one in signals.BY_NAME.items()}
    page = (ROOT / "docs/guides/signals.md").read_text(encoding="utf-8")
    marked = r"<!-- sentry -->\n(?:<!--.*?-->\n)*```python\n(.*?)```"
    (example,) = re.findall(marked, page, re.DOTALL)
    try:
        names: dict[str, Any] = {}
        exec(compile(example, "signals.md", "exec"), names)
        about = {"backend": "default", "worker_id": "w", "node": "n"}
        signals.worker_started.send(object, **about)
        retry = {"task_path": "app.task", "task_id": "1", "queue": "q", "attempt": 1}
        signals.task_retried.send(object, error=ValueError("x"), retry_in=1.0, **retry)
        signals.worker_stopped.send(object, crashed=True, reason="killed", **about)
        signals.worker_stopped.send(object, crashed=False, reason="", **about)
    finally:
        for name, one in signals.BY_NAME.items():
            one.receivers = before[name]
            one.sender_receivers_cache.clear()
    assert [what[0] for what in told] == [
        *("init", "set_tag", "set_context", "set_level", "exception"),
        *("init", "error", "flush", "flush"),
    ]
    assert ("error", "worker w died: killed") in told
