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
    idle_seconds: float = 30.0
    idle_workers: tuple[int, ...] = (1, 8)
    history: int = 1_000_000
    backlog: int = 200_000
    failed: int = 100_000
    expired: int = 300_000
    flat: int = 20_000
    flat_seconds: float = 5.0
    enqueue: int = 2_000
    producers: int = 8
    scale_seconds: float = 2.0
    scale_workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    scale_milliseconds: tuple[int, ...] = (0, 1, 10, 100)
    scale_nodes: tuple[int, ...] = (1, 2, 4)
    kills: int = 20
    periodic: int = 1_000
    periodic_rounds: int = 10


FULL = Sizes()
QUICK = Sizes(
    repetitions=1,
    drain=1_000,
    drain_workers=(4,),
    drain_variants=("auto",),
    pickups=15,
    idle_seconds=2.0,
    idle_workers=(8,),
    history=20_000,
    backlog=10_000,
    failed=5_000,
    expired=20_000,
    flat=1_000,
    flat_seconds=1.0,
    enqueue=200,
    producers=4,
    scale_seconds=0.5,
    scale_workers=(4,),
    scale_milliseconds=(10,),
    scale_nodes=(),
    kills=2,
    periodic_rounds=2,
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

    def repeat(self, measure: str, cases: Sequence[Case]) -> list[Figure]:
        vendor = self.database.vendor
        return repeat(measure, vendor, cases, self.sizes.repetitions, self.tell)
