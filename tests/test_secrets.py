"""A password of the settings is nowhere to be seen, whether the database takes it or not."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.process import supervise
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("db")

SECRET = "hunter2-which-nobody-sees"


def with_password(url: str) -> str:
    """The same database, asked for as the same user with our password; SQLite takes it as well."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return url
    where = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or 'nobody'}:{SECRET}@{where}").geturl()


def command_lines(pids: list[int]) -> str:
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            continue  # it is gone
    return b" ".join(found).decode(errors="replace")


@pytest.mark.parametrize("flags", [(), ("--mode", "thread")], ids=["processes", "threads"])
def test_a_password_is_in_no_log_title_or_status(tmp_path: Path, flags: tuple[str, ...]) -> None:
    status = tmp_path / "status.json"
    env = {
        "DBTASKS_TEST_DATABASE_URL": with_password(os.environ["DBTASKS_TEST_DATABASE_URL"]),
        "SECRET_OF_THE_PROJECT": SECRET,
    }
    files = ("--status-file", str(status))
    with supervise("-w", "1", "-v", "3", *files, *flags, env=env) as process:

        def has_tried() -> bool:
            return status.exists() and any(word in process.stderr for word in ("ready", "database"))

        wait_until(has_tried, 30, "it is ready, or says that the database refuses it")
        shown = command_lines([member.pid for member in process.family()])
        told = status.read_text()
        assert process.terminate() == 0
        assert SECRET not in process.stderr + process.stdout + shown + told
        assert "dbtasks" in shown
