"""The messages to systemd, word for word as sd_notify(3) has them."""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbtasks_supervisor.systemd import Notifier

pytestmark = pytest.mark.once


class Manager:
    """A service manager: the other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def message(self) -> str:
        """Return the next message."""
        return self.socket.recv(65_536).decode()


@pytest.fixture(autouse=True)
def closed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the sockets of all notifiers that the test makes."""
    made: list[Notifier] = []
    initialise = Notifier.__init__

    def remember(self: Notifier, *arguments: Any) -> None:
        initialise(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Notifier, "__init__", remember)
    yield
    for notifier in made:
        notifier.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A manager that listens in the file system, and one in the abstract namespace."""
    abstract = request.param == "abstract"
    manager = Manager(f"@dbtasks-{uuid.uuid4().hex}" if abstract else str(tmp_path / "notify"))
    with manager.socket:
        yield manager


def test_every_message_is_spelled_as_systemd_expects(manager: Manager) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    assert notifier.ready("8 workers")
    assert manager.message() == "READY=1\nSTATUS=8 workers"
    assert notifier.status("7 of 8\nMAINPID=1\tworkers")
    assert manager.message() == "STATUS=7 of 8 MAINPID=1 workers"
    assert notifier.stopping("draining")
    assert manager.message() == "STOPPING=1\nSTATUS=draining"
    assert notifier.watchdog()
    assert manager.message() == "WATCHDOG=1"
    assert notifier.extend_timeout(1.5)
    assert manager.message() == "EXTEND_TIMEOUT_USEC=1500000"


def test_a_reload_carries_the_monotonic_time(manager: Manager) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    before = time.monotonic_ns() // 1000
    assert notifier.reloading()
    first, second = manager.message().split("\n")
    assert first == "RELOADING=1"
    name, value = second.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_the_children_do_not_inherit_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Notifier.from_environ()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


@pytest.mark.parametrize(
    ("limit", "pid", "interval"),
    [
        ("30000000", "", 15.0),
        ("30000000", str(os.getpid()), 15.0),
        ("30000000", "1", None),  # for another process
        ("0", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_limit(
    limit: str, pid: str, interval: float | None
) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": limit, "WATCHDOG_PID": pid}
    assert Notifier.from_environ(environ).watchdog_interval == interval


@pytest.mark.parametrize("address", [None, "", "@", "relative", "vsock:2:1"])
def test_without_a_socket_everything_is_a_no_op(address: str | None) -> None:
    environ = {} if address is None else {"NOTIFY_SOCKET": address}
    notifier = Notifier.from_environ(environ | {"WATCHDOG_USEC": "1000000"})
    assert notifier.ready("up") is False
    assert notifier.watchdog() is False
    assert notifier.watchdog_interval is None
    assert notifier.environ() == {}


def test_a_manager_that_is_gone_or_does_not_read_is_false_at_once(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    assert notifier.ready("nobody there") is False
    manager = Manager(address)
    with manager.socket:
        for _ in range(100_000):
            if not notifier.status("x" * 1000):
                break
        else:
            pytest.fail("the queue never filled")
    assert Notifier.from_environ({"NOTIFY_SOCKET": "/" + "x" * 500}).ready("too long") is False


def test_the_address_survives_an_exec(manager: Manager) -> None:
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "4000000"}
    notifier = Notifier.from_environ(environ)
    assert environ == {}
    successor = Notifier.from_environ(notifier.environ())
    assert successor.watchdog_interval == 2.0
    assert successor.ready("reloaded")
    assert manager.message() == "READY=1\nSTATUS=reloaded"


def test_a_closed_notifier_is_silent(manager: Manager) -> None:
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": manager.address})
    notifier.close()
    assert notifier.ready("late") is False
