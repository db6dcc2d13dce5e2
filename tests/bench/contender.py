"""Whoever runs tasks here, ours or a peer: how its workers start, and how its tables are read."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from tests.bench.databases import Database
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
DRAIN_SECONDS = 600.0
LEAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Contender:
    """One product with one configuration, in an environment and a database of its own.

    `command` gives the commands that are N worker processes, `settings` is its Django settings
    module, `tasks` the module with `enqueue` and `enqueue_many`. The rest is SQL: `unfinished`
    selects a row while tasks are left, `finished` counts those that succeeded, `span` selects the
    times of the first claim and of the last finish, `clear` empties the tables.
    """

    name: str
    database: Database
    settings: str
    tasks: str
    unfinished: str
    finished: str
    span: str
    clear: Sequence[str]
    command: Callable[[str, int], list[list[str]]]
    python: str = sys.executable
    environ: Mapping[str, str] = field(default_factory=dict)

    def with_(self, **environ: str) -> "Contender":
        """The same with more in its environment."""
        return replace(self, environ={**self.environ, **environ})

    def env(self, **more: str) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if "DJANGO" not in key}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return {
            **inherited,
            "PYTHONPATH": path,
            "DJANGO_SETTINGS_MODULE": self.settings,
            "DBTASKS_TEST_DATABASE_URL": self.database.url,
            "BENCH_TASKS": self.tasks,
            **self.environ,
            **more,
        }

    def work(self, *arguments: object) -> str:
        """Run tests.bench.work in its environment; what that prints. Raises RuntimeError."""
        command = [self.python, "-m", "tests.bench.work", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=self.env(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)} failed:\n{done.stderr}")
        return done.stdout

    def migrate(self) -> None:
        self.work("migrate")

    def reset(self) -> None:
        """Empty tables."""
        for statement in self.clear:
            self.database.ask(statement)

    def fill(self, count: int, task: str = "noop", *arguments: object) -> None:
        """Enqueue `count` calls and let the database settle; none of this is timed."""
        self.work("fill", task, count, *arguments)
        self.database.settle()

    @contextlib.contextmanager
    def running(self, count: int, **environ: str) -> Iterator[list[psutil.Popen]]:
        """Its worker processes; they have ended, with 0, when the block is left."""
        with tempfile.TemporaryDirectory(prefix="dbtasks-bench-") as folder:
            log = Path(folder, "log")
            with log.open("ab") as output:
                started = [
                    psutil.Popen(
                        command,
                        cwd=ROOT,
                        env=self.env(**environ),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                    for command in self.command(self.python, count)
                ]
            try:
                yield started
                for process in started:
                    process.terminate()
                codes = [process.wait(LEAVE_SECONDS) for process in started]
                if any(codes):
                    raise RuntimeError(f"{self.name} ended with {codes}")
            except BaseException as error:
                error.add_note(f"--- {self.name}\n{log.read_text(errors='replace')[-4000:]}")
                raise
            finally:
                for process in started:
                    end(process)

    def wait_drained(self, workers: Sequence[psutil.Popen] = ()) -> None:
        """Until no task is left. Raises AssertionError when it takes too long or a worker ends."""
        with contextlib.closing(self.database.connect()) as connection:

            def drained() -> bool:
                assert all(worker.poll() is None for worker in workers), "a worker has ended"
                cursor = connection.cursor()
                cursor.execute(self.unfinished)
                return cursor.fetchone() is None

            wait_until(drained, DRAIN_SECONDS, f"{self.name} to drain its queue")

    def count_finished(self) -> int:
        return int(self.database.ask(self.finished)[0][0])

    def drain(self, workers: int, count: int) -> float:
        """Seconds from the first claim to the last finish of the `count` tasks that wait."""
        with self.running(workers) as processes:
            self.wait_drained(processes)
        if (finished := self.count_finished()) != count:
            raise RuntimeError(f"{self.name} finished {finished} of {count} tasks with success")
        return self.database.span(self.span)


def end(process: psutil.Popen) -> None:
    """Kill it and its children, if anything of them is left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
