"""What is said about the outcome of a task, in the log and where the database refuses it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import Error as DatabaseError

from .engines import Engine, Outcome
from .exceptions import ResultNotStored, TaskCancelled
from .execution import Execution, described
from .fields import dump_json
from .ids import dashed
from .results import json_list

logger = logging.getLogger("dbtasks")


def not_stored(outcome: Outcome, refusal: DatabaseError) -> Outcome:
    """The outcome of a task whose return value the database does not take."""
    told = " ".join(str(refusal).split())
    error = described(ResultNotStored(f"the database refused the return value: {told}"))
    return outcome._replace(
        status="FAILED",
        return_value=None,
        errors=dump_json([*json_list(outcome.errors)[-3:], error]),
        retry_in=None,
    )


def finish_alone(
    engine: Engine, outcome: Outcome, is_away: Callable[[DatabaseError], bool]
) -> tuple[set[str], Outcome]:
    """What `engine.finish` says, and what it has written: what it refuses fails the task.

    Raises DatabaseError if the database is away.
    """
    try:
        return engine.finish([outcome]), outcome
    except DatabaseError as refusal:
        if is_away(refusal):
            raise
        failed = not_stored(outcome, refusal)
        return engine.finish([failed]), failed


def log_outcome(execution: Execution, about: dict[str, Any]) -> None:
    """One line per task: DEBUG when all is well, the traceback once when it is not."""
    claimed, outcome = execution.claimed, execution.outcome
    if not execution.failed:
        logger.debug(
            "task %s done in %.1f ms", claimed.task_path, execution.seconds * 1000, extra=about
        )
    elif isinstance(execution.error, TaskCancelled):
        logger.warning(
            "task %s (%s) was cancelled", claimed.task_path, dashed(claimed.id), extra=about
        )
    elif outcome.retry_in is None:
        logger.error(
            "task %s (%s) failed: %s",
            claimed.task_path,
            dashed(claimed.id),
            summary(execution.error),
            exc_info=execution.error,
            extra=about,
        )
    else:
        logger.warning(
            "task %s (%s) runs again in %.1f s: %s",
            claimed.task_path,
            dashed(claimed.id),
            outcome.retry_in,
            summary(execution.error),
            extra=about,
        )


def summary(error: BaseException | None) -> str:
    """An exception in one line; its arguments may be long."""
    if error is None:
        return "the database refused its result"
    try:
        told = " ".join(str(error).split())
    except BaseException:  # a __str__ can raise anything
        told = ""
    name = type(error).__name__
    return f"{name}: {told[:200]}" if told else name
