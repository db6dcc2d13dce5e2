"""The figures on record: measured one at a time, on one machine, and written when all are there.

One JSON file, by default .bench/figures.json, and docs/benchmark.json for what is published. A
measure on a database that is measured again takes the place of what was known of it; quick looks
are not recorded.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.figures import Figure

Machine = list[tuple[str, str]]


@dataclass(frozen=True)
class Record:
    """What one run of one measure on one database found, and where."""

    measure: str
    database: str
    repetitions: int
    machine: Machine
    figures: list[Figure]
    peers: list[str] = field(default_factory=list)  # how other products were run


def load(path: Path) -> list[Record]:
    """All records, oldest first; none where there is no file. Raises ValueError if it is spoilt."""
    if not path.exists():
        return []
    try:
        return [
            Record(
                **entry
                | {
                    "machine": [(name, value) for name, value in entry["machine"]],
                    "figures": [Figure(**figure) for figure in entry["figures"]],
                }
            )
            for entry in json.loads(path.read_text())
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no figures ({error}); remove it.") from None


def keep(path: Path, record: Record) -> None:
    """Adds it in place of an earlier one; the file is whole at any time."""
    others = [
        known
        for known in load(path)
        if (known.measure, known.database) != (record.measure, record.database)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text_of([*others, record]))
    os.replace(fresh, path)


def text_of(records: Iterable[Record]) -> str:
    """As `load` reads it, a line for each record."""
    lines = ",\n".join(json.dumps(asdict(each)) for each in records)
    return f"[\n{lines}\n]\n"


def figures_of(records: Iterable[Record], databases: Sequence[str]) -> list[Figure]:
    """All of them, the databases in their order."""
    ordered = sorted(records, key=lambda record: databases.index(record.database))
    return [figure for record in ordered for figure in record.figures]


def machine_of(records: Iterable[Record]) -> Machine:
    """What the records say of their machine; where they differ, all that they say."""
    said: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.machine:
            said.setdefault(name, []).append(value)
    return [(name, span(values)) for name, values in said.items()]


def places_of(records: Iterable[Record]) -> dict[tuple[str, str], str]:
    """The processor by measure and database, where they were not all measured on the same one."""
    places = {
        (record.measure, record.database): value
        for record in records
        for name, value in record.machine
        if name == "Processor"
    }
    return places if len(set(places.values())) > 1 else {}


def span(values: Sequence[str]) -> str:
    """ "0.2 to 0.9 ms" for measurements that differ; what else differs stands side by side."""
    different = list(dict.fromkeys(values))
    parts = [value.partition(" ") for value in different]
    units = {unit for _, _, unit in parts}
    numbers = [number for number, _, _ in parts]
    if len(different) == 1 or len(units) > 1 or not all(map(is_number, numbers)):
        return ", ".join(different)
    return f"{min(numbers, key=float)} to {max(numbers, key=float)} {units.pop()}"


def is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def peers_of(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(text for record in records for text in record.peers))
