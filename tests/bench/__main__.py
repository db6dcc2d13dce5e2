"""`make bench`: what dbtasks does on this machine, beside raw SQL and, if wanted, beside its peers.

make bench                      every measure on every database, three times
make bench QUICK=1              smaller and once, in some two minutes
make bench PEERS=1              with other products (PostgreSQL), each in an environment of its own
make bench WRITE=1              into docs/benchmark.md, its charts and the README
make bench ARGS="--database postgresql --measure drain --measure flat"

All but QUICK=1 is kept in .bench/figures.json, so that one measure can follow another some other
time: ARGS="--missing" measures what is not there yet, ARGS="--write-only" nothing at all, and
WRITE=1 writes all that is there. The record behind docs/benchmark.md is docs/benchmark.json: to
measure a part of it again on the same machine, copy it to .bench/figures.json first.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests.bench import record
from tests.bench.databases import Database
from tests.bench.machine import describe
from tests.bench.ours import dbtasks
from tests.bench.peers import install
from tests.bench.record import Machine, Record
from tests.bench.report import CHAPTERS, page, quotation, write
from tests.bench.stage import FULL, QUICK, Stage
from tests.bench.table import render, table
from tests.servers import SERVERS, Daemon, Server

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS_ON = "postgresql"
STARTED = time.monotonic()


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    # SIGTERM too ends what was started here, the servers and their data.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    records = [] if options.write_only else measured(options)
    if records:
        show(records)
    if options.write or options.write_only:
        known = record.load(options.figures)
        machine = record.machine_of(known)
        figures = record.figures_of(known, list(SERVERS))
        peers, places = record.peers_of(known), record.places_of(known)
        files = page(figures, machine, FULL.repetitions, peers, places)
        files["benchmark.json"] = record.text_of(known)
        drained = [each for each in known if each.measure == "drain"]
        write(ROOT, files, quotation(figures, record.machine_of(drained)))
    return 0


def measured(options: argparse.Namespace) -> list[Record]:
    """What the options ask for, on each server in turn; recorded as soon as it is known."""
    machine = describe()
    wanted = wanted_of(options, record.load(options.figures))
    records: list[Record] = []
    for name, measures in wanted.items():
        kind = SERVERS[name]
        server = kind(durable=True) if issubclass(kind, Daemon) else kind()
        if reason := server.available():
            print(f"{name}: SKIPPED, {reason}")
            continue
        with server:
            here = [*machine, (server.name, server.version)]
            for each in on(server, measures, here, options):
                records.append(each)
                if not options.quick:
                    record.keep(options.figures, each)
    return records


def wanted_of(options: argparse.Namespace, known: list[Record]) -> dict[str, list[str]]:
    """The measures by database; with --missing, without those that are on record."""
    there = {(each.database, each.measure) for each in known} if options.missing else set()
    wanted = {
        name: [measure for measure in options.measure or CHAPTERS if (name, measure) not in there]
        for name in options.database or list(SERVERS)
    }
    return {name: measures for name, measures in wanted.items() if measures}


def on(
    server: Server, measures: list[str], machine: Machine, options: argparse.Namespace
) -> Iterator[Record]:
    """The measures on one server that runs."""
    database = Database(server.name, server.url)
    contenders = []
    peers: list[str] = []
    if options.peers and server.name == PEERS_ON:
        contenders = list(install.peers(database, options.cache))
        machine, peers = machine + install.versions(options.cache), install.descriptions()
        for contender in contenders:
            contender.migrate()
    sizes = QUICK if options.quick else FULL
    shared = database.beside("bench")
    dbtasks(shared).migrate()
    stage = Stage(database, shared, sizes, contenders, tell)
    for measure in measures:
        figures = import_module(f"{__package__}.{measure}").measure(stage)
        yield Record(measure, server.name, sizes.repetitions, machine, figures, peers)


def show(records: list[Record]) -> None:
    print("\n" + render(["", "this machine"], record.machine_of(records)))
    for measure, chapter in CHAPTERS.items():
        for each in records:
            if each.measure == measure and each.figures:
                print(f"\n{chapter.title} on {each.database}\n\n{table(each.figures)}")


def tell(line: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"{time.monotonic() - STARTED:5.0f} s  {line}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", action="append", choices=list(SERVERS))
    parser.add_argument("--measure", action="append", choices=list(CHAPTERS))
    parser.add_argument("--quick", action="store_true", help="smaller, and once")
    parser.add_argument("--peers", action="store_true", help=f"other products, on {PEERS_ON}")
    parser.add_argument("--missing", action="store_true", help="only what is not on record")
    parser.add_argument("--write", action="store_true", help="the record into docs/ and README")
    parser.add_argument("--write-only", action="store_true", help="the same, measuring nothing")
    parser.add_argument(
        "--figures", type=Path, default=ROOT / ".bench" / "figures.json", help="the record"
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".bench", help="where peers are installed"
    )
    options = parser.parse_args(arguments)
    if options.quick and (options.write or options.write_only):
        parser.error("--quick is for a look; leave it out to write figures that others may quote")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
