"""`make bench`: what dbtasks does on this machine, beside raw SQL and, if wanted, beside its peers.

make bench                      every measure on every database, three times
make bench QUICK=1              smaller and once, in less than two minutes
make bench PEERS=1              with other products (PostgreSQL), each in an environment of its own
make bench WRITE=1              into docs/benchmark.md, its charts and the README
make bench ARGS="--database postgresql --measure drain --measure flat"
"""

import argparse
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from tests.bench.databases import Database
from tests.bench.figures import Figure
from tests.bench.machine import describe
from tests.bench.ours import dbtasks
from tests.bench.peers import install
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
    sizes = QUICK if options.quick else FULL
    machine = describe()
    figures: list[Figure] = []
    for name in options.database or list(SERVERS):
        kind = SERVERS[name]
        server = kind(durable=True) if issubclass(kind, Daemon) else kind()
        if reason := server.available():
            print(f"{name}: SKIPPED, {reason}")
            continue
        with server:
            machine.append((server.name, server.version))
            figures += on(server, options)
    if options.peers:
        machine += install.versions(options.cache)
    print("\n" + render(["", "this machine"], machine))
    for measure in options.measure or CHAPTERS:
        for name in SERVERS:
            if found := [f for f in figures if f.measure == measure and f.database == name]:
                print(f"\n{CHAPTERS[measure].title} on {name}\n\n{table(found)}")
    if options.write:
        peers = install.descriptions() if options.peers else []
        files = page(figures, machine, sizes.repetitions, peers)
        write(ROOT, files, quotation(figures, machine))
    return 0


def on(server: Server, options: argparse.Namespace) -> list[Figure]:
    """All measures on one server that runs."""
    database = Database(server.name, server.url)
    contenders = []
    if options.peers and server.name == PEERS_ON:
        contenders = list(install.peers(database, options.cache))
        for contender in contenders:
            contender.migrate()
    sizes = QUICK if options.quick else FULL
    shared = database.beside("bench")
    dbtasks(shared).migrate()
    stage = Stage(database, shared, sizes, contenders, tell)
    figures = []
    for measure in options.measure or CHAPTERS:
        figures += import_module(f"{__package__}.{measure}").measure(stage)
    return figures


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
    parser.add_argument("--write", action="store_true", help="into docs/ and the README")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".bench", help="where peers are installed"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
