"""The demo's story: a supervisor, an index of the standard library, its report, an account."""

import datetime
import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import transaction
from django.tasks import TaskResult
from django.utils import timezone
from library.stdlib import module_paths
from library.tasks import index_module, report

from dbtasks.models import Node

from .account import account_since, best_throughput_since, failure_since, modules_since
from .screen import Screen, table
from .service import MANAGE, Supervisor, supervised

START_SECONDS = 30
INDEX_SECONDS = 120
PERIODIC_SECONDS = 15
PAUSE_SECONDS = 20  # between two indexes of --forever
LOOK_SECONDS = 0.05
BATCH = 25  # tasks per transaction


class DemoFailed(Exception):
    """Something did not go as it should; the message says what."""


class Demo:
    """A supervisor and the indexes that it makes."""

    def __init__(self, screen: Screen, supervisor: Supervisor, paths: list[Path]) -> None:
        self.screen = screen
        self.supervisor = supervisor
        self.paths = paths

    def wait_for_workers(self) -> None:
        """Until the supervisor has put itself down in the database."""
        here = Node.objects.filter(name="demo", pid=self.supervisor.pid)
        self._wait_until(here.exists, START_SECONDS, "the supervisor did not start")

    def index(self, start: datetime.datetime) -> dict[str, Any]:
        """Enqueues one task per module and one for the report; returns the report."""
        with self.screen.progress():
            # First, so that it can be seen to wait: it comes back once a second until all is there.
            result = report.enqueue(modules=len(self.paths), since=start.isoformat())
            for batch in itertools.batched(self.paths, BATCH):
                # Tasks are rows: they appear when the transaction commits, all of them or none.
                with transaction.atomic():
                    for path in batch:
                        index_module.enqueue(str(path))
                self._look(start)
            self._wait_until(
                lambda: self._is_finished(result, start), INDEX_SECONDS, "there was no report"
            )
            self._show(start)
        total: dict[str, Any] = result.return_value
        return total

    def wait_for_periodic(self, start: datetime.datetime) -> float:
        """The best throughput that the periodic task saw, in modules per second."""
        done = timezone.now()
        # A run that saw modules, or at least one after the last module: small indexes are fast.
        self._wait_until(
            lambda: bool(best_throughput_since(start)) or best_throughput_since(done) is not None,
            PERIODIC_SECONDS,
            "the periodic task library.tasks.measure_throughput did not run",
        )
        return best_throughput_since(start) or 0.0

    def rest(self, seconds: float) -> None:
        """Does nothing for a while, but notices when the supervisor ends."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            time.sleep(LOOK_SECONDS)

    def _is_finished(self, result: TaskResult, start: datetime.datetime) -> bool:
        self._look(start)
        result.refresh()
        if result.is_finished and (failure := failure_since(start)):
            raise DemoFailed(failure)
        return result.is_finished

    def _look(self, start: datetime.datetime) -> None:
        if self.screen.is_due():
            self._check()
            if failure := failure_since(start):
                raise DemoFailed(failure)
            self._show(start)

    def _show(self, start: datetime.datetime) -> None:
        done, last = modules_since(start)
        seconds = max((timezone.now() - start).total_seconds(), 0.001)
        told = f"{done / seconds:3.0f}/s  {seconds:4.1f} s  {last}"
        self.screen.show_progress(done, len(self.paths), told)

    def _check(self) -> None:
        if (code := self.supervisor.exit_code) is not None:
            raise DemoFailed(f"the supervisor ended with exit code {code}")

    def _wait_until(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self._check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"{otherwise} within {seconds} s")
            time.sleep(LOOK_SECONDS)


def tell(screen: Screen, folder: Path, *, workers: int, modules: int, forever: bool) -> None:
    """The whole story; leaves with everything stopped. Raises DemoFailed and KeyboardInterrupt."""
    screen.say("Creating the tables (manage.py migrate)")
    call_command("migrate", verbosity=0, interactive=False)
    screen.say(f"Starting {workers} workers (manage.py taskrunner -w {workers})")
    with supervised(workers, folder / "supervisor.log") as supervisor:
        try:
            demo = Demo(screen, supervisor, module_paths(modules))
            if forever:
                index_forever(demo)
            else:
                index_once(demo)
            if code := supervisor.drain():
                raise DemoFailed(f"the drain ended with exit code {code}")
        except DemoFailed as failure:
            supervisor.drain()
            log = supervisor.last_lines()
            raise DemoFailed(f"{failure}\n\nLast lines of the supervisor:\n{log}") from None
    screen.say("\nDrained: the supervisor ended with exit code 0")


def index_once(demo: Demo) -> None:
    """One index with all that it shows."""
    demo.wait_for_workers()
    demo.screen.say(f"Indexing {len(demo.paths)} modules of the standard library, a task for each")
    start = timezone.now()
    total = demo.index(start)
    show_report(demo.screen, total)
    show_account(demo.screen, start, demo.wait_for_periodic(start))


def index_forever(demo: Demo) -> None:
    """One index after the other until Ctrl-C."""
    url = os.environ["EXAMPLE_DATABASE_URL"]
    try:
        index_once(demo)
        demo.screen.say(
            f"\nIndexing again every {PAUSE_SECONDS} s. Ctrl-C drains and ends. Look inside with\n"
            f"  EXAMPLE_DATABASE_URL={url} {sys.executable} {MANAGE} shell"
        )
        while True:
            demo.rest(PAUSE_SECONDS)
            demo.index(timezone.now())
    except KeyboardInterrupt:
        demo.screen.say("\nDraining")


def show_report(screen: Screen, total: dict[str, Any]) -> None:
    sums = {key: total[key] for key in ("lines", "functions", "classes")}
    screen.heading("Report: the longest modules, and all")
    screen.say(table([*total["longest"], {"module": f"all {total['modules']}", **sums}]))


def show_account(screen: Screen, start: datetime.datetime, best: float) -> None:
    account = account_since(start)
    plural = "" if account.periodic == 1 else "s"
    screen.heading("Account")
    screen.say(f"  tasks     {account.tasks}, of which {account.failed} failed")
    screen.say(f"  speed     {account.per_second:.0f} tasks/s over {account.seconds:.1f} s")
    screen.say(f"  retries   {account.retries} (the report, until the last module was there)")
    screen.say(f"  workers   {account.workers} took part")
    screen.say(f"  periodic  {account.periodic} run{plural}, saw up to {best:.0f} modules/s")
