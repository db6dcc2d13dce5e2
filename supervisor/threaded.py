"""`--mode thread`: the Runner of dbtasks, driven by the same command line and signals."""

from __future__ import annotations

import logging
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from dbtasks.runner import Runner

if TYPE_CHECKING:
    from .application import Application

logger = logging.getLogger("dbtasks")

INTERRUPT_GRACE = 5.0  # seconds between TaskInterrupted and giving up on a thread
EXIT_OK, EXIT_INTERNAL = 0, 1


def run_threaded(application: Application, inbox: Any) -> int:
    """Runs until a signal says stop, or until nothing is ready with --burst."""
    config = application.config
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
            failures.append(error)

    thread = threading.Thread(target=serve, name="dbtasks-runner", daemon=True)
    thread.start()
    if inbox is not None:
        inbox.booting = False
    wait_for_end(runner, thread, inbox, config.grace)
    return EXIT_INTERNAL if failures or thread.is_alive() else EXIT_OK


def wait_for_end(runner: Runner, thread: threading.Thread, inbox: Any, grace: float) -> None:
    """TERM and INT drain; after the grace period, or on a second INT, tasks are interrupted."""
    interrupt_at: float | None = None
    give_up_at: float | None = None
    interrupts = 0
    while thread.is_alive():
        thread.join(0.1)
        for signum in inbox.read() if inbox is not None else ():
            if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                interrupts += signum == signal.SIGINT
                if interrupt_at is None:
                    logger.info("draining: finishing what runs, at most %g s", grace)
                    interrupt_at = time.monotonic() + grace
                    runner.stop()
                if interrupts > 1 or signum == signal.SIGQUIT:
                    interrupt_at = time.monotonic()
        now = time.monotonic()
        if interrupt_at is not None and now >= interrupt_at and give_up_at is None:
            give_up_at = now + INTERRUPT_GRACE
        if give_up_at is not None:
            runner.interrupt()
            if now >= give_up_at:
                logger.error("a task does not end; leaving it to the lease")
                return
