"""Enqueue: calls per second one by one, in one transaction, in bulk, and by many at once."""

import functools
from collections.abc import Sequence
from dataclasses import replace

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
    cases = []
    for mode, name in MODES.items():
        count = sizes.enqueue * (10 if mode == "bulk" else 1)
        for contender in (ours, *others):
            run = functools.partial(once, contender, "enqueue", mode, count)
            cases.append(Case(contender.name, name, run))
    cases += [at_once(contender, sizes.producers, sizes.enqueue) for contender in others]
    return [*stage.repeat("enqueue", cases), *crowds(stage, ours)]


def crowds(stage: Stage, ours: Contender) -> list[Figure]:
    """Many processes; with and without NOTIFY, where there is one.

    That makes less of a difference than the disk does from second to second, so that it takes many
    short turns to see it.
    """
    sizes = stage.sizes
    if stage.database.vendor != "postgresql":
        return stage.repeat("enqueue", [at_once(ours, sizes.producers, sizes.enqueue)])
    silent = stage.ours("dbtasks, notify off", notify=False)
    cases = [at_once(each, sizes.producers, sizes.crowd) for each in (ours, silent)]
    figures = stage.repeat("enqueue", cases, sizes.crowds)
    return [*figures, relative(*figures)]


def at_once(contender: Contender, producers: int, count: int) -> Case:
    run = functools.partial(once, contender, "crowd", producers, count)
    return Case(contender.name, f"{producers} processes at once", run)


def relative(notified: Figure, silent: Figure) -> Figure:
    """The medians' ratio."""
    share = notified.median / silent.median * 100
    return replace(notified, unit="% of notify off", values=[share])


def once(contender: Contender, *work: object) -> dict[str, float]:
    contender.reset()
    contender.database.settle()
    return {"calls/s": float(contender.work(*work))}


def one_of_each(contenders: Sequence[Contender]) -> list[Contender]:
    """How a product's workers are configured is the same to its producers."""
    return list({peer.environ["BENCH_PEER"]: peer for peer in reversed(contenders)}.values())[::-1]
