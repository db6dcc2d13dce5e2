"""System checks: each id for a minimal wrong configuration, and silence for a right one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core import checks
from django.db import OperationalError, connections
from django.tasks import task_backends
from django.test import override_settings

from dbtasks import Periodic
from dbtasks.checks import check_tables
from tests.test_options import BACKEND, configured

WAL = "PRAGMA journal_mode=WAL;"
SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = ["dbtasks"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "QUEUES": ["default", "email"]}}
USE_TZ = True
"""


def backend_checks() -> list[checks.CheckMessage]:
    return list(task_backends["default"].check())


def ids(found: list[checks.CheckMessage]) -> list[str]:
    return [str(message.id).removeprefix("dbtasks.") for message in found]


def errors(**options: Any) -> list[checks.CheckMessage]:
    with configured(**options):
        return [message for message in backend_checks() if message.level >= checks.ERROR]


@pytest.fixture
def database_settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The settings of the default connection, to be changed by one test."""
    connection = connections["default"]
    settings: dict[str, Any] = connection.settings_dict
    changed = {**settings, "OPTIONS": dict(settings["OPTIONS"])}
    monkeypatch.setattr(connection, "settings_dict", changed)
    return changed


def test_a_right_configuration_is_silent() -> None:
    entries = {"tests.app.tasks.noop": ["@daily", Periodic("1h", name="hourly", priority=3)]}
    with configured(retain={"*": "1d"}, periodic=entries, max_attempts=3, retry_for=OSError):
        assert backend_checks() == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        ({"immediate": "yes"}, "E002", "['immediate']: must be True or False"),
        ({"retry_for": "tests.app.broken.Error"}, "E002", "['retry_for']: "),
        ({"retian": "1d"}, "E003", "['retian']: unknown option"),
        ({"periodic": {"tests.app.tasks.noop": "* * *"}}, "E004", "tests.app.tasks.noop"),
        ({"periodic": "tests.app.tasks.noop"}, "E004", "must map task paths to schedules"),
        ({"periodic": {"tests.app.tasks.noop": ["1h", "2h"]}}, "E004", "two entries are called"),
        ({"periodic": {"os.path.join": "@daily"}}, "E005", "'os.path.join' is a function"),
        ({"periodic": {"tests.app.tasks.nothing": "@daily"}}, "E005", "cannot be imported"),
        ({"periodic": {"no.such.module.task": "@daily"}}, "E005", "cannot be imported"),
        ({"periodic": {"tests.app.broken.task": "@daily"}}, "E005", "raised RuntimeError"),
        ({"periodic": {"noop": "@daily"}}, "E005", "'noop'"),
    ],
)
def test_a_wrong_option_is_an_error(options: dict[str, Any], code: str, told: str) -> None:
    (message,) = errors(**options)
    assert message.id == f"dbtasks.{code}"
    assert told in message.msg
    assert "TASKS['default']['OPTIONS']" in message.msg


def test_options_that_are_no_dictionary_are_an_error() -> None:
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": ["retain"]}}):
        assert ids(backend_checks()) == ["E001"]


def test_a_periodic_queue_that_the_backend_has_not_is_an_error() -> None:
    entries = {"tests.app.tasks.noop": Periodic("@daily", queue="nowhere")}
    with configured(queues=("default",), periodic=entries):
        (message,) = backend_checks()
    assert message.id == "dbtasks.E005"
    assert "nowhere" in message.msg


def test_the_suggestion_for_an_unknown_option_is_its_hint() -> None:
    (message,) = errors(retian="1d")
    assert message.hint == "Did you mean 'retain'?"


def test_cleanup_fits_a_backend_without_a_default_queue() -> None:
    with configured(queues=("email",), retain="1d"):
        assert backend_checks() == []


def test_an_app_that_is_not_installed_is_an_error() -> None:
    with configured(), override_settings(INSTALLED_APPS=["tests.app"]):
        (message,) = backend_checks()
    assert message.id == "dbtasks.E006"
    assert message.hint == 'Add "dbtasks" to INSTALLED_APPS.'


def test_autocommit_off_is_an_error(database_settings: dict[str, Any]) -> None:
    database_settings["AUTOCOMMIT"] = False
    assert ids(backend_checks()) == ["E008"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["W001", "W002"]),
        ({"init_command": WAL}, ["W002"]),
        ({"transaction_mode": "IMMEDIATE"}, ["W001"]),
        ({"init_command": WAL, "transaction_mode": "immediate"}, []),
        ({"init_command": "PRAGMA journal_mode = 'wal'", "transaction_mode": "EXCLUSIVE"}, []),
    ],
)
def test_sqlite_wants_wal_and_immediate_transactions(
    database_settings: dict[str, Any], options: dict[str, str], expected: list[str]
) -> None:
    database_settings["OPTIONS"] = options
    assert ids(backend_checks()) == expected


@pytest.mark.once
def test_sqlite_in_memory_needs_no_wal(database_settings: dict[str, Any]) -> None:
    database_settings |= {"NAME": ":memory:", "OPTIONS": {"transaction_mode": "IMMEDIATE"}}
    assert backend_checks() == []


def test_a_connection_pool_is_a_warning(database_settings: dict[str, Any]) -> None:
    database_settings["OPTIONS"]["pool"] = True
    assert ids(backend_checks()) == ["W003"]


@pytest.mark.parametrize(("age", "expected"), [(0, ["W004"]), (600, []), (None, [])])
def test_tasks_that_would_reconnect_each_time_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, age: int | None, expected: list[str]
) -> None:
    other = {**connections["default"].settings_dict, "CONN_MAX_AGE": 0}
    monkeypatch.setitem(connections.settings, "queue", other)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", age)
    with configured(database="queue"):
        assert ids(backend_checks()) == expected


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("read committed", []),
        ("READ COMMITTED", []),
        ("repeatable read", ["W005"]),
        (None, ["W005"]),
    ],
)
def test_an_isolation_level_that_locks_gaps_is_a_warning(
    database_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    level: str | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(connections["default"], "vendor", "mysql")
    database_settings["OPTIONS"]["isolation_level"] = level
    assert ids(backend_checks()) == expected


def test_tables_that_exist_are_no_warning(db: None) -> None:
    assert check_tables(databases=["default"]) == []


def test_missing_tables_are_a_warning(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = type(task_backends["default"].engine)
    monkeypatch.setattr(engine, "missing_tables", lambda self: True)
    (message,) = check_tables(databases=["default"])
    assert message.id == "dbtasks.W006"
    assert message.hint == "Run manage.py migrate."


def test_a_database_that_is_away_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: object) -> bool:
        raise OperationalError("connection\nrefused")

    monkeypatch.setattr(type(task_backends["default"].engine), "missing_tables", refused)
    (message,) = check_tables(databases=["default"])
    assert message.id == "dbtasks.W007"
    assert message.msg == "DATABASES['default'] cannot be reached: connection refused"


@pytest.mark.parametrize("databases", [None, [], ["other"]])
def test_no_database_is_asked_unless_it_is_to_be_checked(databases: list[str] | None) -> None:
    assert check_tables(databases=databases) == []


class Project:
    """A project in a folder, whose manage.py runs as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def manage(self, settings: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "settings.py").write_text(settings)
        return self.python("-m", "django", *arguments)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self.folder), os.environ["PYTHONPATH"]])
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.once
def test_the_quickstart_gives_no_errors(project: Project) -> None:
    quickstart = """
import datetime
TASKS["default"]["OPTIONS"] = {
    "immediate": False,
    "retain": datetime.timedelta(days=7),
    "periodic": {"maintenance.tasks.maintenance": "30 3 * * 1-5"},
}
"""
    (project.folder / "maintenance").mkdir()
    code = "from django.tasks import task\n\n@task\ndef maintenance():\n    pass\n"
    (project.folder / "maintenance" / "tasks.py").write_text(code)
    checked = project.manage(SETTINGS + quickstart, "check")
    assert checked.returncode == 0, checked.stderr
    assert "dbtasks.E" not in checked.stderr
    assert "dbtasks.W001" in checked.stderr  # it would be better with a write-ahead log


@pytest.mark.once
@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ("TASKS['default']['OPTIONS'] = 3", ["E001"]),
        ("TASKS['default']['OPTIONS'] = {'retain': 'x', 'zzz': 1}", ["E002", "E003"]),
        ("INSTALLED_APPS = []", ["E006"]),
        ("DATABASES = {}", ["E007"]),
        ("DATABASES['default']['AUTOCOMMIT'] = False", ["E008"]),
    ],
)
def test_manage_check_tells_and_does_not_crash(
    project: Project, lines: str, codes: list[str]
) -> None:
    # With INSTALLED_APPS empty nothing but a task module makes Django look at TASKS at all.
    lines += "\nimport django.tasks.checks\n"
    checked = project.manage(SETTINGS + lines, "check")
    assert checked.returncode == 1
    assert "Traceback" not in checked.stderr
    assert all(f"dbtasks.{code}" in checked.stderr for code in codes)


@pytest.mark.once
def test_manage_check_with_a_database_that_has_no_engine_does_not_crash(project: Project) -> None:
    checked = project.manage(SETTINGS + "DATABASES = {}", "check", "--database", "default")
    assert "dbtasks.E007" in checked.stderr
    assert "Traceback" not in checked.stderr


@pytest.mark.once
def test_task_modules_can_be_imported_whatever_is_wrong_with_options(project: Project) -> None:
    lines = "TASKS['default']['OPTIONS'] = {'retain': 'x', 'zzz': 1, 'periodic': 3}\n"
    code = (
        "import django; django.setup(); from tests.app.tasks import add; "
        "print(add.using(priority=3).priority)"
    )
    apps = "INSTALLED_APPS = ['django.contrib.contenttypes', 'dbtasks', 'tests.app']\n"
    (project.folder / "settings.py").write_text(SETTINGS + lines + apps)
    imported = project.python("-c", code)
    assert imported.stdout == "3\n", imported.stderr


@pytest.mark.once
def test_the_tables_are_asked_for_before_and_after_migrate(project: Project) -> None:
    before = project.manage(SETTINGS, "check", "--database", "default")
    assert "dbtasks.W006" in before.stderr
    assert "Run manage.py migrate." in before.stderr
    migrated = project.manage(SETTINGS, "migrate")
    assert migrated.returncode == 0, migrated.stderr
    assert "dbtasks.W006" not in migrated.stderr
    after = project.manage(SETTINGS, "check", "--database", "default")
    assert "dbtasks.W006" not in after.stderr
