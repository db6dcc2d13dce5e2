"""The status file: how the node is doing, for a health check that needs no Django and no database.

The supervisor writes it every few seconds; ``--healthcheck`` reads it. These keys matter here, all
others are for people:

* ``state``: ``starting``, ``running``, ``degraded``, ``draining``, ``wedged`` or ``failed``;
* ``workers_up``: how many workers are ready;
* ``unwell_seconds``: for how long no worker has stayed alive; without it, ``workers_up`` counts;
* ``database_down``: true while the database cannot be reached;
* ``pid`` and ``written`` (Unix time in seconds): filled in by ``write_status``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_AGE = 15.0  # seconds
PATIENCE = 60.0  # seconds; workers that crash one after the other may be mended by then
_UNWELL = frozenset({"wedged", "failed"})
# These states have no ready worker for a good reason, and a restart would not help.
_EXCUSED = frozenset({"starting", "draining"})
_STATES = _UNWELL | _EXCUSED | {"running", "degraded"}


def write_status(path: str | os.PathLike[str], status: Mapping[str, Any]) -> None:
    """Replace the file at ``path`` (mode 0644) in one step; a reader sees the old or the new one.

    Raises ``OSError`` when the directory cannot be written.
    """
    text = json.dumps({"pid": os.getpid(), **status, "written": time.time()}, default=str)
    draft = f"{os.fspath(path)}.tmp"  # one fixed name, so that no crash leaves a heap of them
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(draft, flags, 0o644), "w", encoding="utf-8") as file:
            os.chmod(draft, 0o644)  # whatever the umask is
            file.write(text + "\n")
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def healthcheck(
    path: str | os.PathLike[str],
    max_age: float = MAX_AGE,
    now: float | None = None,
    patience: float = PATIENCE,
) -> tuple[bool, str]:
    """Return whether the node that writes ``path`` is well, and why, in one line.

    ``max_age`` and ``patience`` (with workers that do not stay alive) are in seconds, ``now`` is a
    Unix time (default: the clock's). Never raises.
    """
    try:
        status = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        return False, f"{os.fspath(path)}: {error.strerror or error}"
    except (ValueError, RecursionError):
        return False, f"{os.fspath(path)}: not a status file (broken JSON)"
    if not isinstance(status, dict):
        return False, f"{os.fspath(path)}: not a status file (no JSON object)"
    trouble = (
        _malformed(status)
        or _stale(status, max_age, time.time() if now is None else now)
        or _gone(status["pid"])
        or _unwell(status, patience)
    )
    return (False, trouble) if trouble else (True, _summary(status))


def _malformed(status: Mapping[str, Any]) -> str:
    def is_number(value: object, *kinds: type) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool)

    if not is_number(status.get("pid"), int) or status["pid"] < 1:
        return "not a status file (no pid)"
    if not is_number(status.get("written"), int, float) or not math.isfinite(status["written"]):
        return "not a status file (no time of writing)"
    if not is_number(status.get("workers_up", 0), int):
        return "not a status file (workers_up is no number)"
    if not is_number(status.get("unwell_seconds", 0), int, float):
        return "not a status file (unwell_seconds is no number)"
    if not isinstance(status.get("state"), str) or status["state"] not in _STATES:
        return f"not a status file (state {status.get('state')!r})"
    return ""


def _stale(status: Mapping[str, Any], max_age: float, now: float) -> str:
    age = now - status["written"]
    if age > max_age:
        return f"last written {age:.0f} s ago, at most {max_age:.0f} s allowed"
    if age < -max_age:
        return f"written {-age:.0f} s in the future: the clock was set back"
    return ""


def _gone(pid: int) -> str:
    import psutil

    try:
        condition = psutil.Process(pid).status()
    except psutil.AccessDenied:
        return ""  # it exists, and belongs to somebody else
    except (psutil.Error, OverflowError):
        return f"process {pid} is gone"
    if condition in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD, psutil.STATUS_STOPPED):
        return f"process {pid} is {condition}"
    return ""


def _unwell(status: Mapping[str, Any], patience: float) -> str:
    state = status["state"]
    if state in _UNWELL:
        return _summary(status)
    if "unwell_seconds" in status:
        unwell = status["unwell_seconds"]
        if unwell <= patience or state == "draining" or status.get("database_down") is True:
            return ""
        return f"{state}, but no worker has stayed alive for {unwell:.0f} s"
    if status.get("workers_up", 0) > 0 or state in _EXCUSED:
        return ""
    if state == "degraded" and status.get("database_down") is True:
        return ""
    return f"{state}, but no worker is up"


def _summary(status: Mapping[str, Any]) -> str:
    database = ", database down" if status.get("database_down") is True else ""
    return f"{status['state']}, {status.get('workers_up', 0)} workers up{database}"
