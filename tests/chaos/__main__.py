"""`make chaos`: real load on each database while processes and servers are killed at random.

    python -m tests.chaos                                 180 s, shared by the databases
    python -m tests.chaos --seconds 60 --database sqlite --seed 7f3a

Two nodes or more run every kind of task while workers, schedulers, janitors, supervisors, nodes
and the database server are killed, stopped, restarted and reloaded. What was executed is in a
journal outside of the database; triggers note each change of a row. At the end every committed
task must have ended as its kind does, every result must have been written once, periodic tasks
must be exact, each rerun must be explained by a fault, and nothing may be left. The first broken
promise is told with the timeline of its task. The same seed plans the same faults; when they hit,
the machine decides.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import SERVERS, Daemon

ROOT = Path(__file__).resolve().parent.parent.parent


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    names = list(dict.fromkeys(options.database or SERVERS))
    reasons = {name: SERVERS[name]().available() for name in names}
    missing = {name: reason for name, reason in reasons.items() if reason}
    for name, reason in missing.items():
        print(f"{name}: SKIPPED, {reason}", flush=True)
    wanted = bool(options.database) or os.environ.get("CI") in ("true", "1")
    names = [name for name in names if name not in missing]
    seconds = options.seconds if options.each else options.seconds / max(1, len(names))
    if len(names) == 1:
        return int(attack(names[0], seconds, options)) or int(bool(missing) and wanted)
    # A process for each: Django's settings know one database.
    failed = [name for name in names if subprocess.call(command(name, seconds, options), cwd=ROOT)]
    print(f"seed {options.seed}: " + (f"FAILED on {', '.join(failed)}" if failed else "passed"))
    return int(bool(failed) or not names or (bool(missing) and wanted))


def parse(arguments: list[str]) -> argparse.Namespace:
    cpus = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", action="append", choices=list(SERVERS))
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="of attack, shared by the databases (180)"
    )
    parser.add_argument("--each", action="store_true", help="--seconds is for each database")
    parser.add_argument("--seed", default=f"{random.SystemRandom().getrandbits(32):08x}")
    parser.add_argument(
        "--nodes", type=int, default=2 if cpus < 4 else 3, help="supervisors at once (2 or 3)"
    )
    parser.add_argument("--workers", type=int, default=2, help="of each node (2)")
    parser.add_argument(
        "--rate", type=float, default=max(8.0, 3.0 * cpus), help="faults a second (8 or more)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the journal and the logs")
    options = parser.parse_args(arguments)
    for name in ("seconds", "nodes", "workers", "rate"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} {getattr(options, name)}: write a number above 0")
    return options


def command(name: str, seconds: float, options: argparse.Namespace) -> list[str]:
    words = [sys.executable, "-m", "tests.chaos", "--database", name, "--seconds", str(seconds)]
    for flag in ("seed", "nodes", "workers", "rate"):
        words += [f"--{flag}", str(getattr(options, flag))]
    return [*words, *(["--keep"] if options.keep else [])]


def attack(name: str, seconds: float, options: argparse.Namespace) -> bool:
    """Whether a promise was broken on this database."""
    kind = SERVERS[name]
    # Durable: what a server has committed must survive that we kill it.
    server = kind(durable=True) if issubclass(kind, Daemon) else kind()
    if isinstance(server, Daemon):
        server.external = None  # we kill it, so it must be our own
    folder = Path(tempfile.mkdtemp(prefix=f"dbtasks-chaos-{name}-"))
    failed = True
    try:
        with server:
            print(f"{name} {server.version}, {seconds:.0f} s, seed {options.seed}", flush=True)
            failed = not campaign(server, name, seconds, options, folder)
    finally:
        if not (options.keep or failed):
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{name}: {'FAILED' if failed else 'every promise was kept'}", flush=True)
    return failed


def campaign(
    server: object, name: str, seconds: float, options: argparse.Namespace, folder: Path
) -> bool:
    os.environ |= {
        "DBTASKS_TEST_DATABASE_URL": server.url,  # type: ignore[attr-defined]
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    import django

    django.setup()
    from .campaign import Campaign, Setup

    setup = Setup(name, seconds, options.seed, options.nodes, options.workers, options.rate, folder)
    return Campaign(setup, server if isinstance(server, Daemon) else None).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
