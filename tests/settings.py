"""Django's settings for the tests: the database and the OPTIONS come from the environment.

``DBTASKS_TEST_DATABASE_URL``
    ``sqlite:////path/to/file``, ``postgresql://user:pass@host:port/name`` or
    ``mysql://user:pass@host:port/name``. Default: an SQLite file in the folder for temporary files.
``DBTASKS_TEST_OPTIONS``
    a JSON object, the ``OPTIONS`` of the default task backend. Default: ``{}``.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
MYSQL_OPTIONS = {"charset": "utf8mb4", "isolation_level": "read committed"}


def database_from_url(url: str) -> dict[str, Any]:
    """The entry of DATABASES for ``url``. Raises ValueError if its scheme is none of ours."""
    parts = urlsplit(url)
    name = unquote(parts.path)[1:]
    if parts.scheme == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": SQLITE_OPTIONS}
    address = {
        "NAME": name,
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }
    if parts.scheme == "postgresql":
        return {"ENGINE": "django.db.backends.postgresql", **address}
    if parts.scheme == "mysql":
        return {"ENGINE": "django.db.backends.mysql", "OPTIONS": MYSQL_OPTIONS, **address}
    raise ValueError(
        f"DBTASKS_TEST_DATABASE_URL begins with {parts.scheme!r}: "
        "write sqlite:////path, postgresql://… or mysql://… instead."
    )


DEFAULT_DATABASE_URL = f"sqlite:///{Path(tempfile.gettempdir(), 'dbtasks-tests.sqlite3')}"

DATABASES = {
    "default": database_from_url(os.environ.get("DBTASKS_TEST_DATABASE_URL", DEFAULT_DATABASE_URL))
}

TASKS = {
    "default": {
        "BACKEND": "dbtasks.backend.DatabaseBackend",
        "QUEUES": [],
        "OPTIONS": json.loads(os.environ.get("DBTASKS_TEST_OPTIONS", "{}")),
    },
}

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "dbtasks",
    "tests.app",
]

SECRET_KEY = "only for tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LOGGING_CONFIG = None
