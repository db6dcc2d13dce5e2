"""What a process does to itself, seen from outside."""

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dbtasks_supervisor import process
from dbtasks_supervisor.process import unique_memory, usable_cpus

from .waiting import wait_until

pytestmark = pytest.mark.once
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")

PARENT = """
import os, signal, sys
from dbtasks_supervisor.process import set_parent_death_signal
ready, told = os.pipe()
child = os.fork()
if child == 0:
    os.write(told, b"x" if set_parent_death_signal(signal.SIGTERM) else b"-")
    signal.pause()
assert os.read(ready, 1) == b"x"
print(child, flush=True)
signal.pause()
"""
SUBREAPER = """
import os
from dbtasks_supervisor.process import become_subreaper
assert become_subreaper()
end, held = os.pipe()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os.close(held)
        os.read(end, 1)
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
os.close(held)
print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
"""
DUMP = """
import signal, sys, threading
from dbtasks_supervisor.process import dump_stack_handler
def a_place_to_be_found():
    print(dump_stack_handler(), flush=True)
    sys.stdin.read()
a_place_to_be_found()
"""


def run(code: str) -> str:
    """Return what a fresh interpreter prints."""
    return subprocess.check_output([sys.executable, "-c", code], text=True, timeout=30).strip()


@linux
def test_a_child_gets_the_signal_when_its_parent_dies() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()

        def is_dead() -> bool:
            return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

        wait_until(is_dead)


@linux
def test_a_subreaper_inherits_its_orphaned_grandchildren() -> None:
    assert run(SUBREAPER) == "7"


def test_on_another_system_everything_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    process._load_prctl.cache_clear()
    monkeypatch.setattr(sys, "platform", "plan9")
    try:
        assert process.become_subreaper() is False
        assert process.set_parent_death_signal(signal.SIGTERM) is False
    finally:
        process._load_prctl.cache_clear()


@linux
def test_the_title_is_what_ps_shows() -> None:
    code = (
        "from dbtasks_supervisor.process import set_title; set_title('dbtasks: web1-3 idle'); "
        "print(open('/proc/self/cmdline').read())"
    )
    assert "dbtasks: web1-3 idle" in run(code)


def test_the_title_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "setproctitle", None)  # as if it were not installed
    process.set_title("anything")


def test_unique_memory_grows_with_what_only_we_use() -> None:
    before = unique_memory(os.getpid())
    block = bytearray(os.urandom(1)) * (32 * 1024 * 1024)
    grown = unique_memory(os.getpid()) - before
    assert before > 1024 * 1024
    assert grown > 28 * 1024 * 1024, len(block)


KEEPS_THE_LAST = """
import os
from dbtasks_supervisor.process import give_back_free_memory, unique_memory
pieces = [bytes(2000) for _ in range(20_000)]  # too small to be mapped one by one
last = pieces[-1]
del pieces
before = unique_memory(os.getpid())
give_back_free_memory()
print(before - unique_memory(os.getpid()))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_free_memory_goes_back_to_the_system() -> None:
    assert int(run(KEEPS_THE_LAST)) > 20 * 1024 * 1024


def test_where_no_memory_can_be_given_back_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)  # not every Python has it
    process.give_back_free_memory()


def test_unique_memory_falls_back_to_the_resident_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", denied)
    assert unique_memory(os.getpid()) > 1024 * 1024


def test_the_memory_of_a_process_that_is_gone_is_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert unique_memory(child.pid) == 0


def test_a_signal_dumps_the_stacks_and_the_process_lives_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DUMP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().strip() == "True"
        child.send_signal(signal.SIGUSR2)
        lines = iter(child.stderr.readline, "")
        assert any("a_place_to_be_found" in line for line in lines)
        assert child.poll() is None
        child.communicate()
        assert child.returncode == 0


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("1000 100000\n", 1),
        ("9900000 100000\n", 8),
        ("rubbish", 8),
        ("1 0", 8),
    ],
)
def test_a_containers_quota_limits_the_cpus(
    quota: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text(quota)
    monkeypatch.setattr(process, "_CPU_LIMIT", limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cpus() == cpus
