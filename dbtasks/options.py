"""OPTIONS of a backend, parsed once into a frozen dataclass; every error names its key."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import zoneinfo
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from .periodic import (
    CATCH_UP,
    CATCH_UP_WINDOW,
    BoundPeriodic,
    Periodic,
    as_periodics,
    as_window,
)
from .policy import Policy, parse_policy, seconds
from .schedule import ScheduleError

POLICY_KEYS = ("max_attempts", "backoff", "timeout", "max_crashes", "retain_failed", "ack")
# The same names as flags of the runners, which read and check them (flag, environment, OPTIONS).
RUNNER_KEYS = (
    "workers",
    "queues",
    "exclude_queues",
    "delay",
    "grace",
    "max_tasks",
    "max_memory",
)
CLEANUP_PATH = "dbtasks.runner.cleanup"
CLEANUP_SCHEDULE = "~ * * * *"
MAX_PREFETCH = 1000


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong with one key, for a system check and for the error at start."""

    key: str
    message: str
    hint: str = ""
    code: str = "E002"

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


@dataclasses.dataclass(frozen=True)
class Options:
    """All durations in seconds, but for `catch_up_window`."""

    immediate: bool = False
    signals: bool = True
    database: str = "default"
    notify: bool = True
    heartbeat: float = 10.0
    worker_timeout: float = 30.0
    prefetch: int | None = None  # None is "auto"
    catch_up: str = "latest"
    catch_up_window: datetime.timedelta = CATCH_UP_WINDOW
    policy: Policy = dataclasses.field(default_factory=Policy)
    retain_by_path: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    retry_for: tuple[type[BaseException] | str, ...] = (BaseException,)  # str: not imported yet
    periodic: tuple[BoundPeriodic, ...] = ()
    runner: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def own_cleanup_schedule(self) -> bool:
        """Whether the project says itself when retention runs."""
        return any(
            entry.task_path == CLEANUP_PATH and entry.definition.schedule != CLEANUP_SCHEDULE
            for entry in self.periodic
        )


def parse_options(alias: str, options: object) -> tuple[Options, list[Problem]]:
    """The options and what is wrong with them; keys with problems keep their defaults."""
    where = f"TASKS[{alias!r}]['OPTIONS']"
    if not isinstance(options, Mapping):
        return Options(), [
            Problem("OPTIONS", f"{where} must be a dictionary, not {options!r}.", code="E001")
        ]
    parsed: dict[str, Any] = {}
    problems: list[Problem] = []

    def problem(key: str, message: str, hint: str = "", code: str = "E002") -> None:
        problems.append(Problem(key, f"{where}[{key!r}]: {message}", hint, code))

    for key in options:
        if key not in KNOWN_KEYS:
            close = difflib.get_close_matches(str(key), KNOWN_KEYS, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else ""
            allowed = ", ".join(sorted(KNOWN_KEYS))
            problem(str(key), f"unknown option. Allowed are: {allowed}.", hint, "E003")
    for key, parse in _PARSERS.items():
        if key in options:
            try:
                parsed[key] = parse(key, options[key])
            except ValueError as error:
                problem(key, f"{error}.".replace("..", "."))
    policy: dict[str, Any] = {}
    for key in POLICY_KEYS:
        if key in options:
            try:
                policy |= parse_policy({key: options[key]})
            except ValueError as error:
                problem(key, f"{error}.")
    if "retain" in options:
        try:
            policy["retain"], parsed["retain_by_path"] = _retain(options["retain"])
        except ValueError as error:
            problem("retain", f"{error}.")
    parsed["policy"] = Policy(**policy)
    heartbeat = parsed.get("heartbeat", Options.heartbeat)
    if parsed.get("worker_timeout", Options.worker_timeout) < 2 * heartbeat:
        problem(
            "worker_timeout" if "worker_timeout" in options else "heartbeat",
            f"worker_timeout must be at least twice the heartbeat ({heartbeat:g} s), or a node "
            "that renews its lease in time can be taken for dead",
        )
    parsed["runner"] = {key: options[key] for key in RUNNER_KEYS if key in options}
    entries = dict(_periodic_entries(options, policy, parsed, problem))
    parsed["periodic"] = tuple(entries.values())
    return Options(**parsed), problems


def _periodic_entries(
    options: Mapping[str, Any],
    policy: Mapping[str, Any],
    parsed: Mapping[str, Any],
    problem: Callable[..., None],
) -> Any:
    """Pairs of name and BoundPeriodic, with the default cleanup where rows are ever deleted."""
    configured = options.get("periodic") or {}
    if not isinstance(configured, Mapping):
        problem("periodic", f"must map task paths to schedules, not {configured!r}", code="E004")
        configured = {}
    table: dict[str, Any] = dict(configured)
    retains = (
        policy.get("retain") is not None
        or policy.get("retain_failed") is not None
        or any(value is not None for value in parsed.get("retain_by_path", {}).values())
    )
    if retains and CLEANUP_PATH not in table:
        table[CLEANUP_PATH] = CLEANUP_SCHEDULE
    seen: set[str] = set()
    for path, value in table.items():
        if not isinstance(path, str) or not path:
            problem("periodic", f"{path!r} is not the dotted path of a task", code="E004")
            continue
        try:
            for entry in as_periodics(value):
                bound = entry.bind(
                    path,
                    default_zone(),
                    parsed.get("catch_up", Options.catch_up),
                    parsed.get("catch_up_window", CATCH_UP_WINDOW),
                )
                if bound.name in seen:
                    raise ValueError(
                        f"two entries are called {bound.name!r}; give each a name of its own: "
                        "Periodic(..., name=...)"
                    )
                seen.add(bound.name)
                yield bound.name, bound
        except (ScheduleError, ValueError) as error:
            problem("periodic", f"{path!r}: {error}", code="E004")


def default_zone() -> datetime.tzinfo:
    """The zone of settings.TIME_ZONE, in which crontabs are read."""
    return zoneinfo.ZoneInfo(settings.TIME_ZONE or "UTC")


def bound_periodic(path: str, entry: Periodic, options: Options) -> BoundPeriodic:
    """An entry that is added at run time, under the same rules as one from the settings."""
    return entry.bind(path, default_zone(), options.catch_up, options.catch_up_window)


def _boolean(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False, not {value!r}")
    return value


def _positive_seconds(key: str, value: Any) -> float:
    result = seconds("the value", value, minimum=0.05)
    if result is None:
        raise ValueError('must be a Duration such as "10s", not None')
    return result


def _database(key: str, value: Any) -> str:
    if not isinstance(value, str) or value not in settings.DATABASES:
        aliases = ", ".join(map(repr, settings.DATABASES))
        raise ValueError(f"{value!r} is no alias in DATABASES; there are: {aliases}")
    return str(value)


def _prefetch(key: str, value: Any) -> int | None:
    if value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PREFETCH:
        raise ValueError(f'must be "auto" or a number from 1 to {MAX_PREFETCH}, not {value!r}')
    return value


def _catch_up(key: str, value: Any) -> str:
    if value not in CATCH_UP:
        raise ValueError(f"must be one of {', '.join(map(repr, CATCH_UP))}, not {value!r}")
    return str(value)


def _catch_up_window(key: str, value: Any) -> datetime.timedelta:
    window = as_window(value)
    if window is None:
        raise ValueError('must be a Duration such as "1d", not None')
    return window


def _retain(value: Any) -> tuple[float | None, dict[str, float | None]]:
    """(for all tasks, by task path): `retain` is a Duration or a mapping; key "*" is the rest."""
    if not isinstance(value, Mapping):
        return seconds("the value", value), {}
    by_path = {}
    for path, duration in value.items():
        if not isinstance(path, str):
            raise ValueError(f"{path!r} is not the dotted path of a task")
        by_path[path] = seconds(repr(path), duration)
    return by_path.pop("*", None), by_path


def _exceptions(key: str, value: Any) -> tuple[type[BaseException] | str, ...]:
    """Paths stay paths: their modules may hold the very tasks for which OPTIONS are read now."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    import_exceptions([item for item in items if not isinstance(item, str)])
    return tuple(items)


def import_exceptions(value: Any) -> tuple[type[BaseException], ...]:
    """Exception classes, given as classes or dotted paths, one or several. Raises ValueError."""
    classes = []
    for item in value if isinstance(value, (list, tuple)) else (value,):
        kind = item
        if isinstance(item, str):
            try:
                kind = import_string(item)
            except Exception as error:  # what a module raises is not for us to choose
                raise ValueError(f"{item!r} cannot be imported: {error}") from None
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ValueError(f"{item!r} is no exception class")
        classes.append(kind)
    return tuple(classes)


_PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "immediate": _boolean,
    "signals": _boolean,
    "notify": _boolean,
    "database": _database,
    "heartbeat": _positive_seconds,
    "worker_timeout": _positive_seconds,
    "prefetch": _prefetch,
    "catch_up": _catch_up,
    "catch_up_window": _catch_up_window,
    "retry_for": _exceptions,
}
KNOWN_KEYS = {*_PARSERS, *POLICY_KEYS, *RUNNER_KEYS, "retain", "periodic"}
