"""What was measured, and how often: interleaved repetitions, their median and their spread."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass
class Figure:
    """One number that was measured one or more times."""

    measure: str
    database: str
    who: str
    case: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Case:
    """Something to run: `run` returns what it found, by unit."""

    who: str
    name: str
    run: Callable[[], dict[str, float]]


def number(value: float) -> str:
    """Three digits that say something: 12,345 or 123 or 4.57."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def repeat(
    measure: str,
    database: str,
    cases: Sequence[Case],
    repetitions: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Figure]:
    """Every case once, then every case again: what disturbs the machine disturbs them all alike.

    `tell` gets a line for each run. An error of a case is not caught.
    """
    figures: dict[tuple[int, str], Figure] = {}
    for _ in range(repetitions):
        for place, case in enumerate(cases):
            for unit, value in case.run().items():
                figure = figures.setdefault(
                    (place, unit), Figure(measure, database, case.who, case.name, unit)
                )
                figure.values.append(value)
                told = f"{number(value)} {unit}"
                tell(f"{measure}, {database}: {case.who}, {case.name}: {told}")
    return [figures[key] for key in sorted(figures, key=lambda key: key[0])]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of them do not exceed: the nearest rank, no interpolation."""
    ordered = sorted(values)
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(0, rank - 1)]
