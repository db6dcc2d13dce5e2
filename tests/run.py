"""``make test``: the whole suite on every database that can be had here, and one line for each.

    python -m tests.run                               every database, side by side
    python -m tests.run --database sqlite -k name -x  what is not ours goes to pytest

A database that is missing is skipped loudly; in continuous integration (``CI=true``), or when it
was asked for by name, that is a failure. So is a process that outlives the tests it belongs to.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.servers import SERVERS, Server

ROOT = Path(__file__).resolve().parent.parent
RUN_ID = "DBTASKS_TEST_RUN_ID"
LOOK_SECONDS = 1.0
FAMILY_SECONDS = 3.0  # a look at every process of the machine is not free
LEAVE_SECONDS = 5.0
TIDY_SECONDS = 15.0
MEMORY, ENOUGH_MEMORY = "/dev/shm", 6 << 30
# The mark of what runs beside the rest of a database's tests, the name of that lane, its halves.
PARTS = {
    "sqlite": ("once", "not about a database", (" 1", " 2")),
    "postgresql": ("outage", "postgresql outages", ("",)),
    "mariadb": ("outage", "mariadb outages", ("",)),
}


@dataclass
class Report:
    """What became of one database's run."""

    name: str
    version: str = ""
    code: int = 0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problem: str = ""
    leftovers: list[str] = field(default_factory=list)
    output: str = ""

    @property
    def ok(self) -> bool:
        finished = self.code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        return finished and not self.problem and not self.leftovers

    def line(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        text = f"{self.name} {self.version}".rstrip() + f": {counts} in {self.seconds:.0f} s"
        if self.problem:
            text += f"; {self.problem}"
        return "\n  still running: ".join([text, *self.leftovers])


class Family:
    """The processes of one run: how we know, at its end, who should have left and did not.

    Three signs, for each alone can be lost: a descendant when we looked, the session that pytest
    leads, and the run's id in the environment (which setproctitle overwrites).
    """

    def __init__(self, leader: int, run_id: str) -> None:
        self.leader = leader
        self.run_id = run_id
        self.seen: set[psutil.Process] = set()

    def look(self) -> None:
        # Forget the dead: their pids are given to strangers one day.
        self.seen = {process for process in self.seen if process.is_running()}
        pids = {self.leader, *(process.pid for process in self.seen)}
        for process in psutil.process_iter():
            try:
                if process.ppid() in pids:
                    self.seen.add(process)
                    pids.add(process.pid)
            except psutil.Error:
                continue

    def leftovers(self) -> list[str]:
        """Those that live on after a moment's grace, as "pid: command line"."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while (alive := list(self._alive())) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        return alive

    def _alive(self) -> Iterator[str]:
        for process in psutil.process_iter():
            try:
                if self._belongs(process) and process.status() != psutil.STATUS_ZOMBIE:
                    yield f"{process.pid}: {' '.join(process.cmdline()).strip()}"
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue

    def _belongs(self, process: psutil.Process) -> bool:
        return (
            process in self.seen
            or os.getsid(process.pid) == self.leader
            or process.environ().get(RUN_ID) == self.run_id
        )


class Suite:
    """Runs pytest once per database; ``interrupt`` reaches those that run at the moment."""

    def __init__(self, pytest_arguments: list[str], timeout: float) -> None:
        self.pytest_arguments = pytest_arguments
        self.timeout = timeout
        self.interrupted = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, server: Server, *, buffered: bool) -> Report:
        report = Report(server.lane or server.name)
        try:
            with server, tempfile.TemporaryDirectory(prefix="dbtasks-run-") as folder:
                report.version = server.version
                with _output(folder, buffered) as output:
                    self._run_pytest(server, Path(folder), output, report)
                    report.output = _written(output)
        except (OSError, RuntimeError) as error:
            report.problem = str(error)
        return report

    def interrupt(self) -> None:
        self.interrupted.set()
        for process in list(self._running):
            process.send_signal(signal.SIGINT)

    def _run_pytest(
        self, server: Server, folder: Path, output: IO[bytes] | None, report: Report
    ) -> None:
        run_id = uuid.uuid4().hex
        summary = folder / "summary.xml"
        cache = f".pytest_cache/{report.name.replace(' ', '-')}"
        started = time.monotonic()
        # A session of its own: the mark by which leftovers are known; Ctrl-C is passed on.
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", f"--junitxml={summary}"),
                *("-o", f"cache_dir={cache}", *self.pytest_arguments),
                *server.pytest_arguments,
            ],
            cwd=ROOT,
            env=os.environ | {"DBTASKS_TEST_DATABASE_URL": server.url, RUN_ID: run_id},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        family = Family(process.pid, run_id)
        self._running.add(process)
        if self.interrupted.is_set():
            self.interrupt()
        report.code = self._wait(process, family, report)
        self._running.discard(process)
        report.seconds = time.monotonic() - started
        report.leftovers = family.leftovers()
        _count(summary, report)

    def _wait(self, process: subprocess.Popen[bytes], family: Family, report: Report) -> int:
        deadline = time.monotonic() + self.timeout
        look_at = 0.0
        while True:
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + FAMILY_SECONDS
                family.look()
            try:
                return process.wait(LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                late = time.monotonic() - deadline
            if late > TIDY_SECONDS:
                process.kill()
            elif late > 0 and not report.problem:
                report.problem = f"interrupted after {self.timeout:.0f} s (--timeout)"
                process.send_signal(signal.SIGINT)


@contextmanager
def _output(folder: str, buffered: bool) -> Iterator[IO[bytes] | None]:
    """A file for the output of a run beside others, None (the terminal) for one that is alone."""
    if not buffered:
        yield None
        return
    with open(Path(folder, "output"), "w+b") as output:
        yield output


def _written(output: IO[bytes] | None) -> str:
    if output is None:
        return ""
    output.seek(0)
    return output.read().decode(errors="replace")


def _count(summary: Path, report: Report) -> None:
    """Read the numbers from pytest's JUnit file; a run that died early has not written one."""
    if not summary.exists():
        report.problem = report.problem or f"pytest ended with {report.code}, without a summary"
        return
    for suite in ElementTree.parse(summary).getroot().iter("testsuite"):
        number = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
        report.failed += number["failures"] + number["errors"]
        report.skipped += number["skipped"]
        report.passed += number["tests"] - sum(list(number.values())[1:])


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.run", allow_abbrev=False, epilog="All else is given to pytest."
    )
    parser.add_argument(
        "--database", action="append", choices=SERVERS, help="only this one; may be repeated"
    )
    # Those that take longest wait more than they work: whoever begins late is the last to end.
    parser.add_argument("--jobs", type=int, default=99, help="runs at a time (default: all)")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds for one database (default 1800)"
    )
    return parser.parse_known_args(arguments)


def run_all(suite: Suite, servers: list[Server], jobs: int) -> list[Report]:
    """Run the suite on each server, ``jobs`` at a time, and print each output as one piece."""
    buffered = min(jobs, len(servers)) > 1
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = [pool.submit(suite.run, server, buffered=buffered) for server in servers]
        try:
            for future in as_completed(futures):
                report = future.result()
                if report.output:
                    print(f"\n===== {report.name} {report.version} =====\n{report.output}")
                sys.stdout.flush()
        except KeyboardInterrupt:
            suite.interrupt()
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures if not future.cancelled()]


def lanes(servers: list[Server], pytest_arguments: list[str]) -> list[Server]:
    """Each server's run in parts, side by side.

    SQLite's is parted by what is about a database and what is not (the mark ``once``), the others'
    by what needs a server of its own to break (the mark ``outage``), for that mostly waits.
    """
    if "-m" in pytest_arguments:
        return servers
    result: list[Server] = []
    for server in servers:
        mark, name, halves = PARTS[server.name]
        server.pytest_arguments = ("-m", f"not {mark}")
        result.append(server)
        for half in halves:
            rest = SERVERS[server.name]()
            rest.lane, rest.pytest_arguments = f"{name}{half}", ("-m", mark)
            if half:
                rest.pytest_arguments += ("--half", half.strip())
            result.append(rest)
    return result


def use_memory() -> None:
    """Keeps databases and folders in memory, if there is plenty: no lane waits for a disk."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK):
        return
    if shutil.disk_usage(MEMORY).free >= ENOUGH_MEMORY:
        os.environ["TMPDIR"] = tempfile.tempdir = MEMORY


def main(arguments: list[str]) -> int:
    """Exit code 0: every test of every database passed; 1: anything else."""
    options, pytest_arguments = parse(arguments)
    # SIGINT too: a shell's background job inherits it ignored, and so would pytest.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    use_memory()
    names = list(dict.fromkeys(options.database or SERVERS))
    reasons = {name: SERVERS[name]().available() for name in names}
    servers = [SERVERS[name]() for name in names if not reasons[name]]
    print("Testing on", ", ".join(server.name for server in servers) or "nothing", flush=True)

    suite = Suite(pytest_arguments, options.timeout)
    reports = run_all(suite, lanes(servers, pytest_arguments), options.jobs)

    print()
    for report in reports:
        print(report.line())
    skips = [name for name in names if reasons[name]]
    for name in skips:
        print(f"{name}: SKIPPED, {reasons[name]}")
    if not any(report.passed + report.failed for report in reports):
        print("no test ran")
        return 1
    skip_fails = bool(skips) and (options.database or os.environ.get("CI") in ("true", "1"))
    if skip_fails or suite.interrupted.is_set() or not all(report.ok for report in reports):
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
