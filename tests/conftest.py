"""What every test stands on: Django set up once, a database of this session's own, clean tables.

The environment is exported too, so that a child process which a test starts (a supervisor,
``manage.py``) finds the same settings and the same database without being told.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import django
import pytest
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).resolve().parent.parent
OUR_APPS = ("dbtasks", "app")
FOLDER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--half", choices=["1", "2"], help="only every second file of tests")


def pytest_configure(config: pytest.Config) -> None:
    """Name this session's database, export it, and set Django up before any test is imported."""
    folder = tempfile.mkdtemp(prefix="dbtasks-session-")
    config.stash[FOLDER] = folder
    os.environ["DBTASKS_TEST_DATABASE_URL"] = own_database_url(folder)
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    # How long an example takes says nothing here: other databases are tested at the same time.
    hypothesis_settings.register_profile("dbtasks", deadline=None)
    hypothesis_settings.load_profile("dbtasks")
    django.setup()


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(FOLDER, None):
        shutil.rmtree(folder, ignore_errors=True)


def own_database_url(folder: str) -> str:
    """The URL of a database that only this session uses, on the server that was asked for."""
    asked_for = os.environ.get("DBTASKS_TEST_DATABASE_URL", "sqlite:")
    if asked_for.startswith("sqlite:"):
        return f"sqlite:///{Path(folder, 'database.sqlite3')}"
    return urlsplit(asked_for)._replace(path=f"/dbtasks_test_{uuid.uuid4().hex[:12]}").geturl()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, where the database is not SQLite, what is no test of a database."""
    from django.db import connection

    if half := config.getoption("--half"):
        keep_half(config, items, int(half))
    if connection.vendor == "sqlite":
        return
    once = [item for item in items if item.get_closest_marker("once")]
    if once:
        config.hook.pytest_deselected(items=once)
        items[:] = [item for item in items if not item.get_closest_marker("once")]


def keep_half(config: pytest.Config, items: list[pytest.Item], half: int) -> None:
    """Every second one of the files that have tests for this run."""
    wanted = [item for item in items if item.get_closest_marker("once")]
    files = list(dict.fromkeys(item.path for item in wanted))
    mine = set(files[half - 1 :: 2])
    config.hook.pytest_deselected(items=[item for item in items if item.path not in mine])
    items[:] = [item for item in items if item.path in mine]


@pytest.fixture(scope="session")
def database() -> str:
    """The database's vendor as Django names it: "sqlite", "postgresql" or "mysql" (MariaDB too)."""
    from django.db import connection

    return connection.vendor


@pytest.fixture(scope="session")
def tables(database: str) -> Iterator[None]:
    """The session's database with every migration applied; dropped at the end."""
    from django.core.management import call_command
    from django.db import connections

    on_server("CREATE DATABASE {}" + (" CHARACTER SET utf8mb4" if database == "mysql" else ""))
    call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)
    yield
    connections.close_all()
    # A server would refuse while a test's child process is still connected; that child is at fault.
    on_server("DROP DATABASE {}" + (" WITH (FORCE)" if database == "postgresql" else ""))


def on_server(statement: str) -> None:
    """Run ``statement``, ``{}`` being this session's database, outside of any database."""
    from django.db import connection

    if connection.vendor == "sqlite":
        return
    name = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement.format(name))


@pytest.fixture
def db(tables: None) -> Iterator[None]:
    """Empty tables before the test, closed connections after it."""
    from django.db import connections

    empty_tables()
    yield
    connections.close_all()


def empty_tables() -> None:
    """Delete every row of our apps' tables, with DELETE: cheaper than TRUNCATE on small tables."""
    from django.apps import apps
    from django.db import connection, transaction

    models = [
        model
        for label in OUR_APPS
        for model in apps.get_app_config(label).get_models(include_auto_created=True)
        if model._meta.managed and not model._meta.proxy
    ]
    with (
        transaction.atomic(),
        connection.constraint_checks_disabled(),
        connection.cursor() as cursor,
    ):
        for model in models:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(model._meta.db_table)}")
