"""What a list of tasks is asked to show, from the query of its address."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from ..engines.looks import CAP, NOW, STATES, Look
from ..ids import parse_id

WITHIN = {
    "hour": ("the last hour", datetime.timedelta(hours=1)),
    "day": ("the last 24 hours", datetime.timedelta(days=1)),
    "week": ("the last 7 days", datetime.timedelta(days=7)),
    "month": ("the last 30 days", datetime.timedelta(days=30)),
}
LONGEST = 500  # characters of a filter
FILTERS = ("state", "queue", "task", "text", "worker", "error", "within")
STATE_WORDS = {
    "ready": "Ready",
    "deferred": "Deferred",
    "paused": "Paused",
    "running": "Running",
    "failed": "Failed",
    "successful": "Successful",
}
assert tuple(STATE_WORDS) == STATES


def word_of(state: str) -> str:
    """What people call a state; a row written by hand can be in one that there is not."""
    return STATE_WORDS.get(state, state)


def look_of(query: Mapping[str, str]) -> Look:
    """The look that a query asks for; what it says wrongly is left out."""
    asked = asked_for(query)
    state = asked["state"]
    error = asked["error"]
    within = WITHIN.get(asked["within"])
    return Look(
        state="failed" if error else state,
        queue=asked["queue"],
        task=asked["task"],
        text=asked["text"],
        worker=asked["worker"],
        error=error,
        since=datetime.datetime.now(datetime.UTC) - within[1]
        if within and state not in NOW
        else None,
        before=parse_id(query.get("before", "")),
        offset=offset_of(query.get("offset", "")),
    )


def asked_for(query: Mapping[str, str]) -> dict[str, str]:
    """The filters, cleaned; "" where there is none."""
    asked = {name: clean(query.get(name, "")) for name in FILTERS}
    if asked["state"] not in STATES:
        asked["state"] = ""
    if asked["within"] not in WITHIN:
        asked["within"] = ""
    return asked


def clean(value: str) -> str:
    """Without what no database takes (NUL, lone surrogates), and not longer than a path."""
    text = value.replace("\0", "").encode("utf-8", "ignore").decode()
    return text.strip()[:LONGEST]


def offset_of(value: str) -> int:
    return min(int(value), CAP) if value.isascii() and value.isdigit() and len(value) < 9 else 0
