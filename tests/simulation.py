"""The world of test_periodic_simulation: virtual time, nodes that crash, and the model."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import datetime
import math
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self
from zoneinfo import ZoneInfo

from django.db import connection
from django.tasks import task_backends

from dbtasks import Periodic, periodic
from dbtasks.engines import NodeInfo
from dbtasks.models import Occurrence, PeriodicTask, ScheduledTask
from dbtasks.periodic.planner import Planner
from tests.clock import VirtualClock, virtual_clock
from tests.test_options import configured
from tests.waiting import wait_until

NOOP = "tests.app.tasks.noop"
BEGIN = datetime.datetime(2030, 1, 5, 7, 31, 17, tzinfo=datetime.UTC)
END = BEGIN + datetime.timedelta(days=900)
MOMENT, SECOND = datetime.timedelta(milliseconds=1), datetime.timedelta(seconds=1)
MINUTE, HOUR, DAY = (datetime.timedelta(minutes=n) for n in (1, 60, 1440))
ZONES = ("UTC", "America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu")
NAMES = [f"entry-{number}" for number in range(8)]


# The model's calendar: what a schedule means, day by day and minute by minute


@dataclasses.dataclass(frozen=True)
class Plan:
    """One entry's schedule and policy. `hour` None: every hour, in steps of `minute`."""

    minute: int
    hour: int | None
    weekday: int | None  # Sunday is 0
    day: int | None
    zone: str
    catch_up: str

    @property
    def text(self) -> str:
        if self.hour is None:
            return f"*/{self.minute} * * * *"
        day = "*" if self.day is None else self.day
        weekday = "*" if self.weekday is None else self.weekday
        return f"{self.minute} {self.hour} {day} * {weekday}"

    def times(self) -> list[datetime.datetime]:
        """Every due time of the simulation's years."""
        zone = ZoneInfo(self.zone)
        if self.hour is None:
            step = math.gcd(self.minute, 15) * MINUTE  # every zone's offset is a multiple of 15
            first = BEGIN.replace(minute=0, second=0) - DAY
            moments = (first + n * step for n in range((END - BEGIN + 2 * DAY) // step))
            return [m for m in moments if m.astimezone(zone).minute % self.minute == 0]
        found = []
        for number in range((END - BEGIN).days + 3):
            wall = (BEGIN.replace(tzinfo=None) - DAY + number * DAY).replace(
                hour=self.hour, minute=self.minute, second=0
            )
            if self.matches(wall):
                found.append(wall.replace(tzinfo=zone).astimezone(datetime.UTC))
        return sorted(set(found))

    def matches(self, wall: datetime.datetime) -> bool:
        by_day = self.day is not None and wall.day == self.day
        by_weekday = self.weekday is not None and wall.isoweekday() % 7 == self.weekday
        return by_day or by_weekday or (self.day is None and self.weekday is None)


def random_plan(chance: random.Random) -> Plan:
    often = chance.random() < 0.2
    return Plan(
        minute=chance.choice([15, 20, 30]) if often else chance.choice([0, 1, 30, 59]),
        hour=None if often else chance.choice([0, 1, 2, 3, 12, 23]),
        weekday=chance.choice([None, None, 0, 3]),
        day=chance.choice([None, None, None, 1, 29, 31]),
        zone=chance.choice(ZONES),
        catch_up=chance.choice(["latest", "all", "skip"]),
    )


_times: dict[tuple[Any, ...], list[datetime.datetime]] = {}


def due_within(
    plan: Plan, after: datetime.datetime, until: datetime.datetime
) -> list[datetime.datetime]:
    """The due times later than `after` and not later than `until`."""
    key = (plan.text, plan.zone)
    if key not in _times:
        _times[key] = plan.times()
    times = _times[key]
    return times[bisect.bisect_right(times, after) : bisect.bisect_right(times, until)]


# The model


@dataclasses.dataclass
class Expected:
    """What the documentation promises of one entry."""

    plan: Plan
    settled: datetime.datetime
    paused: bool = False

    def owed(self, now: datetime.datetime) -> list[datetime.datetime]:
        due = due_within(self.plan, self.settled, now)
        if self.paused or not due:
            return []
        match self.plan.catch_up:
            case "all":
                return [moment for moment in due if moment > now - DAY]
            case "skip":
                return due[-1:] if due[-1] > now - MINUTE else []
        return due[-1:]


class Crash(BaseException):
    """The process is gone: nothing that it wanted to do is done any more."""


class World:
    """Nodes, their settings, what operators do, and what must come of it."""

    def __init__(self, seed: int, nodes: int, clock: VirtualClock) -> None:
        self.chance = random.Random(seed)
        self.clock = clock
        self.engine = task_backends["default"].engine
        self.model: dict[str, Expected] = {}
        self.occurrences: set[tuple[str, datetime.datetime]] = set()
        self.version = {name: random_plan(self.chance) for name in NAMES[:5]}
        self.nodes: list[tuple[Planner, dict[str, Plan]]] = []
        self.checked = self.crashes = self.deploys = self.started = self.ran = self.waits = 0
        self.doomed = False
        self.paused: dict[str, bool] = {}  # a pause outlives the entry's absence
        self.deploy_settings(self.version)
        for _ in range(nodes):
            self.nodes.append(self.start(self.version))

    @classmethod
    @contextlib.contextmanager
    def begun(cls, seed: int, nodes: int) -> Iterator[Self]:
        with virtual_clock(BEGIN) as clock:
            yield cls(seed, nodes, clock)

    def report(self) -> str:
        return (
            f"{(self.clock.at - BEGIN).days} days, {self.checked} occurrences checked, "
            f"{self.crashes} crashes, {self.deploys} deploys, {self.waits} written ahead"
        )

    # One step

    def step(self) -> None:
        self.pass_time()
        for planner, _ in self.nodes:
            self.engine.renew_lease(planner.node)
            planner.wake_at(self.engine.glance())
        event = self.chance.random()
        if event < 0.03:
            self.deploy()
        elif event < 0.12:
            self.operate()
        elif event < 0.14:
            self.set_clock_back()
        self.tick(crash=self.chance.random() < 0.25)
        if self.chance.random() < 0.1:
            self.check()

    def pass_time(self) -> None:
        """Mostly until something is due, exactly; sometimes an outage of hours or weeks."""
        kind = self.chance.random()
        if kind < 0.75:
            soon = [
                due[0]
                for each in self.model.values()
                if (due := due_within(each.plan, self.clock.at, self.clock.at + 3 * DAY))
            ]
            due = min(soon, default=self.clock.at + HOUR)
            if kind < 0.2:
                self.foresee(due)
            # A moment before, those who have prepared it begin to write.
            self.clock.set(max(self.clock.at, due - MOMENT) if kind < 0.1 else due)
        elif kind < 0.95:
            self.clock.advance(self.chance.randint(1, 86_400) * datetime.timedelta(seconds=1))
        elif self.clock.at < END - 60 * DAY:
            self.clock.advance(self.chance.randint(1, 15) * DAY)

    def foresee(self, due: datetime.datetime) -> None:
        """Just before the due time the nodes prepare themselves."""
        self.clock.set(max(self.clock.at, due - 0.5 * SECOND))
        for planner, _ in self.nodes:
            planner.wake_at(self.engine.glance())
            planner.tick()
        self.expect()

    def sleep(self, seconds: float) -> None:
        """A node waits with what it has written."""
        self.waits += 1
        self.clock.advance(datetime.timedelta(seconds=seconds))

    def tick(self, crash: bool) -> None:
        """Some node's tick, which may crash; then another one finishes what is left."""
        planner, _ = self.chance.choice(self.nodes)
        if crash:
            self.doomed = self.chance.random() < 0.2  # to end right after the commit
            dead = self.crashing(planner.tick, self.chance.randint(0, 20))
            self.doomed = False
            self.expect_what_moved()
            if dead:
                self.restart(planner)
                if self.chance.random() < 0.5:
                    self.pass_time()
        self.work_off()
        self.expect()

    def expect(self, names: Collection[str] | None = None) -> None:
        """What these entries (default: all) owed at this time has been enqueued."""
        for name in self.model if names is None else names:
            each = self.model[name]
            self.occurrences |= {(name, due) for due in each.owed(self.clock.at)}
            each.settled = max(each.settled, self.clock.at)

    def expect_what_moved(self) -> None:
        """As far as ticks were committed: an entry that waits for a later time is dealt with."""
        due = PeriodicTask.objects.filter(next_due__lte=self.clock.at)
        self.expect(self.model.keys() - set(due.values_list("name", flat=True)))

    def work(self, count: int) -> None:
        if self.doomed:
            raise Crash

    def work_off(self) -> None:
        """Until nothing is due: all that the model knows of."""

        def nothing_is_due() -> bool:
            for planner, _ in self.chance.sample(self.nodes, len(self.nodes)):
                planner.tick()
            return self.engine.periodic_due()[0] is None

        wait_until(nothing_is_due, 30)

    def crashing(self, action: Callable[[], object], at: int) -> bool:
        """Ends the process before or after its statement number `at`; whether it came to that."""
        count = 0
        dead = False
        after = self.chance.random() < 0.5

        def count_statements(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            nonlocal count, dead
            if dead or (count == at and not after):
                dead = True
                raise Crash
            result = execute(sql, params, many, context)
            if count == at:
                dead = True
                raise Crash
            count += 1
            return result

        try:
            with connection.execute_wrapper(count_statements):
                action()
        except Crash:
            dead = True
            self.crashes += 1
            self.engine.close()
            self.clock.set(self.clock.at)  # if it advanced in the transaction that ended so
        return dead

    # Nodes

    def start(self, version: dict[str, Plan]) -> tuple[Planner, dict[str, Plan]]:
        """A node whose settings have these entries, ready to tick."""
        entries = [
            Periodic(plan.text, name=name, timezone=plan.zone, catch_up=plan.catch_up)
            for name, plan in version.items()
        ]
        self.started += 1
        node = NodeInfo(f"node-{self.started}", "node", "host", 1, "test", 60.0)
        with configured(periodic={NOOP: entries}):
            backend: Any = task_backends["default"]
            bound = backend.parsed.periodic
            planner = Planner(backend, node, bound, contextlib.nullcontext, self.work)
        self.engine.renew_lease(node)
        self.crashing(planner.review, self.chance.randint(0, 40))
        wait_until(planner.review, 30)
        planner.deployment.review_at = math.inf
        planner._crowded = True  # or it would not look ahead for so few
        planner.foresight.sleep = self.sleep
        planner.wake_at(self.engine.glance())
        return planner, version

    def restart(self, planner: Planner) -> None:
        index = [each for each, _ in self.nodes].index(planner)
        self.engine.end_lease(planner.node.id)
        self.nodes[index] = self.start(self.nodes[index][1])

    def deploy(self) -> None:
        """A new version on all nodes, one after the other; some old ones crash meanwhile."""
        self.deploys += 1
        version = dict(self.version)
        for _ in range(self.chance.randint(1, 3)):
            name = self.chance.choice(NAMES[:5])
            if name in version and self.chance.random() < 0.3:
                del version[name]
            else:
                version[name] = random_plan(self.chance)
        if version in [known for _, known in self.nodes]:
            return
        # Something that no version had before, for a deployment is known by its entries.
        number = self.deploys
        version["marker"] = Plan(number % 60, number // 60 % 24, None, 29, "UTC", "skip")
        self.version = version
        old = [planner for planner, _ in self.nodes]
        self.engine.end_lease(old[0].node.id)
        self.deploy_settings(version)
        self.nodes[0] = self.start(version)
        for planner in old[1:]:
            if self.chance.random() < 0.3:
                self.restart(planner)  # with the old settings: it changes nothing
        for index in range(1, len(self.nodes)):
            self.engine.end_lease(self.nodes[index][0].node.id)
            self.nodes[index] = self.start(version)

    def deploy_settings(self, version: dict[str, Plan]) -> None:
        """Unchanged schedules go on; new and edited ones begin now; others are gone."""
        for name in [*NAMES[:5], "marker"]:
            plan, known = version.get(name), self.model.get(name)
            if plan is None:
                if gone := self.model.pop(name, None):
                    self.paused[name] = gone.paused
                continue
            same = known is not None and (known.plan.text, known.plan.zone) == (
                plan.text,
                plan.zone,
            )
            paused = known.paused if known else self.paused.get(name, False)
            settled = known.settled if known and same else self.clock.at
            self.model[name] = Expected(plan, settled, paused)

    # What else happens

    def operate(self) -> None:
        name = self.chance.choice(NAMES)
        known = self.model.get(name)
        if known is None:
            if name in NAMES[5:]:
                self.schedule(name)
        elif known.paused:
            periodic.resume(name)
            known.paused, known.settled = False, max(known.settled, self.clock.at)
        elif self.chance.random() < 0.4:
            periodic.pause(name)
            known.paused = True
        elif name in NAMES[5:] and self.chance.random() < 0.4:
            periodic.unschedule(name)
            del self.model[name]
        elif name in NAMES[5:]:
            self.schedule(name)
        else:
            periodic.run_now(name)
            self.ran += 1

    def schedule(self, name: str) -> None:
        plan = random_plan(self.chance)
        periodic.schedule(name, NOOP, plan.text, timezone=plan.zone, catch_up=plan.catch_up)
        known = self.model.get(name)
        same = known is not None and (known.plan.text, known.plan.zone) == (plan.text, plan.zone)
        settled = known.settled if known and same else self.clock.at
        self.model[name] = Expected(plan, settled, known is not None and known.paused)

    def set_clock_back(self) -> None:
        """By up to two days; what has run does not run again."""
        earlier = max(BEGIN, self.clock.at - self.chance.randint(2, 2880) * MINUTE)
        self.clock.set(earlier)
        for planner, _ in self.nodes:
            self.engine.renew_lease(planner.node)
            planner.wake_at(self.engine.glance())
        for each in self.model.values():
            each.settled = min(each.settled, earlier)

    # The comparison

    def check(self) -> None:
        """Each occurrence that must be is there, once and with its task, and no other."""
        found = {
            (name, due): task_id
            for name, due, task_id in Occurrence.objects.values_list("name", "due_at", "task_id")
            if due.microsecond == 0
        }
        missing, extra = self.occurrences - found.keys(), found.keys() - self.occurrences
        assert not missing, f"missing: {sorted(missing)[:5]} at {self.clock.at}"
        assert not extra, f"too many: {sorted(extra)[:5]} at {self.clock.at}"
        ids = list(ScheduledTask.objects.values_list("id", flat=True))
        assert len(ids) == len(set(found.values())) + self.ran
        assert set(found.values()) <= set(ids)
        self.checked = len(found)

    def finish(self) -> None:
        self.work_off()
        self.check()
