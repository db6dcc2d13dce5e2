"""What a task's options say about retries, limits and retention, fixed at the time of enqueue."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import random
from collections.abc import Mapping
from typing import Any

from .schedule import Duration, ScheduleError

BACKOFF_BASE = 1.0  # seconds
BACKOFF_CAP = 3600.0  # seconds
MAX_ATTEMPTS_LIMIT = 10_000
LONGEST_TEXT = 10_000  # characters; a longer policy is none of ours

DurationLike = Duration | datetime.timedelta | str | int | float
Backoff = str | float | tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """All durations in seconds. `None` means: no limit, or keep forever."""

    max_attempts: int = 1
    backoff: Backoff = "exponential"
    timeout: float | None = None
    max_crashes: int = 3
    retain: float | None = None
    retain_failed: float | None = None
    ack: str = "batched"
    # Class paths of the exceptions that are worth another attempt; None: as OPTIONS says.
    retry_for: tuple[str, ...] | None = None

    def to_text(self) -> str:
        """The canonical JSON of what differs from the defaults, as it is stored with the row."""
        return _policy_text(self)

    def delay_before(self, failures: int) -> float:
        """Seconds to wait before the next attempt, after `failures` (>= 1) failed ones."""
        if self.backoff == "exponential":
            delay = min(BACKOFF_BASE * 2.0 ** min(failures - 1, 32), BACKOFF_CAP)
            return delay * random.uniform(0.75, 1.25)
        if isinstance(self.backoff, tuple):
            return self.backoff[min(failures, len(self.backoff)) - 1]
        return float(self.backoff)

    def names(self, error: BaseException) -> bool:
        """Whether `retry_for` has the class of `error` or one that it inherits from."""
        names = self.retry_for or ()
        return any(class_path(kind) in names for kind in type(error).__mro__)

    def retention(self, failed: bool) -> float | None:
        """Seconds to keep a finished row, or None to keep it forever."""
        if failed and self.retain_failed is not None:
            return self.retain_failed
        return self.retain


DEFAULT = Policy()


@functools.lru_cache(maxsize=1024)
def _policy_text(policy: Policy) -> str:
    return json.dumps(
        {
            field.name: value
            for field in dataclasses.fields(Policy)
            if (value := getattr(policy, field.name)) != getattr(DEFAULT, field.name)
        },
        separators=(",", ":"),
    )


def policy_from_text(text: str) -> Policy:
    """The policy of a row. What a row says wrongly falls back to the default."""
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:  # nor is it worth remembering
        return DEFAULT
    return _policy_from_text(text)


@functools.lru_cache(maxsize=4096)
def _policy_from_text(text: str) -> Policy:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            return DEFAULT
        known = {field.name for field in dataclasses.fields(Policy)}
        return Policy(**parse_policy({k: v for k, v in values.items() if k in known}))
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return DEFAULT


def parse_policy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked values for the Policy fields among `values`.

    Raises ValueError with a message that names the option, for the first one that is wrong.
    """
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        match key:
            case "max_attempts":
                parsed[key] = _whole(key, value, 1, MAX_ATTEMPTS_LIMIT)
            case "max_crashes":
                parsed[key] = _whole(key, value, 0, MAX_ATTEMPTS_LIMIT)
            case "backoff":
                parsed[key] = _backoff(value)
            case "timeout":
                parsed[key] = seconds(key, value, minimum=0.001)
            case "retain" | "retain_failed":
                parsed[key] = seconds(key, value)
            case "ack":
                if value not in ("batched", "immediate"):
                    raise ValueError(f'ack must be "batched" or "immediate", not {value!r}')
                parsed[key] = value
            case "retry_for":
                parsed[key] = tuple(map(str, value))
    return parsed


def seconds(key: str, value: Any, minimum: float = 0.0) -> float | None:
    """A Duration in seconds, or None. Raises ValueError that names `key`."""
    if value is None:
        return None
    try:
        result = Duration(value).total_seconds()
    except ScheduleError as error:
        raise ValueError(f"{key}: {error}") from None
    if result < minimum:
        raise ValueError(f"{key} must be at least {minimum:g} seconds, not {value!r}")
    return result


def class_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _whole(key: str, value: Any, minimum: int, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValueError(f"{key} must be a whole number from {minimum} to {maximum}, not {value!r}")
    return value


def _backoff(value: Any) -> Backoff:
    if value == "exponential":
        return "exponential"
    try:
        if isinstance(value, (list, tuple)):
            if not value:
                raise ScheduleError("the list is empty")
            return tuple(Duration(item).total_seconds() for item in value)
        return Duration(value).total_seconds()
    except ScheduleError as error:
        raise ValueError(
            f'backoff must be "exponential", a Duration or a list of Durations, '
            f"not {value!r}: {error}"
        ) from None
