"""Periodic tasks: what an entry says, who enqueues it, and what operators do with it at run time.

`Periodic` is for settings. `schedule`, `unschedule`, `pause`, `resume`, `run_now` and `entries`
need Django to be set up; they load when they are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .definition import (
    CATCH_UP,
    CATCH_UP_WINDOW,
    OVERLAP,
    SKIP_TOLERANCE,
    BoundPeriodic,
    Periodic,
    ScheduleLike,
    as_periodics,
    as_window,
)

if TYPE_CHECKING:
    from .registry import (
        Entry,
        PeriodicError,
        entries,
        pause,
        resume,
        run_now,
        schedule,
        unschedule,
    )

__all__ = [
    "CATCH_UP",
    "CATCH_UP_WINDOW",
    "OVERLAP",
    "SKIP_TOLERANCE",
    "BoundPeriodic",
    "Entry",
    "Periodic",
    "PeriodicError",
    "ScheduleLike",
    "as_periodics",
    "as_window",
    "entries",
    "pause",
    "resume",
    "run_now",
    "schedule",
    "unschedule",
]

OPERATIONS = (
    "Entry",
    "PeriodicError",
    "entries",
    "pause",
    "resume",
    "run_now",
    "schedule",
    "unschedule",
)


def __getattr__(name: str) -> Any:
    if name in OPERATIONS:
        from . import registry

        return getattr(registry, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
