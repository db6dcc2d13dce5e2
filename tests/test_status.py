"""The status file and the health check that reads it."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dbtasks_supervisor.status import healthcheck, write_status

from .waiting import wait_until

pytestmark = pytest.mark.once


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the status goes."""
    return tmp_path / "status.json"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until its stdin is closed."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def write_raw(path: Path, **fields: Any) -> None:
    """Write a status with fields that ``write_status`` would not write."""
    sound = {"pid": os.getpid(), "written": time.time(), "state": "running", "workers_up": 1}
    path.write_text(json.dumps({**sound, **fields}))


def test_the_file_is_complete_and_readable_by_all(path: Path) -> None:
    before = time.time()
    previous = os.umask(0o077)
    try:
        write_status(path, {"state": "running", "workers_up": 2})
    finally:
        os.umask(previous)
    status = json.loads(path.read_text())
    assert status["pid"] == os.getpid()
    assert before <= status["written"] <= time.time()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == [path.name]


def test_writing_replaces_the_file_and_never_follows_a_planted_link(path: Path) -> None:
    victim = path.parent / "victim"
    victim.write_text("precious")
    Path(f"{path}.tmp").symlink_to(victim)
    write_status(path, {"state": "starting"})
    opened = path.open()
    write_status(path, {"state": "running"})
    with opened:
        assert json.load(opened)["state"] == "starting"  # a reader keeps the file that it opened
    assert json.loads(path.read_text())["state"] == "running"
    assert victim.read_text() == "precious"


def test_a_directory_that_is_missing_is_the_callers_to_report(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        write_status(tmp_path / "missing" / "status.json", {"state": "running"})


@pytest.mark.parametrize(
    ("status", "healthy"),
    [
        ({"state": "running", "workers_up": 1}, True),
        ({"state": "running", "workers_up": 0}, False),
        ({"state": "running"}, False),
        ({"state": "starting"}, True),
        ({"state": "draining", "workers_up": 0}, True),
        ({"state": "degraded", "workers_up": 1}, True),
        ({"state": "degraded", "workers_up": 0}, False),
        ({"state": "degraded", "workers_up": 0, "database_down": True}, True),
        ({"state": "wedged", "workers_up": 4}, False),
        ({"state": "failed", "workers_up": 4}, False),
    ],
)
def test_the_state_decides(path: Path, status: dict[str, Any], healthy: bool) -> None:
    write_status(path, status)
    well, reason = healthcheck(path)
    assert well is healthy
    assert status["state"] in reason


def test_an_old_file_is_unhealthy(path: Path) -> None:
    write_status(path, {"state": "running", "workers_up": 1})
    now = time.time()
    assert healthcheck(path, now=now + 14)[0]
    assert healthcheck(path, now=now + 16) == (False, "last written 16 s ago, at most 15 s allowed")
    assert healthcheck(path, max_age=60, now=now + 16)[0]
    well, reason = healthcheck(path, now=now - 3600)
    assert not well
    assert "future" in reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "[" * 100_000,
        "{}",
        '{"pid": "1", "written": 1, "state": "running"}',
        '{"pid": true, "written": 1, "state": "running"}',
        '{"pid": 0, "written": 1, "state": "running"}',
        '{"pid": 1, "written": NaN, "state": "running"}',
        '{"pid": 1, "written": 1, "state": ["running"]}',
        '{"pid": 1, "written": 1, "state": "great"}',
        '{"pid": 1, "written": 1, "state": "running", "workers_up": "2"}',
    ],
)
def test_a_broken_file_is_unhealthy_with_a_reason(path: Path, text: str) -> None:
    path.write_text(text)
    well, reason = healthcheck(path, now=1)
    assert not well
    assert "not a status file" in reason


def test_bytes_that_are_no_text_are_unhealthy(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    assert healthcheck(path)[0] is False


def test_a_missing_file_or_a_directory_is_unhealthy(tmp_path: Path) -> None:
    assert healthcheck(tmp_path / "missing")[0] is False
    assert "No such file" in healthcheck(tmp_path / "missing")[1]
    assert healthcheck(tmp_path)[0] is False


def test_a_dead_stopped_or_zombie_process_is_unhealthy(
    path: Path, process: subprocess.Popen[bytes]
) -> None:
    def status() -> str:
        return str(psutil.Process(process.pid).status())

    write_raw(path, pid=process.pid)
    assert healthcheck(path)[0]
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: status() == psutil.STATUS_STOPPED)
    assert healthcheck(path) == (False, f"process {process.pid} is stopped")
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: status() != psutil.STATUS_STOPPED)
    assert healthcheck(path)[0]
    os.kill(process.pid, signal.SIGKILL)
    wait_until(lambda: status() == psutil.STATUS_ZOMBIE)
    assert healthcheck(path) == (False, f"process {process.pid} is zombie")
    process.wait()
    assert healthcheck(path) == (False, f"process {process.pid} is gone")


def test_a_pid_beyond_all_bounds_is_unhealthy(path: Path) -> None:
    write_raw(path, pid=10**30)
    assert healthcheck(path)[0] is False


def test_the_health_check_does_not_import_django(path: Path) -> None:
    write_raw(path)
    code = (
        "import sys; from dbtasks_supervisor import config, status; "
        "print(status.healthcheck(sys.argv[1])[0], 'django' in sys.modules)"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True)
    assert output.split() == ["True", "False"]
