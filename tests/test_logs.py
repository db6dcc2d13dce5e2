"""Logging: who gets which records, what they look like, and that nothing ever breaks."""

import errno
import io
import json
import logging
import logging.handlers
import multiprocessing
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from dbtasks_supervisor.logs import (
    JSONFormatter,
    StderrHandler,
    TextFormatter,
    configure_logging,
    reopen_logs,
    set_process_name,
    write_or_drop,
)

pytestmark = pytest.mark.once


LOGGERS = [logging.root, logging.getLogger("dbtasks")]


def no_logging_yet() -> None:
    """Take away the handlers that pytest adds for each test, as late as in the test itself."""
    for logger in LOGGERS:
        logger.handlers[:] = []


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Put handlers and levels back after the test."""
    saved = [(logger, logger.handlers[:], logger.level) for logger in LOGGERS]
    yield
    for logger, handlers, level in saved:
        logger.handlers[:] = handlers
        logger.setLevel(level)


@pytest.fixture
def process_name() -> Iterator[None]:
    """Restore the name of this process."""
    name = multiprocessing.current_process().name
    yield
    multiprocessing.current_process().name = name


def a_record(message: str = "done", level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    """Make a record of the logger ``dbtasks.worker``."""
    record = logging.LogRecord("dbtasks.worker", level, __file__, 1, message, (), None)
    record.__dict__.update(fields)
    return record


def with_exception(record: logging.LogRecord) -> logging.LogRecord:
    """Give the record an exception."""
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    return record


# Who logs


def test_without_any_logging_of_the_project_ours_goes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_logging_yet()
    assert configure_logging("text", 1, explicit=False)
    logging.getLogger("dbtasks.worker").info("hello")
    logging.getLogger("dbtasks.worker").debug("too much")
    logging.getLogger("other").warning("not ours")
    ours, theirs = capsys.readouterr().err.splitlines()
    assert ours.endswith("INFO  hello")
    assert theirs == "not ours"  # from the logging module's last resort


@pytest.mark.parametrize("name", ["", "dbtasks"])
def test_a_projects_own_logging_is_left_alone(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    no_logging_yet()
    own = logging.NullHandler()
    logging.getLogger(name).addHandler(own)
    level = logging.getLogger("dbtasks").level
    assert not configure_logging("text", 2, explicit=False)
    assert logging.getLogger(name).handlers == [own]
    assert logging.getLogger("dbtasks").level == level
    assert capsys.readouterr().err == ""


def test_an_explicit_format_wins_and_prints_each_record_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    no_logging_yet()
    kept = logging.handlers.BufferingHandler(100)
    logging.root.addHandler(logging.StreamHandler())
    logging.root.addHandler(kept)
    logging.getLogger("dbtasks").addHandler(logging.StreamHandler(sys.stderr))
    assert configure_logging("json", 1, explicit=True)
    assert configure_logging("json", 1, explicit=True)
    logging.getLogger("dbtasks").info("ours")
    logging.getLogger("dbtasks_like").warning("theirs")
    ours, theirs = capsys.readouterr().err.splitlines()
    assert json.loads(ours)["message"] == "ours"
    assert theirs == "theirs"
    assert [record.getMessage() for record in kept.buffer] == ["ours", "theirs"]


@pytest.mark.parametrize(
    ("verbosity", "level"),
    [(0, logging.WARNING), (1, logging.INFO), (2, logging.DEBUG), (3, logging.DEBUG)],
)
def test_the_verbosity_sets_the_level(verbosity: int, level: int) -> None:
    no_logging_yet()
    configure_logging("text", verbosity, explicit=False)
    assert logging.getLogger("dbtasks").level == level


# What it looks like


@pytest.mark.usefixtures("process_name")
def test_a_line_for_people() -> None:
    set_process_name("web1-3")
    line = TextFormatter().format(a_record("3 tasks"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO  web1-3 3 tasks", line)
    shown = TextFormatter().format(a_record(level=logging.WARNING))
    assert " WARN  web1-3 done" in shown


def test_a_process_without_a_name_shows_none() -> None:
    assert TextFormatter().format(a_record("hello")).endswith(" INFO  hello")


def test_a_traceback_follows_the_line() -> None:
    first, *rest = TextFormatter().format(with_exception(a_record("failed"))).splitlines()
    assert first.endswith("failed")
    assert rest[0] == "  Traceback (most recent call last):"
    assert rest[-1] == "  ValueError: why"


def test_no_name_can_pass_for_another_record_or_command_the_terminal() -> None:
    forged = "gone\n2026-11-25 00:00:00.000 INFO  all is well\r\x1b[2J\u202e\x9b\u2028"
    lines = TextFormatter(colour=True).format(a_record(forged)).splitlines()
    assert lines[1] == ("  2026-11-25 00:00:00.000 INFO  all is well\\r\\x1b[2J\\u202e\\x9b\\u2028")
    assert len(lines) == 2
    assert len(JSONFormatter().format(a_record(forged)).splitlines()) == 1


def test_nor_can_an_exception() -> None:
    try:
        raise ValueError("no\n2026-11-25 00:00:00.000 INFO  all is well\x1b[2J")
    except ValueError:
        record = a_record("failed")
        record.exc_info = sys.exc_info()
    _, *rest = TextFormatter().format(record).splitlines()
    assert all(line.startswith("  ") for line in rest)
    assert "\x1b" not in "".join(rest)


@pytest.mark.usefixtures("process_name")
def test_a_json_line_has_the_fields_of_the_task() -> None:
    set_process_name("web1-3")
    fields: dict[str, Any] = {
        "task_id": "0198",
        "task_path": "a.b",
        "queue": "default",
        "worker_id": "web1-3",
        "attempt": 2,
        "duration_ms": 12.5,
    }
    record = a_record("line 1\nline 2", **fields, secret="not shown")
    record.created, record.msecs = 1795464903.123, 123.0
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "ts": "2026-11-23T20:15:03.123Z",
        "level": "INFO",
        "logger": "dbtasks.worker",
        "message": "line 1\nline 2",
        "pid": os.getpid(),
        "process": "web1-3",
        **fields,
    }


def test_a_json_line_leaves_absent_fields_out_and_has_exceptions_as_text() -> None:
    entry = json.loads(JSONFormatter().format(with_exception(a_record(task_id=object()))))
    assert set(entry) == {"ts", "level", "logger", "message", "pid", "task_id", "exc"}
    assert entry["exc"].endswith("ValueError: why")
    assert "exc" not in json.loads(JSONFormatter().format(a_record()))


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_only_on_a_terminal_that_wants_them(
    environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_logging_yet()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        configure_logging("text", 1, explicit=False)
        logging.getLogger("dbtasks").error("broken")
        shown = screen.read(1000)
    assert (b"\x1b[31mERROR\x1b[0m broken" in shown) is coloured
    assert b"broken" in shown


def test_no_colours_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    no_logging_yet()
    configure_logging("text", 1, explicit=False)
    logging.getLogger("dbtasks").error("broken")
    shown = capsys.readouterr().err
    assert "broken" in shown
    assert "\x1b" not in shown


# That nothing breaks


def log_to(stream: Any, monkeypatch: pytest.MonkeyPatch, message: str = "hello") -> None:
    """Log one line with ``stream`` as standard error, and fail if anything is raised."""
    monkeypatch.setattr(sys, "stderr", stream)
    handler = StderrHandler()
    handler.setFormatter(TextFormatter())
    handler.handle(a_record(message))
    handler.flush()


def test_a_full_disk_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        log_to(full, monkeypatch)


def test_a_closed_or_missing_stderr_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    log_to(closed, monkeypatch)
    log_to(None, monkeypatch)
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as broken:
        log_to(broken, monkeypatch)


class Full(io.StringIO):
    """A stream without a descriptor that takes nothing."""

    def write(self, text: str) -> int:
        """Fail as a full disk does."""
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_fails_is_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    log_to(Full(), monkeypatch)


def a_pipe() -> tuple[IO[bytes], IO[bytes]]:
    """Return the reading and the writing end."""
    read, write = os.pipe()
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)


def a_socket() -> tuple[IO[bytes], IO[bytes]]:
    """Return the reading and the writing end, as journald makes them."""
    left, right = socket.socketpair()
    return open(left.detach(), "rb", buffering=0), open(right.detach(), "wb", buffering=0)


@pytest.mark.parametrize("old_kernel", [False, True])
@pytest.mark.parametrize("make", [a_pipe, a_socket])
def test_a_reader_that_does_not_read_never_blocks_us(
    make: Any, old_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if old_kernel:
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    reader, writer = make()
    with reader, writer:
        for number in range(100_000):
            try:
                write_or_drop(writer.fileno(), f"{number:>9} {'x' * 500}\n".encode())
            except BlockingIOError:
                break
        else:
            pytest.fail("it never filled")
        assert number > 10
        log_to(writer, monkeypatch)  # dropped, not waited for
        os.set_blocking(reader.fileno(), False)
        while reader.read(65_536):
            pass
        write_or_drop(writer.fileno(), b"and on it goes\n")
        assert b"and on it goes\n" in reader.read(65_536)


def test_a_line_longer_than_a_pipes_atom_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = a_pipe()
    with reader, writer:
        log_to(writer, monkeypatch, "x" * 20_000)
        shown = reader.read(65_536)
    assert shown.count(b"x") == 20_000


def test_a_record_that_cannot_be_formatted_does_not_raise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_logging_yet()
    configure_logging("json", 1, explicit=False)
    logging.getLogger("dbtasks").info("%d tasks", "three")
    assert re.search(
        r"Log record of .*test_logs.py:\d+ is malformed: TypeError", capsys.readouterr().err
    )
    monkeypatch.setattr(sys, "stderr", Full())
    logging.getLogger("dbtasks").info("%d tasks", "three")


def test_a_full_disk_does_not_change_the_exit_code() -> None:
    code = (
        "import logging; from dbtasks_supervisor.logs import configure_logging; "
        "configure_logging('text', 1, False); logging.getLogger('dbtasks').info('x' * 100_000)"
    )
    with open("/dev/full", "w") as full:
        assert (
            subprocess.run([sys.executable, "-c", code], stderr=full, check=False).returncode == 0
        )


# logrotate


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """A file that the logger ``dbtasks.test_rotation`` writes to, truncating it at first."""
    path = tmp_path / "app.log"
    handler = logging.FileHandler(path, mode="w")
    logger = logging.getLogger("dbtasks.test_rotation")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield path
    logger.removeHandler(handler)
    handler.close()


def test_a_moved_file_is_opened_again(log_file: Path) -> None:
    no_logging_yet()
    logger = logging.getLogger("dbtasks.test_rotation")
    logger.info("before")
    moved = log_file.rename(log_file.with_suffix(".1"))
    logger.info("between")
    assert reopen_logs() == 1
    logger.info("after")
    assert moved.read_text() == "before\nbetween\n"
    assert log_file.read_text() == "after\n"


def test_reopening_without_a_move_truncates_nothing(log_file: Path) -> None:
    logger = logging.getLogger("dbtasks.test_rotation")
    logger.info("before")
    reopen_logs()
    logger.info("after")
    assert log_file.read_text() == "before\nafter\n"


def test_a_file_that_cannot_be_reopened_keeps_the_old_one(log_file: Path) -> None:
    no_logging_yet()
    logger = logging.getLogger("dbtasks.test_rotation")
    logger.info("before")
    moved_to = log_file.parent.with_name("moved")
    log_file.parent.rename(moved_to)
    assert reopen_logs() == 0
    logger.info("after")
    assert "before" in (moved_to / "app.log").read_text()
    assert "after" in (moved_to / "app.log").read_text()
    moved_to.rename(log_file.parent)


def test_files_behind_other_handlers_and_shared_ones_are_reopened_once(tmp_path: Path) -> None:
    no_logging_yet()
    target = logging.FileHandler(tmp_path / "buffered.log")
    memory = logging.handlers.MemoryHandler(10, target=target)
    delayed = logging.FileHandler(tmp_path / "delayed.log", delay=True)
    loggers = [logging.getLogger("dbtasks.one"), logging.getLogger("elsewhere.two")]
    for logger in loggers:
        logger.addHandler(memory)
        logger.addHandler(delayed)
    try:
        (tmp_path / "buffered.log").unlink()
        assert reopen_logs() == 1
        assert (tmp_path / "buffered.log").exists()
        assert not (tmp_path / "delayed.log").exists()
    finally:
        for logger in loggers:
            logger.removeHandler(memory)
            logger.removeHandler(delayed)
        memory.close()
        target.close()
        delayed.close()
