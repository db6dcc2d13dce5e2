"""docs/benchmark.md, its charts, and the lines that the README quotes from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.chart import chart
from tests.bench.figures import Figure, number
from tests.bench.fleet import THREADS
from tests.bench.stage import FULL
from tests.bench.table import render, table

BEGIN, END = "<!-- benchmark: written by make bench WRITE=1 -->", "<!-- end of benchmark -->"


@dataclass(frozen=True)
class Chapter:
    """What stands over a measure's tables; `charted` is the unit of its charts."""

    title: str
    text: str
    charted: str = ""


CHAPTERS = {
    "drain": Chapter(
        "Drain",
        "No-op tasks that wait when the workers start: from the first claim to the last finish, by "
        "the times in the tables. The raw loops claim and finish rows of the same table in plain "
        "SQL, two statements and two commits each time, with no Python around them to speak of.",
        "tasks/s",
    ),
    "pickup": Chapter(
        "Pick-up",
        "One idle worker with default settings, a task every 50 to 150 ms at random: from the "
        "return of its commit until its first line runs. (A start may be seen before the commit "
        "has returned to the producer.)",
    ),
    "overtake": Chapter(
        "Overtaking",
        "How long a task of a high priority waits while all workers have more to do than they can: "
        "from the return of its commit until its first line runs.",
    ),
    "rescue": Chapter(
        "Rescue", "From `kill -9` of a busy worker until its task runs again on another one."
    ),
    "idle": Chapter(
        "Idle",
        "Workers with nothing to do: what they ask of the database (as the server counts it), the "
        "processor time, connections and memory of all their processes together.",
    ),
    "periodic": Chapter(
        "Periodic",
        "Periodic entries that are all due at the same second, with one node and one worker: from "
        "that second until an onlooker sees their occurrences committed, and until the first task "
        "starts. And what the node asks of the database in a minute while none is due.",
    ),
    "flat": Chapter(
        "Flat",
        "The drain rate of two workers beside a long history or backlog, and while retention "
        "deletes, compared with a table that holds nothing else.",
        "% of empty",
    ),
    "enqueue": Chapter(
        "Enqueue",
        "Calls per second. “At once”: all processes together, one commit per call; ours with and "
        f"without NOTIFY by {FULL.crowds} short turns each, compared by their medians.",
        "calls/s",
    ),
    "scale": Chapter(
        "Scale",
        "Tasks that wait for so long as a call to a service would, by workers and by nodes. What "
        "is missing from 100 % of the workers' time, from a worker's first claim to its last "
        "finish, is what the queue costs, and the lack of CPUs.",
        "tasks/s",
    ),
    "fleet": Chapter(
        "Fleet",
        "What many nodes ask of one database. Computed: what one node does in a second, times what "
        "each statement takes alone, times the nodes. Simulated: all nodes at once, played by "
        f"{THREADS} threads that do the same for some seconds. A task is one statement and one "
        "commit here, as it is when tasks are too long to be claimed many at a time. Above 100 % "
        "the statements keep more than one connection busy.",
    ),
}


def page(
    figures: Sequence[Figure],
    machine: Sequence[tuple[str, str]],
    repetitions: int,
    peers: Sequence[str] = (),
    places: Mapping[tuple[str, str], str] | None = None,
) -> dict[str, str]:
    """The files to write, by their names in docs/; `peers` says how other products were run.

    `places`: the processor by measure and database, if there was more than one.
    """
    places = places or {}
    files: dict[str, str] = {}
    lines = [
        "# Benchmark",
        "",
        "How fast it is, beside raw SQL and other products.",
        "",
        "Written by `make bench WRITE=1` (with `PEERS=1` for the other products). Figures hold for",
        f"the machine they come from. Each is the median of {repetitions} with the least and the",
        "most in brackets; what is compared took turns. Servers are durable: fsync is on in",
        "PostgreSQL, `innodb_flush_log_at_trx_commit=1` in MariaDB, WAL with `synchronous=NORMAL`",
        "in SQLite. Database, producers and workers share the machine's CPUs.",
        "",
        render(["", "this machine"], list(machine)),
    ]
    if peers:
        lines += ["", "The other products, in the newest release that pip found, and a database of"]
        lines += ["their own on the same server, with connections that stay open:", ""]
        lines += [f"* {text}" for text in peers]
    for measure, chapter in CHAPTERS.items():
        found = [figure for figure in figures if figure.measure == measure]
        if not found:
            continue
        lines += ["", f"## {chapter.title}", "", chapter.text]
        for database in dict.fromkeys(figure.database for figure in found):
            here = [figure for figure in found if figure.database == database]
            lines += ["", f"### {chapter.title} on {database}", ""]
            if place := places.get((measure, database)):
                lines += [f"On: {place}.", ""]
            lines += [table(here)]
            if charted := [figure for figure in here if figure.unit == chapter.charted]:
                name = f"images/benchmark-{measure}-{database}.svg"
                title = f"{chapter.title} on {database}, {chapter.charted}"
                files[name] = chart(title, charted)
                lines += ["", f"![{title}]({name})"]
    files["benchmark.md"] = "\n".join(lines) + "\n"
    return files


def quotation(figures: Iterable[Figure], machine: Sequence[tuple[str, str]]) -> str:
    """For the README: the drain rates, and where they come from."""
    drained = [figure for figure in figures if figure.measure == "drain"]
    cases = list(dict.fromkeys(figure.case for figure in drained))
    rates: dict[str, dict[str, str]] = {}
    for figure in drained:
        row = rates.setdefault(f"{figure.database}: {figure.who}", {})
        row[figure.case] = number(figure.median)
    lines = [[who, *(row.get(case, "") for case in cases)] for who, row in rates.items()]
    about = dict(machine)
    where = f"{about.get('Processor', '')}, {about.get('Date', '')}"
    text = render(["no-op tasks per second", *cases], lines)
    return f"{text}\n\nMeasured on {where}; all of it: [docs/benchmark.md](docs/benchmark.md)."


def write(root: Path, files: dict[str, str], quoted: str) -> None:
    """Into docs/, and between the marks of README.md. Raises ValueError where these are missing."""
    readme = root / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"README.md has no place for the figures: add {BEGIN} and {END} to it.")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    folder = root / "docs"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    readme.write_text(f"{before}{BEGIN}\n{quoted}\n{END}{after}")
