"""What a measure needs to know: the server, the sizes, and who takes part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.contender import Contender
from tests.bench.databases import Database
from tests.bench.figures import Case, Figure, repeat
from tests.bench.ours import dbtasks


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `FULL` is for figures to quote, `QUICK` for a look."""

    repetitions: int = 3
    drain: int = 10_000
    drain_workers: tuple[int, ...] = (1, 4)
    drain_raw: tuple[int, ...] = (1, 50)
    drain_variants: tuple[str, ...] = ("auto", "1")
    pickups: int = 200
    overtakings: int = 50
    overtake_milliseconds: tuple[int, ...] = (1, 10)
    idle_seconds: float = 30.0
    idle_workers: tuple[int, ...] = (1, 8)
    history: int = 1_000_000
    backlog: int = 200_000
    failed: int = 100_000
    expired: int = 300_000
    flat: int = 50_000
    flat_seconds: float = 5.0
    pruned_seconds: float = 4.0  # the backlog must last for so long
    enqueue: int = 2_000
    producers: int = 8
    crowd: int = 500  # calls of each producer
    crowds: int = 15  # turns
    scale_seconds: float = 2.0
    scale_workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    scale_milliseconds: tuple[int, ...] = (0, 1, 10, 100)
    scale_nodes: tuple[int, ...] = (1, 2, 4)
    scale_batches: tuple[int, ...] = (1, 5, 20, 50, 200)
    kills: int = 20
    periodic: int = 1_000
    periodic_rounds: int = 10
    fleet_nodes: int = 50
    fleet_seconds: float = 20.0
    fleet_tries: int = 100
    fleet_loads: tuple[float, ...] = (0, 5)  # tasks per second and node


FULL = Sizes()
QUICK = Sizes(
    repetitions=1,
    drain=1_000,
    drain_workers=(4,),
    drain_variants=("auto",),
    pickups=10,
    overtakings=5,
    overtake_milliseconds=(10,),
    idle_seconds=1.0,
    idle_workers=(8,),
    history=10_000,
    backlog=20_000,
    failed=5_000,
    expired=40_000,
    flat=2_000,
    flat_seconds=0.5,
    pruned_seconds=0.5,
    enqueue=200,
    producers=4,
    crowd=200,
    crowds=2,
    scale_seconds=0.5,
    scale_workers=(4,),
    scale_milliseconds=(10,),
    scale_nodes=(),
    scale_batches=(),
    kills=1,
    periodic=300,
    periodic_rounds=1,
    fleet_nodes=10,
    fleet_seconds=1.0,
    fleet_tries=20,
    fleet_loads=(5,),
)


@dataclass(frozen=True)
class Stage:
    """One server that is measured; `shared` is a database on it with our tables."""

    database: Database
    shared: Database
    sizes: Sizes
    peers: Sequence[Contender]
    tell: Callable[[str], None]

    def ours(self, name: str = "dbtasks", **options: Any) -> Contender:
        """dbtasks with these OPTIONS, in the database that the measures share."""
        return dbtasks(self.shared, name, **options)

    def apart(self, label: str) -> Contender:
        """dbtasks in a new database of its own."""
        contender = dbtasks(self.database.beside(f"bench_{label}"))
        contender.migrate()
        return contender

    def repeat(self, measure: str, cases: Sequence[Case], times: int | None = None) -> list[Figure]:
        """`times`: how often, if not as often as all else."""
        vendor = self.database.vendor
        return repeat(measure, vendor, cases, times or self.sizes.repetitions, self.tell)
