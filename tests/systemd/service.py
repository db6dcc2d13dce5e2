"""The units under systemd, one after the other on one machine: start, reload, stop, watchdog.

Each test leaves the service running as it found it. The tables live on, so that the last test can
count: what was enqueued in all of them has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.image import make_image
from tests.systemd.machine import Machine, booted, missing
from tests.waiting import wait_until

SERVICE = "dbtasks-supervisor"
NOBODY = "65534"
STATE = "/var/lib/dbtasks-supervisor"
PROJECT = "/srv/myproject"
PYTHON = f"{PROJECT}/venv/bin/python"
PASSWORD = "hunter2-of-the-database"
LONG = 60.0  # seconds; everything takes a fraction of it on an idle machine
ENVIRONMENT = f"""
DJANGO_SETTINGS_MODULE=myproject.settings
PYTHONPATH={PROJECT}
DATABASE_PASSWORD={PASSWORD}
DBTASKS_WORKERS=2
DBTASKS_DELAY=0.1
"""
ENQUEUE = """
import django, json, sys
django.setup()
from myproject import tasks
for name, *args in json.loads(sys.argv[1]):
    print(getattr(tasks, name).enqueue(*args).id)
"""
QUERY = """
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=20)
connection.row_factory = sqlite3.Row
print(json.dumps([dict(row) for row in connection.execute(sys.argv[2], sys.argv[3:])]))
"""


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """The booted machine, with the service enabled and started."""
    if lacks := missing():
        pytest.fail(f"a machine cannot be booted here; missing: {', '.join(lacks)}")
    image = Path(os.environ["DBTASKS_SYSTEMD_IMAGE"]).resolve()
    if not image.exists():
        make_image(image)
    with booted(image) as machine:
        print(f"\n{machine.run('systemctl', '--version').splitlines()[0]}, image {image.name}")
        machine.path("/etc/dbtasks/supervisor.env").write_text(ENVIRONMENT)
        machine.path("/etc/dbtasks/supervisor.env").chmod(0o600)
        machine.run("install", "-d", "-o", "dbtasks", "-g", "dbtasks", STATE)
        machine.run(*in_project(PYTHON, "manage.py", "migrate", "-v", "0"), user="dbtasks")
        machine.run("systemctl", "enable", "--now", SERVICE)
        yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    service = Service(machine)
    try:
        yield service
    except BaseException as error:
        error.add_note(service.journal())
        raise


def in_project(*command: str) -> tuple[str, ...]:
    return ("env", "-C", PROJECT, "PYTHONPATH=/srv/myproject", *command)


class Service:
    """The unit, as an operator sees it, and the queue, as the database has it."""

    def __init__(self, machine: Machine, unit: str = SERVICE) -> None:
        self.machine = machine
        self.unit = unit

    def systemctl(self, *words: str) -> str:
        return self.machine.run("systemctl", *words, self.unit)

    def show(self, name: str) -> str:
        return self.systemctl("show", "--value", "-p", name).strip()

    @property
    def pid(self) -> int:
        """The supervisor's, in the machine."""
        return int(self.show("MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.show("NRestarts"))

    def journal(self) -> str:
        return self.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", self.unit)

    def wait_journal(self, text: str, times: int = 1) -> None:
        def told() -> bool:
            self.machine.run("journalctl", "--sync")
            return self.journal().count(text) >= times

        wait_until(told, LONG, f"{text!r} in the journal {times} times")

    def is_well(self) -> bool:
        return (self.show("ActiveState"), self.show("SubState")) == ("active", "running")

    def wait_well(self) -> None:
        wait_until(self.is_well, LONG, f"{self.unit} runs")

    def signal(self, signum: signal.Signals, pid: int) -> None:
        self.machine.run("kill", f"-{signum.name[3:]}", str(pid))

    def workers(self) -> list[int]:
        shown = self.machine.run("ps", "-eo", "pid=,args=")
        return [int(line.split()[0]) for line in shown.splitlines() if is_worker(line)]

    # The queue

    def enqueue(self, *calls: tuple[str, ...]) -> list[str]:
        """The ids, as the table has them."""
        settings = "DJANGO_SETTINGS_MODULE=myproject.settings"
        command = in_project("env", settings, PYTHON, "-c", ENQUEUE, json.dumps(calls))
        return [uuid.UUID(id).hex for id in self.machine.run(*command, user="dbtasks").split()]

    def row(self, id: str) -> dict[str, Any]:
        return self.rows("SELECT * FROM dbtasks_scheduledtask WHERE id = ?", id)[0]

    def rows(self, query: str, *parameters: str) -> list[dict[str, Any]]:
        """Asked inside: SQLite would follow our way into the machine to a path out here."""
        command = (PYTHON, "-c", QUERY, f"{STATE}/db.sqlite3", query, *parameters)
        rows: list[dict[str, Any]] = json.loads(self.machine.run(*command, user="dbtasks"))
        return rows

    def result(self, id: str) -> object:
        """Waits for it; what the task returned."""

        def ended() -> bool:
            return self.row(id)["status"] in ("SUCCESSFUL", "FAILED")

        wait_until(ended, LONG, f"{id} ends")
        row = self.row(id)
        assert row["status"] == "SUCCESSFUL", row["errors"]
        return json.loads(row["return_value"])

    def running_task(self, name: str) -> str:
        """The id of a task that runs until `let_go`."""
        (id,) = self.enqueue(("wait_for", name))
        wait_until(lambda: self.begun(name), LONG, f"{name} begins")
        return id

    def begun(self, name: str) -> int:
        """How often it was begun."""
        path = self.machine.path(f"{STATE}/{name}.begun")
        return len(path.read_text().splitlines()) if path.exists() else 0

    def let_go(self, name: str) -> None:
        self.machine.path(f"{STATE}/{name}").touch()

    def write_code(self, text: str) -> None:
        """A deploy, in one step."""
        version = self.machine.path(f"{PROJECT}/myproject/version.py")
        draft = version.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(version)

    @contextlib.contextmanager
    def changed(self, text: str) -> Iterator[None]:
        """The service restarted with `text` as a drop-in; at the end without it."""
        folder = self.machine.path(f"/etc/systemd/system/{self.unit}.service.d")
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.machine.run("systemctl", "daemon-reload")
        self.systemctl("restart")
        try:
            yield
        finally:
            (folder / "test.conf").unlink()
            self.machine.run("systemctl", "daemon-reload")
            self.machine.run("systemctl", "reset-failed")
            self.systemctl("restart")


def is_worker(line: str) -> bool:
    words = line.split()
    return words[1:2] == ["dbtasks:"] and words[2].rpartition("-")[2].isdecimal()


def test_it_starts_when_all_workers_are_up_and_says_so(service: Service) -> None:
    assert service.is_well()
    assert service.show("Result") == "success"
    wait_until(lambda: service.show("StatusText").startswith("running: 2 workers"), LONG, "status")
    assert len(service.workers()) == 2
    assert service.result(*service.enqueue(("version",))) == 1


def test_it_has_no_privileges(service: Service) -> None:
    for pid in [service.pid, *service.workers()]:
        status = service.machine.path(f"/proc/{pid}/status").read_text().split("\n")
        told = dict(line.split(":\t", 1) for line in status if ":\t" in line)
        assert told["Uid"].split() == ["990"] * 4
        assert told["NoNewPrivs"] == "1"
        assert told["Seccomp"] == "2"
        assert {int(told[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}


@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("write /etc", "OSError"),
        ("write the code", "OSError"),
        ("write the state", "done"),
        ("write /tmp", "done"),
        ("see systemd", "FileNotFoundError"),
        ("become root", "PermissionError"),
        ("unshare", "PermissionError"),
    ],
)
def test_the_sandbox_holds_for_tasks(service: Service, what: str, outcome: str) -> None:
    assert service.result(*service.enqueue(("attempt_to", what))) == outcome
    assert not service.machine.path("/tmp/mine").exists()  # its own /tmp


def test_any_user_can_ask_for_its_health(service: Service) -> None:
    check = (PYTHON, "-m", "dbtasks_supervisor.cli", "--healthcheck", "--status-file")
    file = "/run/dbtasks-supervisor/status.json"
    assert "running" in service.machine.run(*check, file, user=NOBODY)


def test_the_password_is_nowhere_to_be_seen(service: Service) -> None:
    shown = service.machine.run("ps", "-eo", "args")
    shown += service.machine.run("systemctl", "status", "--no-pager", service.unit)
    shown += service.systemctl("show") + service.journal()
    shown += service.machine.path("/run/dbtasks-supervisor/status.json").read_text()
    assert PASSWORD not in shown
    environ = service.machine.call("cat", f"/proc/{service.pid}/environ", user=NOBODY)
    assert "Permission denied" in environ.stderr


def test_a_reload_brings_new_code_into_the_same_process(service: Service) -> None:
    before, workers = service.pid, service.workers()
    task = service.running_task("across-the-reload")
    service.write_code("VERSION = 2")
    service.systemctl("reload")
    wait_until(lambda: set(service.workers()) - set(workers), LONG, "a new worker")
    assert service.pid == before
    service.let_go("across-the-reload")
    service.result(task)
    assert service.begun("across-the-reload") == 1
    wait_until(lambda: not set(workers) & set(service.workers()), LONG, "all workers are new")
    wait_until(lambda: service.show("SubState") == "running", LONG, "the reload is over")
    assert service.result(*service.enqueue(("version",))) == 2
    assert (service.pid, service.restarts) == (before, 0)


def test_broken_code_is_not_loaded(service: Service) -> None:
    before, workers = service.pid, service.workers()
    known = service.result(*service.enqueue(("version",)))
    service.machine.path(f"{PROJECT}/myproject/settings.py").rename(
        service.machine.path(f"{PROJECT}/myproject/settings.kept")
    )
    try:
        service.systemctl("reload")
        service.wait_journal("not reloading: the check of the new code failed")
    finally:
        service.machine.path(f"{PROJECT}/myproject/settings.kept").rename(
            service.machine.path(f"{PROJECT}/myproject/settings.py")
        )
    assert (service.pid, service.workers()) == (before, workers)
    assert service.is_well()
    assert service.result(*service.enqueue(("version",))) == known


def test_a_stop_drains(service: Service) -> None:
    task = service.running_task("drained")
    service.machine.run("systemctl", "stop", "--no-block", service.unit)
    service.wait_journal("draining")
    later = service.enqueue(("version",), ("version",))
    assert service.show("ActiveState") == "deactivating"
    service.let_go("drained")
    wait_until(lambda: service.show("ActiveState") == "inactive", LONG, "it ends")
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    assert service.row(task)["status"] == "SUCCESSFUL"
    assert [service.row(id)["status"] for id in later] == ["READY", "READY"]
    assert service.workers() == []
    service.systemctl("start")
    for id in later:
        service.result(id)


def test_what_outlasts_the_grace_period_goes_back_uncounted(service: Service) -> None:
    # TimeoutStopSec is shorter than it takes: the node asks for the time that it needs.
    with service.changed("Environment=DBTASKS_GRACE=8\nTimeoutStopSec=6"):
        task = service.running_task("interrupted")
        service.systemctl("stop")
        assert service.show("Result") == "success"
        row = service.row(task)
        assert (row["status"], row["crashes"], row["claimed_by"]) == ("READY", 0, None)
    service.let_go("interrupted")
    service.result(task)


def test_a_stopped_parent_is_replaced_by_the_watchdog(service: Service) -> None:
    with service.changed("WatchdogSec=3\nTimeoutAbortSec=2"):
        before, restarts = service.pid, service.restarts
        task = service.running_task("watched")
        service.signal(signal.SIGSTOP, before)
        wait_until(lambda: service.restarts > restarts, LONG, "systemd restarts it")
        service.wait_well()
        assert service.pid != before
        service.wait_journal("Watchdog timeout")
        service.let_go("watched")
        service.result(task)
        assert service.begun("watched") >= 2


def test_a_killed_worker_is_the_supervisors_affair(service: Service) -> None:
    before, restarts = service.pid, service.restarts
    task = service.running_task("crashed")
    worker = int(service.machine.path(f"{STATE}/crashed.begun").read_text())
    service.signal(signal.SIGKILL, worker)
    service.let_go("crashed")
    service.result(task)
    assert service.begun("crashed") == 2
    assert (service.pid, service.restarts) == (before, restarts)
    assert service.is_well()


def test_a_killed_parent_leaves_nothing_behind_and_is_started_again(service: Service) -> None:
    before, workers = service.pid, service.workers()
    task = service.running_task("orphaned")
    service.signal(signal.SIGKILL, before)
    wait_until(lambda: service.pid not in (0, before), LONG, "systemd restarts it")
    service.wait_well()
    assert not set(workers) & set(service.workers())
    service.let_go("orphaned")
    service.result(task)


def test_a_wrong_setting_fails_the_unit_for_good(service: Service) -> None:
    with service.changed(""):
        path = service.machine.path("/etc/dbtasks/supervisor.env")
        path.write_text(f"{ENVIRONMENT}DBTASKS_GRACE=much\n")
        try:
            ended = service.machine.call("systemctl", "restart", service.unit)
            assert ended.returncode
            assert service.show("ActiveState") == "failed"
            assert service.show("ExecMainStatus") == "2"
            service.wait_journal("DBTASKS_GRACE")
        finally:
            path.write_text(ENVIRONMENT)


def test_instances_of_the_template_live_side_by_side(service: Service) -> None:
    machine = service.machine
    nodes = [Service(machine, f"{SERVICE}@{name}") for name in ("email", "reports")]
    for name in ("email", "reports"):
        # Its own state directory is another one than that of the database.
        drop_in = machine.path(f"/etc/systemd/system/{SERVICE}@{name}.service.d")
        drop_in.mkdir()
        (drop_in / "test.conf").write_text(f"[Service]\nReadWritePaths={STATE}\n")
        machine.path(f"/etc/dbtasks/{name}.env").write_text(
            ENVIRONMENT.replace("DBTASKS_WORKERS=2", f"DBTASKS_WORKERS=1\nDBTASKS_QUEUES={name}")
        )
    machine.run("systemctl", "daemon-reload")
    for node in nodes:
        node.systemctl("start")
    titles = machine.run("ps", "-eo", "args")
    assert {"machine-email-1", "machine-reports-1"} <= set(titles.split())
    nodes[0].systemctl("stop")
    assert nodes[1].is_well()
    assert service.is_well()
    assert machine.path("/run/dbtasks-supervisor/status.json").exists()
    assert machine.path("/run/dbtasks-supervisor-reports/status.json").exists()
    nodes[1].systemctl("stop")


def test_it_comes_with_the_boot(service: Service) -> None:
    wanted = service.machine.run("systemctl", "list-dependencies", "multi-user.target")
    assert f"{SERVICE}.service" in wanted


def test_nothing_of_all_that_was_lost(service: Service) -> None:
    ids = service.rows("SELECT id FROM dbtasks_scheduledtask")
    assert len(ids) > 15
    for row in ids:
        service.result(row["id"])
