"""What the subcommands print: aligned for people, tab-separated in a pipe, JSON with --json."""

from __future__ import annotations

import datetime
import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


class Output:
    """`stream` for results, `errors` for what is said beside them."""

    def __init__(self, stream: TextIO, errors: TextIO, as_json: bool = False) -> None:
        self.stream = stream
        self.errors = errors
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        return bool(getattr(self.stream, "isatty", lambda: False)())

    @property
    def width(self) -> int:
        """How many characters a line of the terminal has."""
        return shutil.get_terminal_size().columns

    def rows(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; each column has a name, which a pipe does without."""
        if self.as_json:
            self.document([dict(zip(columns, row, strict=True)) for row in rows])
        elif self.is_terminal:
            for line in aligned(columns, rows):
                self.line(line)
        else:
            for row in rows:
                self.tabbed(*row)

    def tabbed(self, *values: Any) -> None:
        """One line for programs."""
        self.line("\t".join(cell(value, exact=True) for value in values))

    def record(self, values: Mapping[str, Any]) -> None:
        """One thing with many fields."""
        if self.as_json:
            self.document(values)
        elif self.is_terminal:
            width = max(map(len, values), default=0)
            for name, value in values.items():
                self.line(f"{name:<{width}}  {cell(value)}")
        else:
            for name, value in values.items():
                self.line(f"{name}\t{cell(value, exact=True)}")

    def document(self, value: Any) -> None:
        self.line(json.dumps(value, indent=2, default=as_json, ensure_ascii=False))

    def line(self, text: str = "") -> None:
        # What a task is called may be anything; a stream can have a narrow encoding.
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")

    def note(self, text: str) -> None:
        """What is no result, on stderr."""
        self.errors.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def aligned(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A header and the rows; numbers are aligned to the right."""
    values = [list(row) for row in rows]
    cells = [[cell(value) for value in row] for row in values]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    right = [
        bool(values) and all(isinstance(row[at], (int, float)) for row in values)
        for at in range(len(columns))
    ]
    header = [name.upper() for name in columns]
    return [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [header, *cells]
    ]


def cell(value: Any, exact: bool = False) -> str:
    """A value in one line without control characters; `exact`: for programs to read."""
    match value:
        case None:
            return "" if exact else "-"
        case datetime.datetime():
            return value.isoformat() if exact else value.strftime("%Y-%m-%d %H:%M:%S")
        case datetime.timedelta():
            return f"{value.total_seconds():g}" if exact else duration(value.total_seconds())
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case list() | dict():
            return one_line(json.dumps(value, default=as_json, ensure_ascii=False))
    return one_line(str(value))


def one_line(text: str) -> str:
    """Nothing in it can move the cursor or end the line."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        character
        if character.isprintable() and character != "\\"
        else ESCAPES.get(character) or character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def printable(text: str) -> str:
    """Text of many lines whose control characters do nothing."""
    return "\n".join(
        "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
        for line in text.splitlines()
    )


def duration(seconds: float) -> str:
    """Seconds for people, in the two largest units."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f}s"
    left = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (parts and unit != "s"):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def as_json(value: Any) -> Any:
    match value:
        case datetime.datetime():
            return value.isoformat()
        case datetime.timedelta():
            return value.total_seconds()
        case uuid.UUID():
            return str(value)
    return str(value)
