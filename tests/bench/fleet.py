"""Fleet: what fifty nodes ask of one database, computed from what each statement costs alone, and
the same with fifty nodes that are played by threads, all at once.

    python -m tests.bench.work fleet NODES WORKERS SECONDS LOAD TRIES

prints what it computed and what it saw as JSON. This module is imported by both sides, so what
needs Django is imported where it is used.
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from random import Random
from typing import Any

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.stage import Stage

WORKERS = 2  # of each node
THREADS = 8  # that play all nodes
PAUSE = 0.01  # seconds between two of them
# As the Timekeeper and the workers do it; seconds. Only PostgreSQL tells them of new tasks.
HEARTBEAT, PROMOTION, OWN_LOOK = 10.0, 60.0, 30.0
LOOK = {"postgresql": 2.0, "mariadb": 0.1}
IDLE_WORKER: dict[str, Any] = {
    "kind": "process",
    "pid": 1,
    "state": "idle",
    "task_id": "",
    "task_path": "",
    "task_seconds": None,
    "done": 0,
    "failed": 0,
    "restarts": 0,
    "memory": None,
}
CALLS, BUSY = "calls/s", "% of one connection"


@dataclass
class Chore:
    """Something that each node does again and again."""

    name: str
    per_second: float  # of one node
    do: Callable[[int], object]  # given the node's number
    cost: float = 0.0  # seconds, alone


@dataclass
class Seen:
    calls: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


def measure(stage: Stage) -> list[Figure]:
    """On a server that nodes can share; SQLite's file has one host."""
    sizes = stage.sizes
    if stage.database.vendor not in LOOK:
        return []
    ours = stage.ours()
    figures: list[Figure] = []
    for load in sizes.fleet_loads:
        told = f"{load:g} tasks/s each" if load else "idle"
        name = f"{sizes.fleet_nodes} nodes of {WORKERS} workers, {told}"
        words = [sizes.fleet_nodes, WORKERS, sizes.fleet_seconds, load, sizes.fleet_tries]
        run = functools.partial(once, ours, *words)
        figures += split(stage.repeat("fleet", [Case(ours.name, name, run)]))
    return figures


def once(contender: Contender, *words: object) -> dict[str, float]:
    contender.reset()
    found: dict[str, float] = json.loads(contender.work("fleet", *words))
    return found


def split(figures: list[Figure]) -> list[Figure]:
    """One line for what was computed and one for what was seen."""
    for figure in figures:
        figure.who, figure.unit = figure.unit.split(": ")
    return figures


def computed(chores: list[Chore], nodes: int) -> dict[str, float]:
    """Every node does all of it, and nothing costs more because there are others."""
    return {
        f"computed: {CALLS}": nodes * sum(chore.per_second for chore in chores),
        f"computed: {BUSY}": nodes * sum(chore.per_second * chore.cost for chore in chores) * 100,
    }


def simulated(chores: list[Chore], nodes: int, seconds: float) -> dict[str, float]:
    """All nodes for so many seconds, each chore at its own time."""
    results = [Seen() for _ in range(THREADS)]
    began = time.monotonic()
    threads = [
        threading.Thread(
            target=play,
            args=(chores, range(number, nodes, THREADS), began + seconds, seen, Random(number)),
        )
        for number, seen in enumerate(results)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - began
    if errors := [error for seen in results for error in seen.errors]:
        raise RuntimeError(errors[0])
    return {
        f"simulated: {CALLS}": sum(seen.calls for seen in results) / elapsed,
        f"simulated: {BUSY}": sum(seen.seconds for seen in results) / elapsed * 100,
    }


def play(chores: list[Chore], nodes: range, until: float, seen: Seen, random: Random) -> None:
    """Some nodes, by one thread with one connection; late chores are done as soon as possible."""
    from django.db import connections

    now = time.monotonic()
    # Each at a random moment of its period: nodes do not start together.
    plan = [
        (now + random.random() / chore.per_second, number, node)
        for number, chore in enumerate(chores)
        for node in nodes
    ]
    heapify(plan)
    try:
        while plan and plan[0][0] < until:
            due, number, node = plan[0]
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            chores[number].do(node)
            seen.seconds += time.monotonic() - began
            seen.calls += 1
            heapreplace(plan, (due + 1 / chores[number].per_second, number, node))
    except Exception as error:
        seen.errors.append(repr(error))
    finally:
        connections.close_all()


def main(nodes: str, workers: str, seconds: str, load: str, tries: str) -> None:
    """`tries`: of each statement, to know its cost."""
    from django.tasks import default_task_backend

    engine: Any = default_task_backend.engine  # type: ignore[attr-defined]
    chores = list(chores_of(engine, int(workers), float(load)))
    rate = sum(chore.per_second for chore in chores if chore.name == "task")
    fill(int(rate * int(nodes) * float(seconds) * 1.2) + 2 * int(tries))
    for number in range(int(nodes)):  # registered, with a first task in hand
        for chore in chores:
            chore.do(number)
    for chore in chores:
        chore.cost = cost(chore, int(nodes), int(tries))
    found = computed(chores, int(nodes)) | simulated(chores, int(nodes), float(seconds))
    for number in range(int(nodes)):
        engine.end_lease(f"{number:032x}")
    print(json.dumps(found))


def cost(chore: Chore, nodes: int, tries: int) -> float:
    """Seconds. With pauses, as it is in life: what comes now and then finds cold caches."""
    total = 0.0
    for number in range(tries):
        time.sleep(PAUSE)
        began = time.perf_counter()
        chore.do(number % nodes)
        total += time.perf_counter() - began
    return total / tries


def fill(count: int) -> None:
    from tests.bench.tasks import enqueue_many

    enqueue_many("noop", count)


def chores_of(engine: Any, workers: int, load: float) -> Iterator[Chore]:
    """What the processes of a node ask the database, and how often."""
    from dbtasks.engines import Claimant, NodeInfo, Outcome
    from dbtasks.queues import QueueSelection

    everything = QueueSelection()
    held: dict[int, list[Any]] = {}

    def heartbeat(number: int) -> None:
        node = NodeInfo(id=f"{number:032x}", name=f"n{number}", host="h", pid=1, kind="x", lease=60)
        engine.renew_lease(node)
        told = [IDLE_WORKER | {"id": f"{node.id}-{each}"} for each in range(workers)]
        engine.report(node.id, told)

    def promotion(number: int) -> None:
        engine.promote_due(1000)
        engine.glance()

    def task(number: int) -> None:
        """One finish and one claim: with tasks so long that each is claimed alone."""
        who = Claimant(f"{number:032x}", f"worker-{number}")
        outcomes = [
            Outcome(
                id=row.id,
                attempt=row.attempt,
                worker=who.worker,
                status="SUCCESSFUL",
                return_value="null",
                errors="[]",
                worker_ids=f'["{who.worker}"]',
                failures=0,
                retry_in=None,
                retain=None,
            )
            for row in held.get(number, [])
        ]
        _, held[number] = engine.finish_and_claim(outcomes, who, everything, 1)

    vendor = "postgresql" if engine.connection.vendor == "postgresql" else "mariadb"
    yield Chore("heartbeat", 1 / HEARTBEAT, heartbeat)
    yield Chore("look", 1 / LOOK[vendor], lambda number: engine.glance())
    yield Chore("promotion", 1 / PROMOTION, promotion)
    if load:
        yield Chore("task", load, task)
    else:
        who = Claimant("f" * 32, "looks")
        nothing = QueueSelection(("nothing",))
        yield Chore("own look", 1 / OWN_LOOK, lambda number: engine.claim(who, nothing, 1))
