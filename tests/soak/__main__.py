"""`make soak`: a node must not grow, over many tasks and many deaths of a worker.

    python -m tests.soak                                        100,000 tasks, 200 deaths, SQLite
    python -m tests.soak --tasks 20000 --deaths 50 --database postgresql

Samples descriptors, threads and unique memory of the supervisor, the scheduler and a worker. Exit
code 1 if any of them has more in the end than after the warm-up.
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
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", choices=list(SERVERS), default="sqlite")
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--deaths", type=int, default=200)
    options = parser.parse_args(arguments)
    server = SERVERS[options.database]()
    if reason := server.available():
        print(f"{options.database} cannot be used: {reason}", file=sys.stderr)
        return 1
    with server, tempfile.TemporaryDirectory(prefix="dbtasks-soak-") as folder:
        is_file = options.database == "sqlite"
        environ = {
            **os.environ,
            "DBTASKS_TEST_DATABASE_URL": f"sqlite:///{folder}/soak" if is_file else server.url,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        }
        print(f"{options.database} {server.version}", flush=True)
        sizes = [str(options.tasks), str(options.deaths)]
        command = [sys.executable, "-m", "tests.soak.measure", *sizes]
        return subprocess.call(command, env=environ, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
