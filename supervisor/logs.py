"""Logging for a daemon: text for people or JSON for machines, on stderr, and never in the way.

A supervisor that stops because nobody reads its log has got its priorities wrong, so the handler
here drops what the other end does not take: a closed stderr, a full disk, a full pipe.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, Any, Literal

LogFormat = Literal["text", "json"]

EXTRA_FIELDS = ("task_id", "task_path", "queue", "worker_id", "attempt", "duration_ms")
_LOGGER = "dbtasks"
_UNNAMED = "MainProcess"  # what multiprocessing calls a process that nobody named
_SHORT = {"WARNING": "WARN", "CRITICAL": "CRIT"}
_COLOURS = {
    logging.DEBUG: "2",
    logging.WARNING: "33",
    logging.ERROR: "31",
    logging.CRITICAL: "1;31",
}
# pwritev2(2) on an old kernel, or on a file that cannot tell whether it would block.
_CANNOT_TELL = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def configure_logging(log_format: LogFormat, verbosity: int, explicit: bool) -> bool:
    """Log ``dbtasks`` to stderr unless the project logs it already; return whether it does now.

    ``verbosity`` is Django's: 0 warnings, 1 the day's story, 2 and more everything. ``explicit``:
    the format was asked for by name, so it wins; the console handlers of the project then leave our
    records out, all its other handlers still get them. A second call replaces the first.
    """
    logger = logging.getLogger(_LOGGER)
    for ours in [h for h in logger.handlers if isinstance(h, StderrHandler)]:
        logger.removeHandler(ours)
    if (logger.handlers or logging.root.handlers) and not explicit:
        return False
    for console in filter(_is_console, list(logger.handlers)):
        logger.removeHandler(console)
    for console in filter(_is_console, logging.root.handlers):
        console.addFilter(_not_ours)  # once only: addFilter() knows what it has
    handler = StderrHandler()
    as_json = JSONFormatter() if log_format == "json" else None
    handler.setFormatter(as_json or TextFormatter(_wants_colour(sys.stderr)))
    if logging.lastResort is not None:
        # Warnings of others that nobody else handles, Django's of failed tasks for one. Python's
        # own handler would wait for a full pipe.
        logging.lastResort = StderrHandler(logging.WARNING)
        logging.lastResort.setFormatter(as_json)
    logger.addHandler(handler)
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))
    return True


def set_process_name(name: str) -> None:
    """Name this process in its log records, also for a project's own ``%(processName)s``."""
    import multiprocessing

    multiprocessing.current_process().name = name


def reopen_logs() -> int:
    """Open the file of every ``FileHandler`` again, after logrotate moved it; return how many.

    A file that cannot be opened keeps its old stream. Call it from the main loop: a signal
    handler could interrupt the very write that it replaces.
    """
    return sum(
        _reopen(handler) for handler in _all_handlers() if isinstance(handler, logging.FileHandler)
    )


# What a terminal would obey, and what turns the direction of text: the names in a record can come
# from whoever writes to the queue.
_UNSEEN = [*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_ESCAPED = {code: ascii(chr(code))[1:-1] for code in _UNSEEN if chr(code) not in "\n\t"}


class TextFormatter(logging.Formatter):
    """``2026-11-23 20:15:03.123 INFO  web1-3 message``, in local time.

    Further lines of a record are indented, so that none can be taken for another record.
    """

    def __init__(self, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; ``format()`` adds a traceback below it."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{_SHORT.get(record.levelname, record.levelname):<5}"
        name = "" if record.processName in (None, _UNNAMED) else f"{record.processName} "
        if self._colour and (code := _COLOURS.get(record.levelno)):
            level = f"\x1b[{code}m{level}\x1b[0m"
        message = record.message.translate(_ESCAPED)
        return f"{moment}.{int(record.msecs):03d} {level} {name}{message}"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it the traceback."""
        return super().format(record).replace("\n", "\n  ")

    def formatException(self, ei: Any) -> str:
        """Return the traceback; the message in it is a task's own."""
        return super().formatException(ei).translate(_ESCAPED)


class JSONFormatter(logging.Formatter):
    """One JSON object per line; ``ts`` is RFC 3339 in UTC, ``exc`` a traceback as one string."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC)
        entry: dict[str, object] = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        if record.processName not in (None, _UNNAMED):
            entry["process"] = record.processName
        entry |= {key: record.__dict__[key] for key in EXTRA_FIELDS if key in record.__dict__}
        trouble = [
            self.formatException(record.exc_info) if record.exc_info else record.exc_text,
            self.formatStack(record.stack_info) if record.stack_info else None,
        ]
        if any(trouble):
            entry["exc"] = "\n".join(text for text in trouble if text)
        return json.dumps(entry, default=str)


class StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time, and drops what cannot be written at once.

    It writes to the descriptor, not through the stream: a buffered stream keeps what failed and
    fails again with it, at the latest at exit, where that changes the exit code.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; of one that cannot be formatted, say where it came from."""
        try:
            text = self.format(record)
        except Exception as error:
            text = f"Log record of {record.pathname}:{record.lineno} is malformed: {error!r}"
        # ValueError: the stream was closed. AttributeError: there is none (sys.stderr is None).
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._write(sys.stderr, f"{text}\n")

    def _write(self, stream: IO[str], text: str) -> None:
        try:
            descriptor = stream.fileno()
        except OSError:  # io.UnsupportedOperation: a stand-in, as in tests
            stream.write(text)
        else:
            write_or_drop(descriptor, text.encode("utf-8", "backslashreplace"))


def write_or_drop(descriptor: int, data: bytes) -> None:
    """Write what the descriptor takes without waiting; raises ``OSError`` for the rest.

    Setting O_NONBLOCK instead would set it for everybody who shares the terminal or the pipe.
    """
    while data:
        data = data[_write_now(descriptor, data) :]


def _write_now(descriptor: int, data: bytes) -> int:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.write(descriptor, data)
    if hasattr(os, "RWF_NOWAIT") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        try:
            return os.pwritev(descriptor, [data], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in _CANNOT_TELL:
                raise
    # A writable pipe takes PIPE_BUF bytes without blocking: pipe(7).
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError(errno.EAGAIN, "the log's reader is slow")
    return os.write(descriptor, data[: select.PIPE_BUF])


def _is_console(handler: logging.Handler) -> bool:
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams


def _not_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] != _LOGGER


def _wants_colour(stream: IO[str] | None) -> bool:
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":  # https://no-color.org
        return False
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _all_handlers() -> Iterator[logging.Handler]:
    """Yield every handler once, also the one behind a ``MemoryHandler``."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    waiting = [
        h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers
    ]
    seen: set[int] = set()
    while waiting:
        handler = waiting.pop()
        if id(handler) in seen:
            continue
        seen.add(id(handler))
        yield handler
        target = getattr(handler, "target", None)
        if isinstance(target, logging.Handler):
            waiting.append(target)


def _reopen(handler: logging.FileHandler) -> bool:
    handler.acquire()
    try:
        old = handler.stream
        if old is None:
            return False  # delayed: the first record opens it
        handler.mode = handler.mode.replace("w", "a")  # never truncate what was just written
        handler.stream = handler._open()
        with contextlib.suppress(OSError, ValueError):
            old.close()
    except OSError as error:
        logging.getLogger(_LOGGER).warning(
            "Log file %s cannot be reopened (%s): still writing to the old one",
            handler.baseFilename,
            error.strerror,
        )
        return False
    finally:
        handler.release()
    return True
