"""One supervisor per pid file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dbtasks_supervisor.config import ConfigError
from dbtasks_supervisor.pidfile import AlreadyRunning, Pidfile

pytestmark = [
    pytest.mark.once,
    # pytest's own watchdog (faulthandler_timeout) is the other thread; the children only write.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

HOLD = """
import sys
from dbtasks_supervisor.pidfile import Pidfile
pidfile = Pidfile(sys.argv[1])
pidfile.acquire()
"""
# The parent leaves a child behind that was forked while the file was held.
HOLD_WITH_CHILD = HOLD + "import os; child = os.fork(); os.write(1, b'%d\\n' % os.getpid())\n"
# In one write: print() would let another process write between the text and its end of line.
WAIT = "import os; os.write(1, b'held\\n'); sys.stdin.read()\n"
EXEC = (
    HOLD
    + """
import os
again = '''
import os, sys
from dbtasks_supervisor.pidfile import Pidfile
inherited = int(os.environ["_DBTASKS_PIDFILE_FD"])
os.fstat(inherited)  # open all the time: the lock had no gap
pidfile = Pidfile(sys.argv[1])
pidfile.acquire()
print(os.getpid(), "_DBTASKS_PIDFILE_FD" in os.environ, os.get_inheritable(inherited), flush=True)
sys.stdin.read()
'''
os.execve(sys.executable, [sys.executable, "-c", again, sys.argv[1]],
          os.environ | pidfile.environ())
"""
)


def start(code: str, path: Path) -> subprocess.Popen[str]:
    """Run ``code`` with the path as its argument."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    """Wait for the process to say that it holds the file."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the pid goes."""
    return tmp_path / "dbtasks.pid"


def test_the_file_has_our_pid_and_goes_with_us(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()
    pidfile.release()
    assert not path.exists()


def test_a_second_holder_is_told_the_pid_of_the_first(path: Path) -> None:
    with start(HOLD + WAIT, path) as holder:
        assert first_line(holder) == "held"
        with pytest.raises(AlreadyRunning) as caught:
            Pidfile(path).acquire()
        assert caught.value.pid == holder.pid
        assert f"--pidfile {path}: process {holder.pid}" in str(caught.value)
        holder.kill()


def test_a_killed_holders_file_is_taken_over(path: Path) -> None:
    with start(HOLD + WAIT, path) as holder:
        assert first_line(holder) == "held"
        holder.kill()
    assert path.exists()
    pidfile = Pidfile(path)
    pidfile.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


@pytest.mark.parametrize("text", ["", "rubbish", "1\n", "99999999999999999999999\n"])
def test_a_stale_file_is_taken_over_whatever_it_says(path: Path, text: str) -> None:
    path.write_text(text)
    pidfile = Pidfile(path)
    pidfile.acquire()
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_a_worker_that_outlives_its_supervisor_does_not_hold_the_file(path: Path) -> None:
    with start(HOLD_WITH_CHILD + WAIT, path) as holder:
        lines = [first_line(holder) for _ in range(4)]  # two from each process
        pids = {int(line) for line in lines if line != "held"}
        orphan = (pids - {holder.pid}).pop()
        holder.kill()
        holder.wait()
        os.kill(orphan, 0)  # it lives
        pidfile = Pidfile(path)
        pidfile.acquire()
        pidfile.release()
        os.kill(orphan, signal.SIGKILL)


def test_a_forked_child_does_not_remove_its_parents_file(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.acquire()
    pid = os.fork()
    if pid == 0:
        try:
            pidfile.release()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert path.exists()
    pidfile.release()
    assert not path.exists()


def test_the_lock_survives_an_exec_in_place(path: Path) -> None:
    with start(EXEC, path) as holder:
        assert first_line(holder).split() == [str(holder.pid), "False", "False"]
        with pytest.raises(AlreadyRunning) as caught:
            Pidfile(path).acquire()
        assert caught.value.pid == holder.pid
        holder.kill()


@pytest.mark.parametrize("inherited", ["", "0", "12345", "-1", "x"])
def test_a_descriptor_that_is_not_ours_is_not_adopted(path: Path, inherited: str) -> None:
    environ = {"_DBTASKS_PIDFILE_FD": inherited}
    pidfile = Pidfile(path)
    pidfile.acquire(environ)
    assert environ == {}
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_a_file_that_was_replaced_meanwhile_is_left_alone(path: Path) -> None:
    pidfile = Pidfile(path)
    pidfile.acquire()
    path.unlink()
    path.write_text("another's")
    pidfile.release()
    assert path.read_text() == "another's"


def test_a_file_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "dbtasks.pid"
    with pytest.raises(ConfigError, match=f"--pidfile {path}: cannot be written"):
        Pidfile(path).acquire()
    with pytest.raises(ConfigError, match="Is a directory"):
        Pidfile(tmp_path).acquire()


def test_a_pidfile_that_is_not_held_hands_nothing_over(path: Path) -> None:
    pidfile = Pidfile(path)
    assert pidfile.environ() == {}
    pidfile.release()
