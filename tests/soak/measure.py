"""The soak on the one database that the environment names."""

import sys

import django

django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402

from tests.conftest import on_server  # noqa: E402
from tests.soak.growth import soak  # noqa: E402


def main(count: int, deaths: int) -> int:
    if connection.vendor == "mysql":
        on_server("CREATE DATABASE IF NOT EXISTS {} CHARACTER SET utf8mb4")
    call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)
    grown = soak(count, deaths, tell=lambda text: print(text, flush=True))
    for line in grown:
        print(f"GROWN: {line}")
    if not grown:
        print("nothing has grown")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
