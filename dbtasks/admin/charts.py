"""The last hour as inline SVG: shapes and words, no script and no style of its own."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from .words import duration, number

MINUTES = 60
WIDTH, HEIGHT = 480, 140
LEFT, RIGHT, TOP, BOTTOM = 44, 4, 8, 20
INNER_WIDTH, INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
STEP = INNER_WIDTH / MINUTES


@dataclasses.dataclass(frozen=True)
class Sample:
    """One minute over all queues; run times in seconds."""

    succeeded: int = 0
    failed: int = 0
    p50: float | None = None
    p95: float | None = None


def throughput(samples: Sequence[Sample], end: datetime.datetime) -> SafeString:
    """Finished tasks per minute as bars; the failed ones on top in their own colour."""
    top = rounded_up(max((each.succeeded + each.failed for each in samples), default=0))
    bars: list[tuple[str, str, str, str, str]] = []
    for place, each in enumerate(samples):
        done = height(each.succeeded, top)
        failed = height(each.failed, top)
        base = TOP + INNER_HEIGHT
        if done:
            bars.append(
                ("done", x(place), f"{base - done:.1f}", f"{STEP * 0.8:.1f}", f"{done:.1f}")
            )
        if failed:
            above = base - done - failed
            bars.append(("failed", x(place), f"{above:.1f}", f"{STEP * 0.8:.1f}", f"{failed:.1f}"))
    shapes = format_html_join("", '<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>', bars)
    succeeded, failed_in_all = (
        sum(each.succeeded for each in samples),
        sum(each.failed for each in samples),
    )
    words = (
        f"Finished tasks per minute over the last hour: {number(succeeded)} successful, "
        f"{number(failed_in_all)} failed; at most {number(int(top))} per minute on the scale."
    )
    return chart(shapes, words, number(int(top)), end)


def run_times(samples: Sequence[Sample], end: datetime.datetime) -> SafeString:
    """The median and the 95th percentile of run times per minute as lines."""
    known = [value for each in samples for value in (each.p50, each.p95) if value is not None]
    top = max(known, default=0.0) or 1.0
    p50s, p95s = [each.p50 for each in samples], [each.p95 for each in samples]
    shapes = line(p50s, top, "50") + line(p95s, top, "95")
    words = (
        "Run time of tasks over the last hour: median up to "
        f"{duration(max((each for each in p50s if each is not None), default=None))}, "
        "95th percentile up to "
        f"{duration(max((each for each in p95s if each is not None), default=None))}."
    )
    return chart(shapes, words, duration(top) if known else "", end)


def line(values: Sequence[float | None], top: float, name: str) -> SafeString:
    """Connected points; a minute without runs is a gap, one between two gaps is a dot."""
    path, dots = "", []
    for place, value in enumerate(values):
        if value is None:
            continue
        spot = (
            f"{LEFT + (place + 0.4) * STEP:.1f}",
            f"{TOP + INNER_HEIGHT - height(value, top):.1f}",
        )
        before = values[place - 1] if place else None
        after = values[place + 1] if place + 1 < len(values) else None
        path += f"{'M' if before is None else 'L'}{spot[0]} {spot[1]}"
        if before is None and after is None:
            dots.append((f"dot{name}", *spot))
    drawn = format_html_join("", '<circle class="{}" cx="{}" cy="{}" r="2"/>', dots)
    return format_html('<path class="p{}" d="{}"/>', name, path) + drawn if path else drawn


def chart(shapes: SafeString, words: str, top: str, end: datetime.datetime) -> SafeString:
    base = TOP + INNER_HEIGHT
    begin = end - datetime.timedelta(minutes=MINUTES - 1)
    return format_html(
        '<svg class="dbtasks-chart" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<path class="axis" d="M{} {}H{}"/>{}'
        '<text x="{}" y="{}" text-anchor="end">{}</text>'
        '<text x="{}" y="{}" text-anchor="end">0</text>'
        '<text x="{}" y="{}">{}</text><text x="{}" y="{}" text-anchor="end">{}</text></svg>',
        WIDTH, HEIGHT, words,
        LEFT, base, WIDTH - RIGHT, shapes,
        LEFT - 4, TOP + 8, top,
        LEFT - 4, base,
        LEFT, HEIGHT - 4, f"{begin:%H:%M}",
        WIDTH - RIGHT, HEIGHT - 4, f"{end:%H:%M}",
    )  # fmt: skip


def x(place: int) -> str:
    return f"{LEFT + place * STEP:.1f}"


def height(value: float, top: float) -> float:
    return 0.0 if top <= 0 else INNER_HEIGHT * value / top


def rounded_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50…"""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)
