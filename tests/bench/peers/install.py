"""Other products for Django and PostgreSQL, each installed into an environment of its own."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests.bench.contender import Contender
from tests.bench.databases import Database

MODULES = ("dj_queue", "django_tasks_db", "procrastinate")


def peers(database: Database, cache: Path) -> Iterator[Contender]:
    """Each peer with its documented settings, in a new database beside `database`.

    `cache`: where their environments are kept. Raises subprocess.CalledProcessError when pip fails.
    """
    for name in MODULES:
        module = import_module(f"{__package__}.{name}")
        python = environment(cache / name, module.PACKAGES)
        for number, variant in enumerate(module.VARIANTS):
            yield module.contender(database.beside(f"bench_{name}_{number}"), python, **variant)


def descriptions() -> list[str]:
    """How each product is run here, as its module says it."""
    return [
        " ".join((import_module(f"{__package__}.{name}").__doc__ or "").split()) for name in MODULES
    ]


def environment(folder: Path, packages: list[str]) -> str:
    """The Python of a virtual environment with the newest releases of `packages`, made once."""
    python = folder / "bin" / "python"
    stamp = folder / "stamp"
    if not stamp.exists() or stamp.read_text() != "\n".join(packages):
        print(f"Installing {', '.join(packages)} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-input", *packages], check=True)
        stamp.write_text("\n".join(packages))
    return str(python)


def versions(cache: Path) -> list[tuple[str, str]]:
    """Each product and what is installed of it; the newest release was, when it was."""
    found = []
    for name in MODULES:
        product = name.replace("_", "-")
        code = f"import importlib.metadata as m; print(m.version({product!r}))"
        command = [str(cache / name / "bin" / "python"), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append((product, done.stdout.strip()))
    return found
