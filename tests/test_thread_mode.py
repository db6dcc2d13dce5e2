"""`--mode thread`: the same command line and signals, one process."""

import signal
from pathlib import Path

import psutil
import pytest
from django.tasks import TaskResult

from dbtasks.models import Node, ScheduledTask
from tests.app import tasks
from tests.process import Process, Project, supervise
from tests.waiting import wait_until

pytestmark = pytest.mark.once
END = "a task does not end"
AT_ONCE = 3.0  # seconds; less than the time after which a task is given up anyway
STUBBORN = """
@task
def stubborn(started, path):
    open(started, "w").close()
    while not os.path.exists(path):
        try:
            time.sleep(0.01)
        except BaseException:
            pass

@task
def blocked(started):
    open(started, "w").close()
    time.sleep(60)  # C code: an exception waits until it returns
"""


def threaded(*flags: str) -> Process:
    process = supervise("-w", "2", "--mode", "thread", *flags)
    process.wait_for("ready")
    return process


def start_waiting(tmp_path: Path) -> tuple[TaskResult, Path]:
    """A task that runs until the file exists."""
    gate, started = tmp_path / "gate", tmp_path / "started"
    result = tasks.wait_for_file.enqueue(str(gate), str(started))
    wait_until(started.exists)
    return result, gate


def status_of(result: TaskResult) -> str:
    result.refresh()
    return str(result.status)


def assert_given_back(result: TaskResult) -> None:
    """READY again, as if it had never run."""
    row = ScheduledTask.objects.get(id=result.id)
    assert row.status == "READY"
    assert row.errors == []
    assert not Node.objects.exists()


def test_it_is_one_process_without_children(db: None) -> None:
    with threaded() as process:
        result = tasks.pid.enqueue()
        wait_until(lambda: status_of(result) == "SUCCESSFUL")
        assert result.return_value == process.pid
        assert psutil.Process(process.pid).children() == []
        assert process.terminate() == 0


def test_sigterm_lets_running_tasks_finish_and_starts_no_others(db: None, tmp_path: Path) -> None:
    with threaded() as process:
        running, gate = start_waiting(tmp_path)
        process.signal(signal.SIGTERM)
        process.wait_for("draining")
        late = tasks.noop.enqueue()
        process.signal(signal.SIGTERM)
        gate.touch()
        assert process.wait() == 0
        assert process.count("draining") == 1
    assert status_of(running) == "SUCCESSFUL"
    assert status_of(late) == "READY"
    assert not Node.objects.exists()


def test_a_second_sigint_interrupts_what_runs_and_it_goes_back(db: None, tmp_path: Path) -> None:
    with threaded() as process:
        running, _ = start_waiting(tmp_path)
        process.signal(signal.SIGINT)
        process.wait_for("draining")
        assert status_of(running) == "RUNNING"
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert_given_back(running)


def test_the_end_of_the_grace_period_interrupts_what_runs(db: None, tmp_path: Path) -> None:
    with threaded("--grace", "0.2") as process:
        running, _ = start_waiting(tmp_path)
        assert process.terminate() == 0
    assert_given_back(running)


@pytest.mark.parametrize(
    ("task", "signals", "patience"),
    [
        (
            "stubborn",
            [(signal.SIGINT, "draining"), (signal.SIGINT, "interrupting"), (signal.SIGINT, END)],
            AT_ONCE,
        ),
        ("blocked", [(signal.SIGQUIT, END)], AT_ONCE),
        ("blocked", [(signal.SIGTERM, END)], 15.0),
    ],
    ids=["third SIGINT", "SIGQUIT", "grace over"],
)
def test_a_task_that_does_not_end_goes_back_uncounted(
    db: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    signals: list[tuple[int, str]],
    patience: float,
) -> None:
    project = Project(tmp_path, tasks=STUBBORN)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(f"{project.app}.tasks", fromlist=["tasks"])
    started = tmp_path / "started"
    arguments = (str(started), str(tmp_path / "gate"))[: 2 if task == "stubborn" else 1]
    result = getattr(module, task).enqueue(*arguments)
    with project.supervise("-w", "1", "--mode", "thread", "--grace", "0.1") as process:
        wait_until(started.exists, 20)
        for signum, told in signals:
            process.signal(signum)
            process.wait_for(told, patience)
        assert process.wait() == 0
        assert process.count(END) == 1
    assert_given_back(result)


def test_sigusr2_dumps_the_stacks_and_nothing_ends(db: None) -> None:
    with threaded() as process:
        process.signal(signal.SIGUSR2)
        process.wait_for("consumer.py", 10)
        process.signal(signal.SIGHUP)
        process.wait_for("SIGHUP has no meaning with --mode thread")
        result = tasks.noop.enqueue()
        wait_until(lambda: status_of(result) == "SUCCESSFUL")
        assert process.terminate() == 0


def test_flags_for_processes_only_are_answered_with_a_warning(db: None) -> None:
    with threaded("--max-tasks", "5") as process:
        assert process.terminate() == 0
        assert process.count("--max-tasks has no effect with --mode thread") == 1
