"""The supervisor: an event loop that decides, and never waits for anything but events.

It has one thread, no database connection and runs no user code, so nothing that a task, a worker
or the database does can keep it from answering a signal. Deadlines are on the monotonic clock.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from enum import IntEnum

from dbtasks.engines import Death, NodeInfo
from dbtasks.ids import random_suffix

from .application import Application
from .cancel import Cancels
from .channel import Message
from .child import Child, Kind, Life, Slot, describe_end
from .errands import Errands
from .exporter import Exporter
from .janitor import Rescue
from .logs import reopen_logs, set_process_name
from .newborn import EXIT_BOOT, EXIT_CRASHED
from .nursery import Nursery
from .outage import Outage
from .overrun import Overruns
from .pidfile import Pidfile
from .process import become_subreaper, set_title
from .relay import Relay
from .reload import Reload, adopt_children
from .report import Reporter
from .signals import (
    DRAIN,
    DUMP_STACKS,
    INTERRUPT,
    KILL_NOW,
    ONE_LESS,
    ONE_MORE,
    RELOAD,
    REOPEN_LOGS,
    SignalInbox,
)
from .systemd import Notifier
from .vigil import Vigil

logger = logging.getLogger("dbtasks")

LOOK = 1.0  # seconds between two looks after the children
INTERRUPT_GRACE = 5.0  # seconds between TaskInterrupted and SIGKILL
JANITOR_GRACE = 5.0  # seconds for the last rescue when we leave; afterwards the lease does it
GIVE_UP = 300.0  # seconds without a healthy worker
EXIT_OK, EXIT_GAVE_UP = 0, 5


class Phase(IntEnum):
    STARTING = 0
    RUNNING = 1
    DRAINING = 2
    INTERRUPTING = 3
    KILLING = 4
    LEAVING = 5
    DONE = 6


class Supervisor:
    """One node: its slots, its children and what to do when something happens to them."""

    def __init__(
        self, application: Application, inbox: SignalInbox, pidfile: Pidfile | None = None
    ) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.application = application
        self.config = config = application.config
        self.inbox = inbox
        self.pidfile = pidfile
        self.notifier = Notifier.from_environ()
        self.node = NodeInfo(
            id=random_suffix() + random_suffix(),
            name=config.worker_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            kind="supervisor",
            lease=application.backend.parsed.worker_timeout,
        )
        self.nursery = Nursery(application, self.node, inbox)
        # It renews the lease: while it waits, other nodes must not take us for dead.
        self.slots = [Slot(0, Kind.SCHEDULER, longest_backoff=self.node.lease / 4)]
        self.slots += [Slot(number, Kind.WORKER) for number in range(1, config.workers + 1)]
        self.phase = Phase.STARTING
        self.exit_code = EXIT_OK
        self.errands = Errands(self.nursery)
        self.phase_ends = 0.0
        self.interrupts = 0
        self.looked_at = 0.0
        self.outage = Outage(self.nursery)
        self.vigil = Vigil(self.nursery, config.max_memory)
        self.overruns = Overruns(self.nursery, self.errands)
        self.cancels = Cancels(self.nursery, self.overruns)
        self.reload = Reload(
            application, self.nursery, self.notifier, pidfile, self.overruns, self.errands
        )
        self.relay = Relay(self.nursery)
        self.exporter = Exporter(self.nursery, config.metrics_port)
        self.reporter = Reporter(self)

    # The loop

    def run(self) -> int:
        """Until everything has ended; returns the exit code."""
        become_subreaper()
        set_title(f"dbtasks: {self.config.worker_id} supervisor")
        set_process_name(self.config.worker_id)
        adopt_children(self.nursery)
        logger.info(
            "supervisor %s (pid %d): %d workers on queues %s of backend %s",
            self.config.worker_id,
            os.getpid(),
            self.config.workers,
            self.application.queues,
            self.application.backend.alias,
        )
        self.inbox.booting = False
        while self.phase is not Phase.DONE:
            self.step()
        self.inbox.ignore()
        self.notifier.close()
        self.nursery.selector.close()
        logger.info("supervisor %s has ended", self.config.worker_id)
        return self.exit_code

    def step(self) -> None:
        """Waits for events or for the next deadline, and acts."""
        for key, _ in self.nursery.selector.select(self.time_to_act()):
            if isinstance(key.data, Child):
                self.listen(key.data)
        for signum in self.inbox.read():
            self.on_signal(signum)
        for child, status in self.nursery.reap():
            self.listen(child)
            self.on_end(child, status)
        now = time.monotonic()
        self.vigil.keep_deadlines(now)
        self.overruns.look(now)
        self.cancels.look(now)
        if now - self.looked_at >= LOOK:
            self.looked_at = now
            self.look_after_children(now)
        self.fill_slots(now)
        if self.phase < Phase.LEAVING:
            self.exporter.look(now)
        self.errands.start(now, cleanup=self.phase is Phase.RUNNING)
        self.shut_down_further(now)
        self.reporter.report(now)
        if self.phase is Phase.RUNNING:
            self.reload.go_on()

    def time_to_act(self) -> float:
        """Seconds until the next deadline, at most one look away."""
        now = time.monotonic()
        times = [self.looked_at + LOOK]
        times += [slot.restart_at for slot in self.slots if self.may_fill(slot)]
        for child in self.nursery:
            times += [at for at in (child.kill_at, child.deadline) if at is not None]
        # What cannot be acted upon yet is no deadline: it would keep the loop spinning.
        if self.phase in (Phase.DRAINING, Phase.INTERRUPTING, Phase.LEAVING):
            times.append(self.phase_ends)
        others = (self.errands.wake_at, self.overruns.wake_at, self.cancels.wake_at)
        times += [at for at in others if at is not None]
        return max(0.0, min(min(times) - now, LOOK))

    # Signals

    def on_signal(self, signum: int) -> None:
        match signum:
            case signal.SIGCHLD:
                pass
            case _ if signum == DRAIN:
                self.drain("SIGTERM")
            case _ if signum == INTERRUPT:
                self.interrupts += 1
                match self.interrupts:
                    case 1:
                        self.drain("SIGINT; again to interrupt the running tasks")
                    case 2:
                        self.interrupt()
                    case _:
                        self.kill()
            case _ if signum == KILL_NOW:
                self.kill()
            case _ if signum == RELOAD:
                self.begin_reload("SIGHUP")
            case _ if signum == ONE_MORE:
                self.add_worker()
            case _ if signum == ONE_LESS:
                self.remove_worker()
            case _ if signum == REOPEN_LOGS:
                reopen_logs()
                for child in self.nursery:
                    child.channel.send("reopen_logs")
            case _ if signum == DUMP_STACKS:
                faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
                for child in self.nursery:
                    if child.kind is not Kind.CHECKER:  # a fresh process: the signal would end it
                        child.signal(signal.SIGUSR2)

    def add_worker(self) -> None:
        if self.phase <= Phase.RUNNING:
            for slot in self.slots:
                if not slot.wanted and slot.child is None:
                    slot.wanted = True
                    break
            else:
                self.slots.append(Slot(len(self.slots), Kind.WORKER))
            logger.info("one worker more: %d", self.wanted_workers)

    def remove_worker(self) -> None:
        if self.phase <= Phase.RUNNING and self.wanted_workers > 1:
            slot = next(s for s in reversed(self.slots) if s.kind is Kind.WORKER and s.wanted)
            slot.wanted = False
            if slot.child is not None:
                slot.child.drain()
            logger.info("one worker less: %d", self.wanted_workers)

    @property
    def wanted_workers(self) -> int:
        return sum(slot.wanted for slot in self.slots if slot.kind is Kind.WORKER)

    # Messages

    def listen(self, child: Child) -> None:
        for message in child.channel.receive():
            self.on_message(child, message)
        if child.channel.closed:
            self.nursery.mute(child)

    def on_message(self, child: Child, message: Message) -> None:
        match message["kind"]:
            case "ready":
                if child.life is Life.STARTING:
                    child.life = Life.RUNNING
                    if self.phase >= Phase.DRAINING:
                        child.drain()
                    self.reload.replaced(child)
                self.check_ready()
                self.recycle_one()  # its predecessor's place is filled: the next one may go
            case "work":
                self.wake_workers(int(message["count"]))
            case "announce":
                self.errands.announce(str(message["signal"]), **message["details"])
            case "counted":
                self.relay.receive(message)
            case "watch":
                self.overruns.watch(child)
            case "settled":
                self.overruns.settled(child, int(message["number"]))
            case "cancel":
                self.cancels.ask(message, time.monotonic())
            case "limit":
                child.deadline = float(message["deadline"])
            case "recycle":
                child.wants_recycling = True
                self.recycle_one()
            case "cleanup":
                self.errands.cleanup_wanted = True
            case "empty":
                self.drain("nothing is ready (--burst)")
            case "changed":
                self.begin_reload(f"{message['path']} changed")
            case "database_lost":
                self.outage.lost(child, str(message["why"]))
                self.check_ready()
            case "database_found":
                self.outage.found(child)

    def recycle_one(self) -> None:
        if self.phase is Phase.RUNNING:
            self.vigil.recycle_one()

    def check_ready(self) -> None:
        """READY when every slot's child is up, or is up but for the database."""
        if self.phase is Phase.STARTING and all(
            slot.child is not None and (slot.child.ready or slot.child.database_down)
            for slot in self.slots
            if slot.wanted
        ):
            self.phase = Phase.RUNNING
            logger.info("ready")
            self.reporter.ready()
            if self.application.reloads:
                self.nursery.fork_reloader()
            if self.reload_wanted:
                self.reload.begin(self.reload_wanted)

    def wake_workers(self, count: int) -> None:
        now = time.monotonic()
        for child in self.nursery.workers:
            if count <= 0:
                break
            count -= child.wake(now)

    # Ends

    def on_end(self, child: Child, status: int) -> None:
        crashed = child.has_crashed(status)
        match child.kind:
            case Kind.WORKER:
                self.bury_worker(child, status)
            case Kind.JANITOR:
                self.errands.bury(child, crashed)
            case Kind.EXPORTER:
                self.exporter.ended(child, crashed and self.phase < Phase.LEAVING)
            case Kind.CHECKER:
                self.reload.checked(status, self.phase is Phase.RUNNING)
            case Kind.SCHEDULER:
                if crashed and self.phase < Phase.LEAVING:
                    reason = child.verdict or describe_end(status)
                    logger.error("the scheduler died: %s", reason)
                    if child.node == self.node.id:
                        self.wake_workers(len(self.slots))
        self.overruns.forget(child)
        self.cancels.forget(child)
        for slot in self.slots:
            if slot.child is child:
                bad_end = crashed and not child.cancelled
                slot.note_end(child, bad_end, random.uniform(0.75, 1.25))
        self.note_boot_failure(child, status)
        child.close()
        self.outage.ended(child)

    def bury_worker(self, child: Child, status: int) -> None:
        """Has its rows rescued. One from before a reload has no board: then the rows tell."""
        view = child.board.read() if child.board is not None else None
        crashed = child.has_crashed(status)
        if view is not None and not crashed:
            return
        reason = child.verdict or describe_end(status)
        running = None
        if view is not None:
            running = frozenset({view.task_id} if view.running else ())
        if crashed:
            logger.log(
                logging.ERROR if child.counted else logging.WARNING,
                "worker %s (pid %d) died: %s%s",
                child.identity,
                child.pid,
                reason,
                f", while it ran {view.task_path}" if view is not None and view.running else "",
                extra={"worker_id": child.identity},
            )
            self.errands.announce(
                "worker_stopped",
                worker_id=child.identity,
                node=self.node.name,
                crashed=True,
                reason=reason,
            )
        death = Death(reason=reason, running=running, counted=child.counted)
        done = child.hand.unwritten(again=True) if child.hand is not None else ()
        self.errands.add(Rescue(child.node, child.identity, death, done))

    def note_boot_failure(self, child: Child, status: int) -> None:
        """A child that cannot even start is fatal, but only before the first READY."""
        if (
            self.phase is Phase.STARTING
            and not child.ready
            and child.kind in (Kind.WORKER, Kind.SCHEDULER)
            and os.WIFEXITED(status)
            and os.WEXITSTATUS(status) in (EXIT_CRASHED, EXIT_BOOT)
        ):
            logger.critical("%s cannot start; giving up (see the traceback above)", child.identity)
            self.exit_code = EXIT_BOOT
            self.kill()

    # Looking after the living

    def look_after_children(self, now: float) -> None:
        """Once a second; and the waker of last resort, while nobody else looks at the queue."""
        self.vigil.look(now)
        self.outage.look(now)
        self.overruns.chase(now)
        self.relay.pass_on()
        self.relay.tell_rates(now)
        self.reporter.look_for_trouble()
        self.check_ready()
        self.recycle_one()
        if self.phase is Phase.RUNNING and not any(
            child.ready and child.stopped_since is None
            for child in self.nursery.of_kind(Kind.SCHEDULER)
        ):
            self.wake_workers(1)
        if self.outage.since is not None:
            self.vigil.healthy_at = now  # a node is not unwell because its database is down
        if self.phase <= Phase.RUNNING and now - self.vigil.healthy_at > GIVE_UP:
            logger.critical("no worker stayed alive for %g s; giving up", GIVE_UP)
            self.exit_code = EXIT_GAVE_UP
            self.kill()

    # Filling slots

    def may_fill(self, slot: Slot) -> bool:
        """No worker starts during a drain; the scheduler is wanted until the end."""
        last = Phase.RUNNING if slot.kind is Kind.WORKER else Phase.KILLING
        return slot.wanted and slot.child is None and self.phase <= last

    def fill_slots(self, now: float) -> None:
        for slot in self.slots:
            if not self.may_fill(slot) or now < slot.restart_at:
                continue
            try:
                if slot.kind is Kind.SCHEDULER:
                    slot.child = self.nursery.fork_scheduler(self.phase >= Phase.DRAINING)
                else:
                    slot.child = self.nursery.fork_worker(slot.number)
            except OSError as error:
                slot.crashes += 1
                slot.restart_at = now + min(0.5 * 2.0**slot.crashes, 60.0)
                logger.error("cannot fork (%s); trying again", error)
            else:
                self.reporter.tell_scheduler_soon()

    # Reloading

    def begin_reload(self, why: str) -> None:
        """One that comes while we start is not forgotten: our code may be older than it."""
        if self.phase is Phase.STARTING:
            self.reload_wanted = why
        elif self.phase is Phase.RUNNING:
            self.reload.begin(why)

    reload_wanted = ""

    # The end

    def drain(self, why: str) -> None:
        """No further claims; idempotent."""
        if self.phase >= Phase.DRAINING:
            return
        self.phase = Phase.DRAINING
        self.phase_ends = time.monotonic() + self.config.grace
        busy = sum(1 for c in self.nursery.workers if c.board and c.board.read().executing)
        logger.info("draining (%s): %d tasks run, at most %g s", why, busy, self.config.grace)
        self.reporter.stopping()
        for child in self.nursery:
            if child.kind in (Kind.WORKER, Kind.SCHEDULER, Kind.JANITOR):
                child.drain()
            elif child.kind is not Kind.EXPORTER:  # which is asked until the end
                child.kill()

    def interrupt(self) -> None:
        """TaskInterrupted in what still runs; its rows go back uncounted."""
        self.drain("interrupted")
        if self.phase < Phase.INTERRUPTING:
            self.phase = Phase.INTERRUPTING
            self.phase_ends = time.monotonic() + INTERRUPT_GRACE
            for child in self.nursery.workers:
                logger.warning("interrupting worker %s", child.identity)
                child.interrupt()

    def kill(self) -> None:
        """SIGKILL to what still lives; its rows go back uncounted."""
        self.drain("killed")
        if self.phase < Phase.KILLING:
            self.phase = Phase.KILLING
            self.phase_ends = time.monotonic() + JANITOR_GRACE
            for child in self.nursery.workers:
                child.kill("the supervisor was shut down", counted=False)

    def shut_down_further(self, now: float) -> None:
        """From drain to the end, as far as it goes now."""
        if self.phase < Phase.DRAINING:
            return
        if self.phase < Phase.LEAVING and not self.nursery.workers:
            self.leave_when_rescued(now)
        elif self.phase is Phase.DRAINING and now >= self.phase_ends:
            self.interrupt()
        elif self.phase is Phase.INTERRUPTING and now >= self.phase_ends:
            self.kill()
        elif self.phase is Phase.LEAVING:
            if not self.nursery.children:
                self.phase = Phase.DONE
            elif now >= self.phase_ends:
                self.nursery.kill_all()

    rescue_ends: float | None = None

    def leave_when_rescued(self, now: float) -> None:
        """The scheduler keeps the lease until no claim is left, and goes last."""
        self.rescue_ends = self.rescue_ends or now + JANITOR_GRACE
        if self.errands.pending:
            if now < self.rescue_ends:
                return
            if self.errands.is_busy:
                logger.error("leaving without rescue: the lease's end will do it")
        self.phase = Phase.LEAVING
        self.phase_ends = now + JANITOR_GRACE
        self.relay.pass_on()
        self.exporter.dismiss()
        schedulers = self.nursery.of_kind(Kind.SCHEDULER)
        for child in schedulers:
            child.channel.send("leave")
        if not schedulers:
            self.errands.say_farewell(self.node.id)
