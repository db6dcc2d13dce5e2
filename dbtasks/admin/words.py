"""Numbers and texts as people can read them."""

from __future__ import annotations

import datetime
import math

from django.utils import timezone

STEPS = ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
SECONDS_BELOW = 120


def showable(text: str) -> str:
    """What a page can hold: half a surrogate pair, which JSON can, is shown as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def duration(seconds: float | None) -> str:
    """ "85 ms", "1.2 s", "3 min", "2 h 5 min", "4 d 3 h"; "—" for what is no number of seconds."""
    if seconds is None or not math.isfinite(seconds):
        return "—"
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < SECONDS_BELOW:
        return f"{seconds:.0f} s"
    whole = int(seconds)
    for size, unit, rest_size, rest_unit in STEPS:
        if whole >= size:
            rest = whole % size // rest_size
            exact = rest and rest_unit != "s"
            return (
                f"{whole // size} {unit} {rest} {rest_unit}" if exact else f"{whole // size} {unit}"
            )
    return f"{whole} s"


def since(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    """How long ago that was."""
    return "—" if moment is None else duration(distance(now, moment))


def distance(later: datetime.datetime, earlier: datetime.datetime) -> float:
    """Seconds between two moments; naive ones are local time, as USE_TZ = False has it."""
    return (aware(later) - aware(earlier)).total_seconds()


def aware(moment: datetime.datetime) -> datetime.datetime:
    return timezone.make_aware(moment) if timezone.is_naive(moment) else moment


def number(value: int, cap: int | None = None) -> str:
    """ "1,204"; "10,000+" for what was counted up to a cap of 10,000."""
    if cap is not None and value > cap:
        return f"{cap:,}+"
    return f"{value:,}"


def size(amount: int | None) -> str:
    """Bytes as "85 kB", "1.2 MB"."""
    if amount is None:
        return "—"
    value = float(amount)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def plural(count: int, one: str, many: str = "") -> str:
    """ "1 task", "1,204 tasks"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
