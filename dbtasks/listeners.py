"""Whether anybody hears that a task is enqueued, starts, or ends.

A TaskResult for the signals costs as much as all else that surrounds a task. Django itself is
connected to them, to write a line to the log, so that somebody listens is not the question.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from django.conf import settings
from django.dispatch import Signal
from django.tasks import signals
from django.utils.log import RequireDebugTrue

_DJANGOS = (
    (signals.task_started, getattr(signals, "log_task_started", None)),
    (signals.task_finished, getattr(signals, "log_task_finished", None)),
)
_DJANGOS_LOGGER = logging.getLogger("django.tasks")


def anybody_listens() -> bool:
    """To tasks that start, or that end well. (Those that fail are logged as errors.)"""
    for signal, own in _DJANGOS:
        if has_others(signal, own):
            return True
    return is_read(_DJANGOS_LOGGER, logging.INFO)


def anybody_hears_enqueues() -> bool:
    own = getattr(signals, "log_task_enqueued", None)
    return has_others(signals.task_enqueued, own) or is_read(_DJANGOS_LOGGER, logging.DEBUG)


def has_others(signal: Signal, own: Any) -> bool:
    """Whether a receiver other than `own` is connected."""
    for entry in signal.receivers:
        receiver = entry[1]
        if isinstance(receiver, weakref.ReferenceType):
            receiver = receiver()
        if receiver is not own:
            return True
    return False


def is_read(logger: logging.Logger, level: int) -> bool:
    """Whether a record of this level would be more than made and thrown away."""
    if not logger.isEnabledFor(level):
        return False
    current: logging.Logger | None = logger
    while current is not None:
        for handler in current.handlers:
            if handler.level <= level and not is_mute(handler):
                return True
        current = current.parent if current.propagate else None
    return level >= logging.WARNING  # what no handler takes goes to stderr from there on


def is_mute(handler: logging.Handler) -> bool:
    """Django's console handler, as its default settings have it in production."""
    filters = handler.filters
    return bool(filters) and not settings.DEBUG and isinstance(filters[0], RequireDebugTrue)
