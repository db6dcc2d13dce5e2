"""Parsers of settings: from text (flag, environment) or a Python object (``OPTIONS``) to a value.

Each raises ``ValueError`` with the words that follow "use" in a message: what is allowed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

MAX_NAME = 64
_MIN_MEMORY = 16 * 1024**2
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off"})

Parser = Callable[[object], Any]


def boolean(value: object) -> bool:
    """1/0, true/false, yes/no, on/off, in any case."""
    text = str(value).strip().lower()
    if text in _YES | _NO:
        return text in _YES
    raise ValueError("1, true, yes or on; or 0, false, no or off")


def integer(low: int, high: int | None = None) -> Parser:
    """A whole number within the bounds, both included."""
    allowed = f"a whole number {_range(low, high)}"

    def parse(value: object) -> int:
        number = _whole(value)
        if number is None or number < low or (high is not None and number > high):
            raise ValueError(allowed)
        return number

    return parse


def seconds(low: float, high: float | None = None) -> Parser:
    """A number of seconds within the bounds, or a ``timedelta``."""
    allowed = f"a number of seconds {_range(low, high)}"

    def parse(value: object) -> float:
        number = _real(value)
        if number is None or number < low or (high is not None and number > high):
            raise ValueError(allowed)
        return number

    return parse


def or_off(parse: Parser) -> Parser:
    """None and 0 turn the setting off."""

    def parse_or_off(value: object) -> Any:
        if value is None or str(value).strip() == "0":
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or 0 for off") from None

    return parse_or_off


def choice(*allowed: str) -> Parser:
    """One of a few words."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value.strip() in allowed:
            return value.strip()
        raise ValueError(" or ".join(allowed))

    return parse


def memory(value: object) -> int:
    """Bytes: a number, or one with K, M or G (powers of 1024; ``MB`` and ``MiB`` mean ``M``)."""
    match = re.fullmatch(
        r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?)(?:I?B)?", str(value).strip().upper(), re.ASCII
    )
    size = int(float(match[1]) * _UNITS[match[2]]) if match and not isinstance(value, bool) else 0
    if size < _MIN_MEMORY:
        raise ValueError("a size of at least 16M, such as 512M or 2G")
    return size


def name(value: object) -> str:
    """A node's name."""
    text = str(value) if isinstance(value, str) else ""
    if not text or len(text) > MAX_NAME or not all(map(fits_name, text)):
        raise ValueError(f"1 to {MAX_NAME} printable characters without spaces and slashes")
    return text


def fits_name(character: str) -> bool:
    """Whether a node's name may have this character."""
    return character.isprintable() and not character.isspace() and character not in "/\\"


def alias(value: object) -> str:
    """A key of the setting ``TASKS``."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise ValueError('a key of the setting TASKS, such as "default"')


def patterns(value: object) -> tuple[str, ...]:
    """Queue patterns in their order: comma-separated text or a list."""
    parts: list[object]
    if isinstance(value, str):
        parts = list(filter(None, (part.strip() for part in value.split(","))))
    else:
        parts = list(value) if isinstance(value, list | tuple) else []
    if not parts or not all(isinstance(part, str) and _is_pattern(part) for part in parts):
        raise ValueError(
            "queue names separated by commas: email, a prefix like email*, or * for all"
        )
    return tuple(dict.fromkeys(str(part) for part in parts))


def patterns_or_none(value: object) -> tuple[str, ...]:
    """Queue patterns, or none at all: an empty text or list."""
    return () if value in ("", (), []) else patterns(value)


def address(value: object) -> tuple[str, int]:
    """A port, on all addresses of the host; or HOST:PORT, with an IPv6 host in brackets."""
    host, colon, port = str(value).strip().rpartition(":")
    number = _whole(port)
    plain = host.removeprefix("[").removesuffix("]")
    if number is None or not 1 <= number <= 65535 or (colon and not plain):
        raise ValueError("a port from 1 to 65535, or HOST:PORT")
    if ":" in plain and plain == host:
        raise ValueError("brackets around an IPv6 address, as in [::1]:9180")
    return plain, number


def path(value: object) -> Path:
    """A file's path, made absolute now, because the project may change the directory later."""
    if isinstance(value, str | os.PathLike) and str(value).strip():
        return Path(value).absolute()
    raise ValueError("a path of a file")


def _is_pattern(text: str) -> bool:
    stem = text.removesuffix("*")
    return bool(text) and not any(c.isspace() or not c.isprintable() or c in "*," for c in stem)


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII):
        return int(value)
    return None


def _real(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _range(low: float, high: float | None) -> str:
    return f"of at least {low:g}" if high is None else f"from {low:g} to {high:g}"
