"""`RunnerTestCase`: tests in which a Runner executes what they enqueue."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from django.db import connections
from django.tasks.base import TaskResult
from django.test import TransactionTestCase

from .runner import Runner

START_TIMEOUT = STOP_TIMEOUT = 30.0  # seconds


class RunnerTestCase(TransactionTestCase):
    """Starts a Runner before the first test of the class and drains it after the last.

    `runner_options` are arguments of the Runner. Tests end when what they enqueued has run, so
    that the tables are not emptied under a running task.
    """

    runner: ClassVar[Runner]
    runner_options: ClassVar[dict[str, Any]] = {"workers": 2, "init_periodic": False}

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls.runner = cls.enterClassContext(running(**cls.runner_options))

    def _fixture_teardown(self) -> None:
        self.runner.wait(timeout=STOP_TIMEOUT)
        super()._fixture_teardown()  # type: ignore[misc]

    def wait_for(self, result: TaskResult, timeout: float | None = 30.0) -> TaskResult:
        """The finished and refreshed `result`. Fails the test after `timeout` seconds."""
        if not self.runner.wait_for(result, timeout):
            self.fail(f"{result.task.module_path} was not finished after {timeout} seconds")
        return result

    def wait(self, timeout: float | None = 30.0) -> None:
        """Until nothing is ready or running. Fails the test after `timeout` seconds."""
        if not self.runner.wait(timeout):
            self.fail(f"the queue was not empty after {timeout} seconds")


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Runner]:
    """A Runner in a thread; drained at the end. Raises RuntimeError if it does not start."""
    options.setdefault("worker_id", "test")
    with on_disk(options.get("backend", "default")):
        runner = Runner(**options)
        thread = threading.Thread(target=runner.run, name="dbtasks-runner", daemon=True)
        thread.start()
        try:
            if not runner.ready.wait(START_TIMEOUT):
                raise RuntimeError(f"the runner did not start within {START_TIMEOUT:g} seconds")
            yield runner
        finally:
            runner.stop()
            thread.join(STOP_TIMEOUT)


@contextlib.contextmanager
def on_disk(backend: str) -> Iterator[None]:
    """Gives an in-memory SQLite test database a file for as long as threads use it.

    Connections that share one memory get "table is locked" at once, whatever their timeout; on a
    file each thread has a connection of its own, as in production.
    """
    from .runner import database_backend

    connection: Any = connections[database_backend(backend).parsed.database]
    if connection.vendor != "sqlite" or not connection.is_in_memory_db():
        yield
        return
    connection.ensure_connection()
    memory, name = connection.connection, connection.settings_dict["NAME"]
    with tempfile.TemporaryDirectory(prefix="dbtasks-") as folder:
        path = str(Path(folder) / "test.sqlite3")
        with contextlib.closing(sqlite3.connect(path)) as copy:
            memory.backup(copy)
            copy.execute("PRAGMA journal_mode=WAL")
        connection.connection = None
        connection.settings_dict["NAME"] = path
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["NAME"] = name
            connection.connection = memory
