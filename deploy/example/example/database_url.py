"""An entry of DATABASES from one URL, so that a container or a test can name its own database."""

from typing import Any
from urllib.parse import unquote, urlsplit

# SQLite has one writer at a time. With the write-ahead log readers do not wait for it; with
# IMMEDIATE a transaction asks for the lock when it begins, and waits for it up to `timeout`
# seconds. (One that asks later, after it has read, can fail at once: "database is locked".)
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
}
ENGINES = {"postgresql": "django.db.backends.postgresql", "mysql": "django.db.backends.mysql"}


def database_from_url(url: str) -> dict[str, Any]:
    """`sqlite:////path/to/file`, `postgresql://user:password@host:port/name` or `mysql://…`.

    MariaDB is `mysql`, too. Raises ValueError for any other scheme.
    """
    parts = urlsplit(url)
    name = unquote(parts.path)[1:]
    if parts.scheme == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": SQLITE_OPTIONS}
    if parts.scheme not in ENGINES:
        raise ValueError(
            f"EXAMPLE_DATABASE_URL begins with {parts.scheme!r}: "
            "write sqlite:////path, postgresql://… or mysql://… instead."
        )
    return {
        "ENGINE": ENGINES[parts.scheme],
        "NAME": name,
        "HOST": parts.hostname or "",
        "PORT": str(parts.port or ""),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
    }
