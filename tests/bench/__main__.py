"""`make bench`: what one node does here, on durable servers; figures for this machine only.

    python -m tests.bench                     every database
    python -m tests.bench --database sqlite   one of them

For each database: the drain rate of no-op tasks with 2 workers, the time from kill -9 of a busy
worker until its task is READY again, what 8 idle workers ask of the database and of the memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.servers import SERVERS

ROOT = Path(__file__).resolve().parent.parent.parent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--database", action="append", choices=list(SERVERS))
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    options = parser.parse_args(arguments)
    for name in options.database or SERVERS:
        server = SERVERS[name]() if name == "sqlite" else SERVERS[name](durable=True)
        if reason := server.available():
            print(f"{name}: SKIPPED, {reason}")
            continue
        with server, tempfile.TemporaryDirectory(prefix="dbtasks-bench-") as folder:
            url = f"sqlite:///{folder}/bench.sqlite3" if name == "sqlite" else server.url
            print(f"{name} {server.version}", flush=True)
            environ = {
                **os.environ,
                "DBTASKS_TEST_DATABASE_URL": url,
                "DJANGO_SETTINGS_MODULE": "tests.settings",
            }
            sizes = [str(options.tasks), str(options.idle_seconds)]
            command = [sys.executable, "-m", "tests.bench.measure", *sizes]
            if code := subprocess.call(command, env=environ, cwd=ROOT):
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
