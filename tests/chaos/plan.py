"""Which faults come when: drawn from the seed, so the same seed plans the same attack."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

# How often each fault is drawn. Those of a database server are left out for SQLite.
PROCESS_FAULTS = {
    "kill worker": 26,
    "kill workers of a node": 3,
    "kill scheduler": 8,
    "kill janitor": 7,
    "kill supervisor": 5,
    "kill node": 3,
    "kill all nodes": 1,
    "stop worker": 10,
    "stop scheduler": 5,
    "stop supervisor": 3,
    "stop node": 4,
    "deploy (TERM)": 5,
    "reload (HUP)": 4,
    "interrupt (INT, INT)": 1,
    "quit (QUIT)": 2,
}
SERVER_FAULTS = {"restart database": 2, "kill database": 3, "pause database": 4}
AT_ONCE = 0.15  # of the faults come together with the one before
SHORTEST, LONGEST = 0.1, 5.0  # seconds of a SIGSTOP


@dataclass(frozen=True)
class Step:
    """`wait` seconds, then `fault`. `node` and `which` choose the victim among those who live.

    `seconds`: how long a stop lasts.
    """

    wait: float
    fault: str
    node: int
    which: float
    seconds: float


def steps(seed: str, nodes: int, rate: float, server: bool) -> Iterator[Step]:
    """Faults without end, `rate` of them a second on average."""
    draw = random.Random(seed)
    menu = PROCESS_FAULTS | (SERVER_FAULTS if server else {})
    while True:
        together = draw.random() < AT_ONCE
        yield Step(
            wait=0.0 if together else draw.expovariate(rate * (1 - AT_ONCE)),
            fault=draw.choices(list(menu), list(menu.values()))[0],
            node=draw.randrange(nodes),
            which=draw.random(),
            # Most stops are short, some are longer than the lease.
            seconds=SHORTEST + (LONGEST - SHORTEST) * draw.random() ** 2,
        )
