"""The command line while all is well: help, check, health, burst, queues, periodic, logs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dbtasks.models import ScheduledTask
from dbtasks_supervisor.options import SETTINGS
from tests.app import tasks
from tests.process import SUPERVISOR, TASKRUNNER, Project, run, supervise
from tests.waiting import wait_until

pytestmark = pytest.mark.once
BOTH = pytest.mark.parametrize("command", [SUPERVISOR, TASKRUNNER], ids=["supervisor", "manage"])
MODES = pytest.mark.parametrize("mode", ["process", "thread"])
FLAGS = {flag for setting in SETTINGS for flag in (*setting.flags, *setting.off_flags)}
CHAIN = """
@task
def chain(left):
    if left:
        chain.enqueue(left - 1)
"""


def statuses() -> list[str]:
    return list(ScheduledTask.objects.order_by("id").values_list("status", flat=True))


# --help, --check


@BOTH
def test_help_names_every_flag_and_fits_a_screen_or_two(command: tuple[str, ...]) -> None:
    result = run("--help", command=command, env={"COLUMNS": "100"})
    assert result.returncode == 0
    words = set(result.stdout.replace(",", " ").replace("]", " ").split())
    assert words >= FLAGS
    assert len(result.stdout.splitlines()) < 90
    assert result.stderr == ""


def test_check_prints_what_would_run_and_exits_with_0(db: None, tmp_path: Path) -> None:
    project = Project(
        tmp_path,
        tasks="@task\ndef restock(): pass\n",
        settings="""
        TASKS["default"]["QUEUES"] = ["default", "email"]
        TASKS["default"]["OPTIONS"] = {"periodic": {"tests.app.tasks.noop": "5 4 * * *"}}
        """,
    )
    result = project.run("--check", "-w", "3", "-i", "web", "--queues", "email,default")
    assert result.returncode == 0, result.stderr
    told = result.stdout
    assert "node       web on " in told
    assert "workers    3 (process mode)" in told
    assert "queues     email,default" in told
    assert f"{project.app}.tasks.restock" in told
    assert "tests.app.tasks.noop: 5 4 * * *" in told


def test_check_exits_with_2_for_an_error_of_any_system_check(tmp_path: Path) -> None:
    broken = 'AUTH_USER_MODEL = "nowhere.User"'
    assert Project(tmp_path, settings=broken).run("--check").returncode == 2


def test_check_leaves_out_what_the_project_silenced(tmp_path: Path) -> None:
    settings = """
    DATABASES["default"]["OPTIONS"] = {}
    SILENCED_SYSTEM_CHECKS = ["dbtasks.W001"]
    """
    told = Project(tmp_path, settings=settings).run("--check").stdout
    assert "dbtasks.W002" in told
    assert "dbtasks.W001" not in told


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:p@127.0.0.1:1/shop", ("dbtasks.W007", "cannot be reached")),
        ("sqlite:///{folder}/missing/db.sqlite3", ("dbtasks.W007", "cannot be reached")),
        ("sqlite:///{folder}/empty.sqlite3", ("dbtasks.W006", "manage.py migrate")),
    ],
    ids=["no server", "no folder", "not migrated"],
)
def test_check_only_warns_of_a_database_that_is_away(
    tmp_path: Path, url: str, words: tuple[str, ...]
) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    result = run("--check", env={"DBTASKS_TEST_DATABASE_URL": url.format(folder=tmp_path)})
    assert (result.returncode, result.stderr) == (0, "")
    assert "WARNING" in result.stdout
    assert all(word in result.stdout for word in words)
    assert "tests.app.tasks.noop" in result.stdout


# --healthcheck


def test_the_health_check_imports_no_django(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from dbtasks_supervisor import cli\n"
        f"sys.argv[1:] = ['--healthcheck', '--status-file', {str(tmp_path / 'none')!r}]\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    result = run(command=(sys.executable, "-c", script), env={"DJANGO_SETTINGS_MODULE": None})
    assert result.returncode == 1
    assert "'dbtasks_supervisor'" in result.stdout
    assert "'django'" not in result.stdout
    assert "'dbtasks'" not in result.stdout


def health(status: Path) -> subprocess.CompletedProcess[str]:
    return run("--healthcheck", "--status-file", str(status))


@MODES
def test_the_health_check_follows_the_node_through_its_life(
    db: None, tmp_path: Path, mode: str
) -> None:
    status, gate, started = (tmp_path / name for name in ("status", "gate", "started"))
    with supervise("-w", "1", "--mode", mode, "--status-file", str(status)) as process:
        wait_until(lambda: status.exists() and "running" in status.read_text(), 20)
        assert health(status).returncode == 0

        tasks.wait_for_file.enqueue(str(gate), str(started))
        wait_until(started.exists)
        process.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in status.read_text(), 10)
        result = health(status)
        assert (result.returncode, result.stdout.partition(",")[0]) == (0, "draining")

        process.signal(signal.SIGSTOP)
        wait_until(lambda: "stopped" in health(status).stdout)
        assert health(status).returncode == 1
        process.signal(signal.SIGCONT)
        gate.touch()
        assert process.wait() == 0
    gone = health(status)
    assert gone.returncode == 1
    assert "gone" in gone.stdout


def test_a_status_file_that_nobody_writes_any_more_is_unwell(tmp_path: Path) -> None:
    status = tmp_path / "status"
    told: dict[str, Any] = {"pid": os.getpid(), "state": "running", "workers_up": 1}
    status.write_text(json.dumps({**told, "written": time.time() - 3600}))
    result = health(status)
    assert result.returncode == 1
    assert "last written 360" in result.stdout


# --burst


@MODES
def test_burst_ends_at_once_when_nothing_is_ready(db: None, mode: str) -> None:
    result = run("--burst", "-w", "2", "--mode", mode, timeout=15)
    assert result.returncode == 0, result.stderr


@MODES
def test_burst_runs_what_its_tasks_enqueue_too(db: None, tmp_path: Path, mode: str) -> None:
    project = Project(tmp_path, tasks=CHAIN)
    for _ in range(3):
        enqueue_from(project, "chain", 25)
    result = project.run("--burst", "-w", "2", "--mode", mode)
    assert result.returncode == 0, result.stderr
    assert statuses() == ["SUCCESSFUL"] * 78


@MODES
def test_burst_does_not_wait_for_queues_that_it_does_not_serve(db: None, mode: str) -> None:
    tasks.noop.using(queue_name="other").enqueue()
    tasks.noop.using(queue_name="mine").enqueue()
    result = run("--burst", "-w", "1", "--mode", mode, "--queues", "mine", timeout=15)
    assert result.returncode == 0, result.stderr
    assert statuses() == ["READY", "SUCCESSFUL"]


def enqueue_from(project: Project, name: str, *args: Any) -> Any:
    """Enqueue a task of the project's app; nothing but its tasks module is needed for that."""
    sys.path.insert(0, str(project.folder))
    try:
        module = __import__(f"{project.app}.tasks", fromlist=["tasks"])
    finally:
        sys.path.remove(str(project.folder))
    return getattr(module, name).enqueue(*args)


# --queues, --exclude-queues


def enqueue_in(journal: Path, *queues: str) -> None:
    for queue in queues:
        tasks.journal.using(queue_name=queue).enqueue(str(journal), queue)


def order(journal: Path) -> list[str]:
    """The queues of the tasks that ran, in the order in which they did."""
    return [line.split()[0] for line in journal.read_text().splitlines()]


@MODES
def test_queues_are_served_in_the_order_in_which_they_are_named(
    db: None, tmp_path: Path, mode: str
) -> None:
    journal = tmp_path / "journal"
    enqueue_in(journal, "slow", "email", "fast", "email-bulk", "fast", "email")
    flags = ("--queues", "fast,email*,slow", "--mode", mode)
    env = {"DBTASKS_TEST_OPTIONS": json.dumps({"prefetch": 1})}
    assert run("--burst", "-w", "1", *flags, env=env).returncode == 0
    # Within one pattern age decides, whatever the queues are; in batches, that of the oldest row.
    assert order(journal) == ["fast", "fast", "email", "email-bulk", "email", "slow"]


@MODES
def test_excluded_queues_are_left_alone(db: None, tmp_path: Path, mode: str) -> None:
    journal = tmp_path / "journal"
    enqueue_in(journal, "slow", "email", "email-bulk")
    flags = ("--exclude-queues", "email*", "--mode", mode)
    assert run("--burst", "-w", "1", *flags, timeout=15).returncode == 0
    assert order(journal) == ["slow"]


# Environment and precedence


@pytest.mark.parametrize(
    ("flags", "env", "workers"),
    [
        (["-w", "2"], {"DBTASKS_WORKERS": "3"}, 2),
        ([], {"DBTASKS_WORKERS": "3"}, 3),
        ([], {}, 4),
    ],
    ids=["flag", "environment", "OPTIONS"],
)
def test_a_flag_beats_the_environment_which_beats_options(
    flags: list[str], env: dict[str, str], workers: int
) -> None:
    options = {"DBTASKS_TEST_OPTIONS": '{"workers": 4}'}
    result = run("--check", *flags, env=options | env)
    assert f"workers    {workers} (process mode)" in result.stdout


@BOTH
def test_every_flag_can_be_an_environment_variable(command: tuple[str, ...]) -> None:
    env = {
        "DBTASKS_CHECK": "1",
        "DBTASKS_WORKER_ID": "box",
        "DBTASKS_QUEUES": "a,b*",
        "DBTASKS_EXCLUDE_QUEUES": "bc",
        "DBTASKS_MODE": "thread",
        "DBTASKS_NO_PERIODIC": "1",
        "DBTASKS_TEST_OPTIONS": '{"periodic": {"tests.app.tasks.noop": "5 4 * * *"}}',
    }
    told = run(command=command, env=env).stdout
    assert "node       box on " in told
    assert "(thread mode)" in told
    assert "queues     a,b* except bc" in told
    assert "periodic   0" in told


# --no-periodic

PERIODIC = {"DBTASKS_TEST_OPTIONS": '{"periodic": {"tests.app.tasks.noop": "1s"}}'}


@MODES
def test_no_periodic_enqueues_no_periodic_task(db: None, mode: str) -> None:
    flags = ("-w", "1", "--mode", mode)
    with (
        supervise(*flags, "--no-periodic", env=PERIODIC, name="idle") as idle,
        supervise(*flags, env=PERIODIC) as process,
    ):
        # The other one proves that there was time enough.
        process.wait_for("periodic task tests.app.tasks.noop is enqueued", times=2)
        assert "is enqueued" not in idle.stderr
        assert process.terminate() == 0
        assert idle.terminate() == 0
        assert "is enqueued" not in idle.stderr


# Logs


@MODES
def test_json_logs_carry_the_fields_of_a_task(db: None, mode: str) -> None:
    good, bad = tasks.noop.enqueue(), tasks.fail.enqueue("secret argument")
    result = run("--burst", "-w", "1", "-v", "2", "--log-format", "json", "--mode", mode)
    assert result.returncode == 0
    records = [json.loads(line) for line in result.stderr.splitlines()]
    # Django logs a failed task, too; nobody handles that here, and it is JSON all the same.
    assert {record["logger"] for record in records} == {"dbtasks", "django.tasks"}
    by_task = {record["task_id"]: record for record in records if "task_id" in record}
    for task, path, level in (
        (good, "tests.app.tasks.noop", "DEBUG"),
        (bad, "tests.app.tasks.fail", "ERROR"),
    ):
        record = by_task[task.id]
        assert record["level"] == level
        assert record["task_path"] == path
        assert record["queue"] == "default"
        assert record["attempt"] == 1
        assert record["duration_ms"] >= 0
        row = ScheduledTask.objects.get(id=task.id)
        assert [record["worker_id"]] == row.worker_ids
    assert "ValueError" in by_task[bad.id]["exc"]


@MODES
def test_a_successful_task_is_logged_with_v_2_only(db: None, mode: str) -> None:
    tasks.noop.enqueue()
    quiet = run("--burst", "-w", "1", "--mode", mode)
    tasks.noop.enqueue()
    talkative = run("--burst", "-w", "1", "-v", "2", "--mode", mode)
    assert statuses() == ["SUCCESSFUL"] * 2
    assert "tests.app.tasks.noop" not in quiet.stderr
    assert "task tests.app.tasks.noop done in" in talkative.stderr


def test_a_project_that_logs_by_itself_is_not_talked_over(db: None, tmp_path: Path) -> None:
    log = tmp_path / "shop.log"
    settings = f"""
    LOGGING_CONFIG = "logging.config.dictConfig"
    LOGGING = {{
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {{"ours": {{"format": "SHOP %(levelname)s %(processName)s %(message)s"}}}},
        "handlers": {{
            "file": {{
                "class": "logging.FileHandler", "filename": {str(log)!r}, "formatter": "ours"
            }},
        }},
        "root": {{"handlers": ["file"], "level": "INFO"}},
    }}
    """
    tasks.fail.enqueue()
    result = Project(tmp_path, settings=settings).run("--burst", "-w", "1", "-i", "web")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "")
    lines = log.read_text().splitlines()
    assert sum("supervisor web has ended" in line for line in lines) == 1
    assert any(line.startswith("SHOP ERROR web-1 task tests.app.tasks.fail") for line in lines)


def test_output_goes_to_stderr_and_stdout_stays_empty(db: None) -> None:
    tasks.noop.enqueue()
    result = run("--burst", "-w", "1", command=TASKRUNNER)
    assert result.returncode == 0
    assert result.stdout == ""
    assert "supervisor" in result.stderr
    assert "\x1b[" not in result.stderr
