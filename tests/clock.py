"""A database whose clock a test sets: the engine reads the time from a table of one row."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

from dbtasks.engines import get_engine
from tests.app.models import Clock

NOON = datetime.datetime(2031, 3, 12, 12, 34, 56, tzinfo=datetime.UTC)  # no boundary is near
NOW = "(SELECT at FROM app_clock)"
IN_SECONDS = {
    "postgresql": f"{NOW} + %s * interval '1 second'",
    "sqlite": f"strftime('%%Y-%%m-%%d %%H:%%M:%%f', {NOW}, %s || ' seconds')",
    "mysql": f"{NOW} + INTERVAL %s SECOND",
}


class VirtualClock:
    """`at` is the time for the engine of the default backend."""

    def __init__(self, at: datetime.datetime) -> None:
        self.at = at
        Clock.objects.create(at=at)

    def set(self, at: datetime.datetime) -> None:
        self.at = at
        Clock.objects.update(at=at)

    def advance(self, by: datetime.timedelta) -> None:
        self.set(self.at + by)


@contextmanager
def virtual_clock(at: datetime.datetime = NOON) -> Iterator[VirtualClock]:
    """Inside, the engine's clock stands still unless it is set."""
    engine: Any = get_engine("default", "default")
    engine._statements.clear()
    engine.NOW, engine.IN_SECONDS = NOW, IN_SECONDS[connection.vendor]
    try:
        yield VirtualClock(at)
    finally:
        del engine.NOW, engine.IN_SECONDS
        engine._statements.clear()
