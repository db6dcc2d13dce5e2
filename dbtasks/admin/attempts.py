"""The failed attempts of a task, from a column that may be giant or not what it should be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..engines.looks import Text
from .words import showable

LONGEST_TRACEBACK = 20_000  # characters; of longer ones both ends are shown
MOST = 50  # attempts; of more the last ones are shown


@dataclasses.dataclass(frozen=True)
class Attempt:
    """`number` counts the failed attempts from 1; `cut`: how many characters are left out."""

    number: int
    exception: str
    message: str
    traceback: str
    cut: int
    worker: str


def attempts_of(errors: Text | None, workers: Sequence[str]) -> tuple[list[Attempt], bool]:
    """The attempts, the last one first, and whether there are more than can be shown."""
    if errors is None:
        return [], False
    entries = list(whole_entries(errors.start))
    pairs_up = len(workers) in (len(entries), len(entries) + 1) and not errors.cut
    found = [
        attempt_of(number, entry, workers[number - 1] if pairs_up else "")
        for number, entry in enumerate(entries, 1)
    ]
    return found[::-1][:MOST], errors.cut or len(found) > MOST


def whole_entries(text: str) -> Iterator[Any]:
    """The entries of a JSON list, as far as they are whole; what is no list is one entry."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        yield from entries_of_cut_list(text)
    else:
        yield from value if isinstance(value, list) else [value]


def entries_of_cut_list(text: str) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    place, found = text.find("{"), False
    while place >= 0:
        try:
            entry, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            break
        yield entry
        found, place = True, text.find("{", end)
    if not found and text:
        yield text  # not even the first is whole: it is shown as it is


def attempt_of(number: int, entry: Any, worker: str) -> Attempt:
    if isinstance(entry, dict):
        exception = showable(str(entry.get("exception_class_path", "")))
        traceback = showable(str(entry.get("traceback", "")))
    else:
        exception, traceback = "", showable(str(entry))
    shown, cut = both_ends(traceback)
    return Attempt(number, exception[:500], last_line(traceback), shown, cut, worker)


def both_ends(text: str) -> tuple[str, int]:
    """A text with its middle left out if it is giant: how it began and how it ended matters."""
    cut = len(text) - LONGEST_TRACEBACK
    if cut <= 0:
        return text, 0
    half = LONGEST_TRACEBACK // 2
    return f"{text[:half]}\n\n[… {cut:,} characters left out …]\n\n{text[-half:]}", cut


def last_line(text: str) -> str:
    lines = text[-2000:].strip().splitlines()
    return lines[-1][:300] if lines else ""


def pretty(text: Text | None) -> str:
    """JSON for people; what is giant or no JSON is shown as it is."""
    if text is None:
        return ""
    if text.cut:
        return text.start
    try:
        return showable(json.dumps(json.loads(text.start), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return text.start
