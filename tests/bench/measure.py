"""The measures on the one database that the environment names."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import django
import psutil

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.models import Max, Min  # noqa: E402
from django.tasks import default_task_backend  # noqa: E402

from dbtasks.models import ScheduledTask  # noqa: E402
from tests.app import tasks  # noqa: E402

KILLS = 20


def main(count: int, idle_seconds: float) -> None:
    if connection.vendor == "mysql":
        with connection._nodb_cursor() as cursor:
            name = connection.settings_dict["NAME"]
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{name}` CHARACTER SET utf8mb4")
    call_command("migrate", run_syncdb=True, verbosity=0)
    drain(count, workers=2)
    drain(count, workers=4)
    rescue()
    idle(workers=8, seconds=idle_seconds)


@contextlib.contextmanager
def supervisor(*flags: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "django", "taskrunner", "--no-reload", *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stderr=file, stdout=file)
        try:
            until(lambda: " ready" in log.read_text() or process.poll() is not None)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                print(log.read_text())


def until(condition: Callable[[], object], seconds: float = 120.0, pause: float = 0.002) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(pause)


def unfinished() -> bool:
    return ScheduledTask.objects.filter(status__in=["READY", "RUNNING"]).exists()


def drain(count: int, workers: int) -> None:
    """From the first start to the last finish, by the database's clock."""
    ScheduledTask.objects.all().delete()
    began = time.perf_counter()
    default_task_backend.enqueue_all([(tasks.noop, [], {})] * count)
    bulk = count / (time.perf_counter() - began)
    with supervisor("-w", str(workers)):
        until(lambda: not unfinished(), pause=0.1)
    first, last = ScheduledTask.objects.aggregate(
        a=Min("started_at"), b=Max("finished_at")
    ).values()
    rate = count / (last - first).total_seconds()
    print(f"  drain, {count} no-op tasks, {workers} workers: {rate:,.0f}/s", end="")
    print(f"   (enqueue_all {bulk:,.0f}/s)", flush=True)


def rescue() -> None:
    """From kill -9 of a busy worker until its task is READY again or runs elsewhere."""
    delays = []
    with supervisor("-w", "2"), tempfile.TemporaryDirectory() as folder:
        for number in range(KILLS):
            started, release = Path(folder, f"{number}.started"), Path(folder, f"{number}.go")
            result = tasks.wait_for_file.enqueue(str(release), str(started))
            until(started.exists)
            row = ScheduledTask.objects.get(pk=result.id)
            victim = worker_pid(row.claimed_by)
            before = row.attempt
            killed = time.perf_counter()
            os.kill(victim, signal.SIGKILL)
            until(
                lambda pk=row.pk, claimed=row.claimed_by: (
                    ScheduledTask.objects.filter(pk=pk).exclude(claimed_by=claimed).exists()
                    or ScheduledTask.objects.filter(pk=pk, claimed_by=None).exists()
                )
            )
            delays.append((time.perf_counter() - killed) * 1000)
            release.touch()
            until(lambda pk=row.pk: ScheduledTask.objects.get(pk=pk).status == "SUCCESSFUL")
            assert ScheduledTask.objects.get(pk=row.pk).attempt == before + 1
    delays.sort()
    middle, worst = statistics.median(delays), delays[-1]
    print(f"  kill -9 to rescued, {KILLS} kills: median {middle:.0f} ms, most {worst:.0f} ms")


def worker_pid(identity: str | None) -> int:
    """The pid of a worker by its title: "dbtasks: NAME-1" for NAME-1.abcdef."""
    title = f"dbtasks: {str(identity).rpartition('.')[0]}"
    for process in psutil.process_iter(["cmdline"]):
        if " ".join(process.info["cmdline"] or []).strip() == title:
            return process.pid
    raise LookupError(title)


def idle(workers: int, seconds: float) -> None:
    """Statements per minute (PostgreSQL, MariaDB), CPU and memory of an idle node."""
    with supervisor("-w", str(workers)) as process:
        time.sleep(3)
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        cpu = sum(sum(member.cpu_times()[:2]) for member in family)
        before, began = statements(), time.monotonic()
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        spent = sum(sum(member.cpu_times()[:2]) for member in family) - cpu
        asked = statements() - before
        memory = sum(member.memory_full_info().pss for member in family) / 2**20
    per_minute = f"{asked * 60 / elapsed:.0f} {UNIT[connection.vendor]} a minute, "
    shown = per_minute if asked else ""
    print(f"  idle, {workers} workers: {shown}", end="")
    print(f"{spent / elapsed:.2%} of a core, PSS {memory:.0f} MiB in {len(family)} processes")


UNIT = {"postgresql": "transactions", "mysql": "statements", "sqlite": ""}


def statements() -> int:
    """The server's own count; what this asks itself is part of it, twice in a measure."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Backends report their counts at most once a second.
            cursor.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database"
                " WHERE datname = current_database()"
            )
            return int(cursor.fetchone()[0])
        if connection.vendor == "mysql":
            cursor.execute("SHOW GLOBAL STATUS LIKE 'Questions'")
            return int(cursor.fetchone()[1])
    return 0


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
