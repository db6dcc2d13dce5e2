"""Enqueue: calls per second one by one, in one transaction, in bulk, and by many at once."""

import functools
from collections.abc import Sequence

from tests.bench.contender import Contender
from tests.bench.figures import Case, Figure
from tests.bench.stage import Stage

MODES = {
    "single": "one by one, a commit each",
    "transaction": "one by one, in one transaction",
    "bulk": "in bulk, or in one transaction where it cannot",
}


def measure(stage: Stage) -> list[Figure]:
    sizes = stage.sizes
    ours = stage.ours()
    others = one_of_each(stage.peers)
    silent = stage.ours("dbtasks, notify off", notify=False)
    cases = []
    for mode, name in MODES.items():
        count = sizes.enqueue * (10 if mode == "bulk" else 1)
        for contender in (ours, *others):
            run = functools.partial(once, contender, "enqueue", mode, count)
            cases.append(Case(contender.name, name, run))
    notified = [ours, silent] if stage.database.vendor == "postgresql" else [ours]
    for contender in (*notified, *others):
        run = functools.partial(once, contender, "crowd", sizes.producers, sizes.enqueue)
        cases.append(Case(contender.name, f"{sizes.producers} processes at once", run))
    return stage.repeat("enqueue", cases)


def once(contender: Contender, *work: object) -> dict[str, float]:
    contender.reset()
    contender.database.settle()
    return {"calls/s": float(contender.work(*work))}


def one_of_each(contenders: Sequence[Contender]) -> list[Contender]:
    """How a product's workers are configured is the same to its producers."""
    return list({peer.environ["BENCH_PEER"]: peer for peer in reversed(contenders)}.values())[::-1]
