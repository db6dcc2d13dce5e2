"""What tasks and operators can do to a worker, and what becomes of the task, the worker, the node.

Most tests share one node, which has to survive them all.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.tasks import TaskResult, TaskResultStatus, task

from dbtasks.exceptions import TaskTimeout
from tests.app import tasks
from tests.app.models import Note
from tests.node import Node, finished, is_alive, lines, row_of, within
from tests.waiting import wait_until

FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL
WORKER_DIED = "dbtasks.exceptions.WorkerDied"
TASK_TIMEOUT = "dbtasks.exceptions.TaskTimeout"


@task
def leave_cleanly(path: str) -> None:
    """Looks to the parent like a worker that has left as it was asked to."""
    with open(path, "a") as file:
        file.write("x")
    os._exit(0)


@task
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@task
async def sleep_async(seconds: float) -> None:
    import asyncio

    await asyncio.sleep(seconds)


@task
def spin() -> None:
    while True:
        pass


@task
def compute_in_c() -> None:
    """For minutes, and no handler of ours runs before it returns."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 500_000_000)


@task
def block_signals(seconds: float) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(seconds)


@task
def swallow_timeout(seconds: float) -> str:
    """Cleans up for longer than its hard limit allows, but not for longer than the last second."""
    try:
        time.sleep(60)
    except TaskTimeout:
        time.sleep(seconds)
    return "swallowed"


HOARD = []


@task
def hoard(mebibytes: int, seconds: float) -> int:
    HOARD.append(os.urandom(1 << 20) * mebibytes)
    time.sleep(seconds)
    return os.getpid()


@task
def hoard_on(path: str) -> None:
    HOARD.append(os.urandom(1 << 20) * 140)
    while not os.path.exists(path):
        time.sleep(0.01)
    hoard.func(160, 60)


@task
def start_process(path: str, die: bool) -> int:
    child = subprocess.Popen(["/bin/sleep", "600"])
    Path(path).write_text(str(child.pid))
    if die:
        os._exit(3)
    return child.pid


@task
def fork_and_return(path: str) -> str:
    """Both the parent and the child come to the task's end."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return "parent"
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    return "child"


@task
def fork_and_exit() -> int:
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@task
def disturb_process(folder: str) -> None:
    """Changes the process in ways that must not reach the next task."""
    os.chdir(folder)
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, 0.2)


@task
def describe_process() -> list[object]:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return [os.getcwd(), len(blocked), signal.getsignal(signal.SIGTERM) is signal.SIG_IGN]


def only_error(result: TaskResult) -> tuple[str, str]:
    """Class path and traceback of its single error."""
    assert len(result.errors) == 1, [error.traceback for error in result.errors]
    return result.errors[0].exception_class_path, result.errors[0].traceback


# Each with a node of its own: tasks that end their worker


@pytest.mark.parametrize(
    ("poison", "told"),
    [
        (tasks.os_exit, "exited with status 3"),
        pytest.param(leave_cleanly, "exited with status 0", marks=pytest.mark.once),
        pytest.param(tasks.segfault, "SIGSEGV", marks=pytest.mark.once),
    ],
    ids=["os._exit(3)", "os._exit(0)", "segfault"],
)
def test_poison_fails_after_its_crashes_and_harms_no_innocent(
    db: None, tmp_path: Path, poison: object, told: str
) -> None:
    marks, journal = tmp_path / "marks", tmp_path / "journal"
    with Node(workers=2):
        innocents = [tasks.journal.enqueue(str(journal), f"before-{n}") for n in range(10)]
        poisonous = poison.using(max_crashes=2).enqueue(str(marks))  # type: ignore[attr-defined]
        innocents += [tasks.journal.enqueue(str(journal), f"after-{n}") for n in range(10)]
        assert finished(poisonous).status == FAILED
        for innocent in innocents:
            assert finished(innocent).status == SUCCESSFUL
            assert (innocent.errors, innocent.attempts) == ([], 1)
    assert len(marks.read_text()) == 3
    assert [error.exception_class_path for error in poisonous.errors] == [WORKER_DIED] * 3
    assert all(told in error.traceback for error in poisonous.errors)
    assert len(poisonous.worker_ids) == 3
    written = [line.split()[0] for line in lines(journal)]
    assert len(written) == len(set(written)) == 20


@pytest.mark.once
def test_a_crash_loop_is_slowed_down_and_ends_after_four_executions(
    db: None, tmp_path: Path
) -> None:
    """At once after the first crash, then half a second, then one, each give or take a quarter."""
    marks = tmp_path / "marks"
    with Node(workers=1) as node:
        result = tasks.os_exit.enqueue(str(marks))
        began = time.monotonic()
        assert finished(result, 20).status == FAILED
        assert 0.75 * 1.5 <= time.monotonic() - began < 5.0
        assert len(marks.read_text()) == 4
        began = time.monotonic()
        assert finished(tasks.noop.enqueue(), 10).status == SUCCESSFUL
        assert time.monotonic() - began > 0.75, "the fourth crash costs two seconds"
        assert node.log().count("died") == 4


@pytest.mark.once
def test_poison_among_other_tasks_does_not_slow_them_down(db: None, tmp_path: Path) -> None:
    """A worker that has done a task was well, so its successor need not wait."""
    marks = tmp_path / "marks"
    with Node(workers=1):
        poisonous = tasks.os_exit.using(max_crashes=0)
        pairs = [(tasks.noop.enqueue(), poisonous.enqueue(str(marks))) for _ in range(6)]
        with within(4.0, "six crashes and six tasks"):
            for innocent, poison in pairs:
                assert finished(innocent).attempts == 1
                assert finished(poison).status == FAILED
    assert len(marks.read_text()) == 6


# Recycling


@pytest.mark.once
def test_workers_are_replaced_after_their_number_of_tasks(db: None) -> None:
    with Node("--max-tasks", "5", workers=2) as node:
        results = [sleep.enqueue(0.02) for _ in range(100)]
        assert len({finished(result).worker_ids[0] for result in results}) >= 5
        assert {result.attempts for result in results} == {1}
        assert "died" not in node.log()


@pytest.mark.once
def test_a_worker_that_has_grown_too_big_is_replaced_between_two_tasks(db: None) -> None:
    with Node("--max-memory", "128M", workers=1) as node:
        big = finished(hoard.enqueue(140, 0)).return_value
        wait_until(lambda: not is_alive(big), 5, "the big worker leaves")
        assert finished(tasks.pid.enqueue()).return_value != big
        assert "died" not in node.log()


@pytest.mark.once
def test_a_worker_far_beyond_its_memory_is_killed_in_its_task(db: None) -> None:
    with Node("--max-memory", "128M", workers=1):
        result = hoard.using(max_crashes=0).enqueue(300, 60)
        path, told = only_error(finished(result))
        assert path == WORKER_DIED
        assert "--max-memory" in told


@pytest.mark.once
def test_who_leaves_for_its_memory_is_killed_if_its_task_takes_far_more(
    db: None, tmp_path: Path
) -> None:
    with Node("--max-memory", "128M", workers=1) as node:
        result = hoard_on.using(max_crashes=0).enqueue(str(tmp_path / "more"))
        node.wait_log("recycling worker")
        (tmp_path / "more").touch()
        path, told = only_error(finished(result))
        assert path == WORKER_DIED
        assert "--max-memory" in told


# And tasks that leave something behind


@pytest.mark.once
@pytest.mark.parametrize("die", [True, False], ids=["worker dies", "worker drains"])
def test_what_a_task_started_ends_with_its_worker(db: None, tmp_path: Path, die: bool) -> None:
    path = tmp_path / "pid"
    with Node(workers=1) as node:
        result = start_process.using(max_crashes=0).enqueue(str(path), die)
        finished(result)
        assert result.status == (FAILED if die else SUCCESSFUL)
        child = int(path.read_text())
        if not die:
            assert is_alive(child), "it may live as long as its worker does"
            node.signal(signal.SIGTTIN)
            node.wait_workers(2)
            os.kill(node.child("1"), signal.SIGTERM)
        wait_until(lambda: not is_alive(child), 3, "the process ends")
        wait_until(lambda: child not in zombies_of(node), 3, "and is reaped")


def zombies_of(node: Node) -> list[int]:
    with open(f"/proc/{node.pid}/task/{node.pid}/children") as file:
        return [pid for pid in map(int, file.read().split()) if not is_alive(pid)]


@pytest.mark.once
def test_a_task_cannot_disturb_the_next_one(db: None, tmp_path: Path) -> None:
    with Node(workers=1) as node:
        before = finished(describe_process.enqueue()).return_value
        assert finished(disturb_process.enqueue(str(tmp_path))).status == SUCCESSFUL
        assert finished(describe_process.enqueue()).return_value == before
        late = sleep.using(timeout=0.3).enqueue(30)
        assert only_error(finished(late))[0] == TASK_TIMEOUT
        os.kill(node.child("1"), signal.SIGTERM)
        assert finished(tasks.noop.enqueue()).status == SUCCESSFUL
        assert "died" not in node.log()


@pytest.mark.once
def test_the_import_of_a_task_is_not_on_its_time(
    db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_import.py").write_text(
        "import os, time\n"
        "from django.tasks import task\n"
        "time.sleep(float(os.environ.get('IMPORT_SECONDS', 0)))\n"
        "@task\n"
        "def quick(): return 'done'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_to_import

    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("IMPORT_SECONDS", "2.5")
    with Node(workers=1):
        result = finished(slow_to_import.quick.using(timeout=0.2).enqueue())
        assert (result.status, result.attempts) == (SUCCESSFUL, 1)


@pytest.mark.once
def test_a_task_that_ends_in_its_last_second_takes_no_other_with_it(
    db: None, tmp_path: Path
) -> None:
    """Between the verdict and SIGKILL the stuck task can end and another one begin."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    with Node(workers=1) as node:
        worker = node.child("1")
        # Hard limit at 1.2 s, SIGKILL at 2.2 s, the end in between.
        late = swallow_timeout.using(timeout=0.2).enqueue(1.4)
        innocent = tasks.wait_for_file.enqueue(str(gate), str(started))
        node.wait_log("exceeded its hard time limit")
        wait_until(started.exists, 5, "the next task begins")
        time.sleep(1.5)  # SIGKILL would have come by now
        gate.touch()
        assert finished(late).return_value == "swallowed"
        assert finished(innocent).return_value == worker
        assert innocent.errors == []


# All others share one node, which has to survive them; so they come last


@pytest.fixture(scope="module")
def shared(tables: None) -> Iterator[Node]:
    """One node for the tests of this module; it must end cleanly after all of them."""
    from django.db import connections

    from tests.conftest import empty_tables

    empty_tables()
    connections.close_all()  # each test opens and closes its own
    with Node(workers=2) as node:
        yield node
    connections.close_all()


@pytest.fixture
def node(shared: Node) -> Iterator[Node]:
    """The shared node; what it logged meanwhile is part of a failure."""
    from django.db import connections

    before = len(shared.log())
    wait_until(lambda: len(shared.worker_pids()) == 2, 15, "both workers are back")
    yield shared
    print(shared.log()[before:])  # pytest shows it for a test that failed
    assert shared.running
    connections.close_all()


# Killed from outside


@pytest.mark.parametrize("signum", [signal.SIGKILL, 40], ids=["SIGKILL", "one without a name"])
def test_a_killed_idle_worker_is_replaced_within_a_second(node: Node, signum: int) -> None:
    victim = node.child("1")
    with within(1.0, "the replacement"):
        os.kill(victim, signum)
        node.child("1", but=victim)
    assert finished(tasks.noop.enqueue()).status == SUCCESSFUL


def test_a_killed_workers_task_runs_again_at_once(node: Node, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    result = tasks.wait_for_file.enqueue(str(gate), str(started))
    wait_until(started.exists)
    victim = int(row_pid(node, result))
    with within(1.0, "the task is free again, and the replacement is there"):
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: row_of(result).crashes == 1, 2, "the task is rescued")
        wait_until(lambda: len(node.worker_pids()) == 2, 2, "the worker is replaced")
    gate.touch()
    assert finished(result).status == SUCCESSFUL
    assert result.return_value != victim
    path, told = only_error(result)
    assert path == WORKER_DIED
    assert "SIGKILL" in told
    assert len(result.worker_ids) == 2


def row_pid(node: Node, result: TaskResult) -> int:
    """The process that runs the task: the slot's number is in the worker's name."""
    slot = row_of(result).claimed_by.partition(".")[0].removeprefix(f"{node.name}-")
    return node.child(slot)


@pytest.mark.once
def test_stopped_children_are_replaced(node: Node) -> None:
    """SIGSTOP for longer than ten seconds; tasks go on meanwhile, without a scheduler too."""
    victims = {"2": node.child("2"), "scheduler": node.child("scheduler")}
    began = time.monotonic()
    for victim in victims.values():
        os.kill(victim, signal.SIGSTOP)
    while any(map(is_alive, victims.values())):
        assert finished(tasks.noop.enqueue(), 5).status == SUCCESSFUL
        assert time.monotonic() - began < 20, "what was stopped is still there"
    assert time.monotonic() - began > 9, "a short stop must be survived"
    node.wait_log("stopped (SIGSTOP)", times=2)
    for role, victim in victims.items():
        node.child(role, but=victim)


# Tasks that leave something behind


def test_the_copy_of_a_worker_that_a_task_forks_ends_with_the_task(
    node: Node, tmp_path: Path
) -> None:
    path = tmp_path / "copies"
    assert finished(fork_and_return.enqueue(str(path))).return_value == "parent"
    assert finished(fork_and_exit.enqueue()).return_value == 7
    (copy,) = map(int, lines(path))
    assert not is_alive(copy)
    for _ in range(5):
        assert finished(tasks.noop.enqueue()).attempts == 1


@pytest.mark.parametrize("name", ["leave_transaction_open", "leave_raw_transaction_open"])
def test_an_open_transaction_is_rolled_back(node: Node, name: str) -> None:
    result = finished(getattr(tasks, name).enqueue())
    assert result.status == SUCCESSFUL
    followers = [tasks.note.enqueue(f"after {name} {n}") for n in range(4)]
    for follower in followers:
        assert finished(follower).status == SUCCESSFUL
    assert Note.objects.filter(text__startswith=f"after {name}").count() == 4
    assert not Note.objects.filter(text="never committed").exists()
    assert result.attempts == 1


@pytest.mark.parametrize("name", ["close_connection", "break_connection"])
def test_a_lost_connection_is_replaced_and_the_result_written(node: Node, name: str) -> None:
    for _ in range(2):
        result = finished(getattr(tasks, name).enqueue())
        assert (result.status, result.attempts) == (SUCCESSFUL, 1)
    assert finished(tasks.add.enqueue(1, 2)).return_value == 3


# Tasks that fail in unusual ways


@pytest.mark.parametrize(
    ("name", "exception"),
    [
        ("sys_exit", "builtins.SystemExit"),
        pytest.param("keyboard_interrupt", "builtins.KeyboardInterrupt", marks=pytest.mark.once),
        ("not_json", "builtins.TypeError"),
    ],
)
def test_an_unusual_failure_fails_the_task_and_not_the_worker(
    node: Node, name: str, exception: str
) -> None:
    before = set(node.worker_pids())
    result = finished(getattr(tasks, name).enqueue())
    assert result.status == FAILED
    assert only_error(result)[0] == exception
    assert set(node.worker_pids()) == before


# Time limits


@pytest.mark.parametrize(
    "late",
    [
        (sleep, (30,)),
        pytest.param((sleep_async, (30,)), marks=pytest.mark.once),
        pytest.param((spin, ()), marks=pytest.mark.once),
    ],
    ids=["sleep", "async", "loop"],
)
def test_a_task_over_its_soft_limit_fails_with_a_timeout(
    node: Node, late: tuple[object, tuple[object, ...]]
) -> None:
    function, args = late
    before = set(node.worker_pids())
    result = function.using(timeout=0.3).enqueue(*args)  # type: ignore[attr-defined]
    with within(2.0, "the soft limit"):
        finished(result)
    path, told = only_error(result)
    assert (result.status, path) == (FAILED, TASK_TIMEOUT)
    assert "0.3 s" in told
    assert set(node.worker_pids()) == before
    assert finished(tasks.note.enqueue("after a timeout")).status == SUCCESSFUL


def test_the_smallest_limit_is_kept(node: Node) -> None:
    """The timer may go off before the task's first line."""
    results = [sleep.using(timeout=0.001).enqueue(30) for _ in range(20)]
    for result in results:
        assert only_error(finished(result))[0] == TASK_TIMEOUT


@pytest.mark.parametrize(
    "stuck",
    [(compute_in_c, ()), pytest.param((block_signals, (30,)), marks=pytest.mark.once)],
    ids=["in C", "signals blocked"],
)
def test_a_task_that_cannot_be_interrupted_is_killed_at_its_hard_limit(
    node: Node, stuck: tuple[object, tuple[object, ...]]
) -> None:
    function, args = stuck
    result = function.using(timeout=0.3, max_crashes=0).enqueue(*args)  # type: ignore[attr-defined]
    with within(5.0, "soft limit, a second more, a stack dump and its second"):
        finished(result)
    path, told = only_error(result)
    assert (result.status, path) == (FAILED, WORKER_DIED)
    ran = re.search(r"hard time limit: the task ran for ([\d.]+) s", told)
    assert ran, told
    assert 1.3 <= float(ran[1]) < 2.5
    if function is compute_in_c:  # who blocks signals cannot be asked for its stack
        assert " in compute_in_c" in node.log()
