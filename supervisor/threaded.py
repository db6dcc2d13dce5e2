"""`--mode thread`: the Runner of dbtasks, driven by the same command line and signals."""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbtasks.engines.network import CONNECTION_PATIENCE
from dbtasks.runner import Runner

from .logs import reopen_logs
from .metrics_server import serve_in_thread
from .reloader import LOOK as LOOK_AT_CODE
from .reloader import Changes
from .status import write_status

if TYPE_CHECKING:
    from .application import Application
    from .config import RunConfig
    from .pidfile import Pidfile
    from .signals import SignalInbox  # not everywhere: Windows lacks most of them

logger = logging.getLogger("dbtasks")

LOOK = 0.1  # seconds between two looks at the signals
STATUS_EVERY = 5.0  # seconds; a health check accepts three times as much
INTERRUPT_GRACE = 5.0  # seconds between TaskInterrupted and giving up on a thread
ABANDON_GRACE = 3.0  # seconds for giving rows back; if the database hangs, the lease does it
INTERRUPT_AGAIN = 1.0  # seconds until a task that swallowed TaskInterrupted gets the next one
EXIT_OK, EXIT_INTERNAL = 0, 1
PROCESSES_ONLY = ("max_tasks", "max_memory")
CHECK_TIMEOUT = 60.0  # seconds for the check of changed code in a fresh process


def run_threaded(
    application: Application, inbox: SignalInbox | None, pidfile: Pidfile | None
) -> int:
    """Runs until a signal says stop, or until nothing is ready with --burst."""
    config = application.config
    warn_of_idle_settings(config)
    # One number for all threads: the one that renews the lease has to do so in time.
    lease = application.backend.parsed.worker_timeout
    application.backend.engine.prepare_connections(min(CONNECTION_PATIENCE, lease * 2 / 3))
    runner = Runner(
        workers=config.workers,
        worker_id=config.worker_id,
        backend=application.backend.alias,
        loop_delay=config.delay,
        init_periodic=config.periodic,
        queues=config.queues,
        exclude_queues=config.exclude_queues,
        burst=config.burst,
    )
    failures: list[BaseException] = []

    def serve() -> None:
        try:
            runner.run()
        except BaseException as error:
            logger.critical("the runner crashed", exc_info=error)
            failures.append(error)

    if config.metrics_port is not None:
        serve_in_thread(config.metrics_port, application.backend.alias)
    thread = threading.Thread(target=serve, name="dbtasks-runner", daemon=True)
    thread.start()
    if inbox is not None:
        inbox.booting = False
    overseer = Overseer(runner, thread, inbox, application)
    if not overseer.wait():
        logger.error("a task does not end; it goes back to the queue")
        abandoning = threading.Thread(target=runner.abandon, name="dbtasks-abandon", daemon=True)
        abandoning.start()
        abandoning.join(ABANDON_GRACE)
        if pidfile is not None:
            pidfile.release()
        leave()
    if overseer.restarts:
        execute(application, pidfile)
    if inbox is not None:
        inbox.ignore()
    return EXIT_INTERNAL if failures else EXIT_OK


def execute(application: Application, pidfile: Pidfile | None) -> None:
    """Becomes the changed code, with the same pid. Returns only if that is impossible."""
    environ = {**os.environ, **(pidfile.environ() if pidfile is not None else {})}
    try:
        os.execve(application.argv[0], list(application.argv), environ)
    except OSError as error:
        logger.error("cannot restart: %s", error)


def check_code(application: Application, path: Path) -> bool:
    """Whether the changed code loads in a fresh process; if not, says why."""
    logger.info("%s changed: checking the new code", path)
    command = [*application.argv, "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.error("not reloading: the new code cannot be checked: %s", error)
        return False
    if done.returncode:
        told = f"{done.stdout}{done.stderr}".strip()
        logger.error("not reloading: the check of the new code failed\n%s", told)
    return not done.returncode


def warn_of_idle_settings(config: RunConfig) -> None:
    """What only worker processes can do was asked for."""
    for name in PROCESSES_ONLY:
        if config.is_explicit(name) and getattr(config, name):
            logger.warning(
                "%s has no effect with --mode thread; it needs --mode process",
                config.sources[name],
            )


def leave() -> None:
    """At once: the interpreter would wait for threads that a task which never ends has started."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(EXIT_OK)


class Overseer:
    """The main thread: signals, and the status file."""

    def __init__(
        self,
        runner: Runner,
        thread: threading.Thread,
        inbox: SignalInbox | None,
        application: Application,
    ) -> None:
        self.runner = runner
        self.thread = thread
        self.inbox = inbox
        self.application = application
        self.config = application.config
        self.changes = Changes() if application.reloads else None
        self.changes_at = 0.0
        self.restarts = False
        self.interrupts = 0
        # time.monotonic() of the next TaskInterrupted, and of the end of our patience with it.
        self.interrupt_at = self.give_up_at = math.inf
        self.status_at = 0.0
        self.told_ready = self.complained = False

    def wait(self) -> bool:
        """Whether the runner ended; False when a task outlived all that it was granted."""
        while self.thread.is_alive():
            try:
                self.thread.join(LOOK)
            except KeyboardInterrupt:  # where there is no inbox
                self.on_signal(signal.SIGINT)
            for signum in self.inbox.read() if self.inbox is not None else ():
                self.on_signal(signum)
            self.look_for_answers()
            now = time.monotonic()
            if not self.told_ready and self.runner.ready.is_set():
                self.told_ready = True
                self.status_at = now
                logger.info("ready")
            if now >= self.interrupt_at:
                self.interrupt(now)
            if now >= self.give_up_at:
                return False
            if now >= self.status_at:
                self.status_at = now + STATUS_EVERY
                self.write_status()
            if self.changes is not None and not self.runner.stopping and now >= self.changes_at:
                self.changes_at = now + LOOK_AT_CODE
                self.look_at_code(self.changes)
        return True

    def look_for_answers(self) -> None:
        """A database that never answers raises no error anywhere; but nobody renews the lease."""
        lease = self.runner.lease
        if lease.is_lapsed and not self.runner.degraded:
            self.unanswered = True
            half = lease.node.lease / 2
            self.runner.database_lost(
                self, f"database {self.runner.engine.alias!r} has not answered for {half:g} s"
            )
        elif self.unanswered and not lease.is_lapsed:
            self.unanswered = False
            self.runner.database_found(self)

    unanswered = False

    def look_at_code(self, changes: Changes) -> None:
        """Restarts with changed code, if it loads; until then the old code serves on."""
        path = changes.look()
        if path is not None and check_code(self.application, path):
            self.restarts = True
            self.drain()

    def on_signal(self, signum: int) -> None:
        """TERM and INT drain, a second INT interrupts, a third one and QUIT leave at once."""
        match signum:
            case signal.SIGTERM:
                self.drain()
            case signal.SIGINT:
                self.interrupts += 1
                self.drain()
                if self.interrupts == 2:
                    self.interrupt_at = time.monotonic()
                elif self.interrupts > 2:
                    self.give_up_at = time.monotonic()
            case signal.SIGQUIT:
                self.drain()
                self.give_up_at = time.monotonic()
            case signal.SIGUSR1:
                reopen_logs()
            case signal.SIGUSR2:
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
            case signal.SIGCHLD:
                pass  # a child that some task has started; it is not ours to reap
            case _:
                name = signal.Signals(signum).name
                logger.warning("%s has no meaning with --mode thread", name)

    def drain(self) -> None:
        """No further claims; idempotent."""
        if math.isinf(self.interrupt_at):
            logger.info("draining: finishing what runs, at most %g s", self.config.grace)
            self.interrupt_at = time.monotonic() + self.config.grace
            self.status_at = 0.0
            self.runner.stop()

    def interrupt(self, now: float) -> None:
        """TaskInterrupted in what still runs; its rows go back uncounted."""
        if math.isinf(self.give_up_at):
            logger.warning("interrupting the running tasks")
            self.give_up_at = now + INTERRUPT_GRACE
        self.runner.interrupt()
        self.interrupt_at = now + INTERRUPT_AGAIN

    def write_status(self) -> None:
        """For --healthcheck. A full disk or a missing directory is told once, and harms nothing."""
        path = self.config.status_file
        if path is None:
            return
        try:
            write_status(path, self.status())
            self.complained = False
        except OSError as error:
            if not self.complained:
                self.complained = True
                logger.error("--status-file %s cannot be written: %s", path, error)

    def status(self) -> dict[str, Any]:
        """The keys that the supervisor writes too."""
        rows = self.runner.worker_rows()
        return {
            "node": self.runner.node.name,
            "node_id": self.runner.node.id,
            "state": self.state(),
            "workers_up": len(rows),
            "workers_wanted": self.config.workers,
            "scheduler_up": self.runner.ready.is_set(),
            "database_down": self.runner.degraded,
            "children": rows,
        }

    def state(self) -> str:
        """One of the states of the status file."""
        if self.runner.stopping:
            return "draining"
        if self.runner.degraded:
            return "degraded"
        return "running" if self.runner.ready.is_set() else "starting"
