"""Runs one claimed task and says what came of it. Touches no table of ours.

Nothing that a task does ends up as an exception here: sys.exit(), a KeyboardInterrupt or a return
value that is not JSON fail the attempt and no more. Only what kills the process is left to others.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.tasks.base import Task as DjangoTask
from django.tasks.base import TaskContext, TaskResult, TaskResultStatus
from django.tasks.signals import task_started
from django.utils.json import normalize_json

from . import tracing
from .engines import Claimed, Outcome
from .exceptions import Discard, Retry, TaskCancelled, TaskInterrupted, TaskTimeout
from .fields import as_utc, dump_json, explain_not_json, load_json
from .listeners import anybody_listens
from .policy import Policy, class_path, seconds
from .results import (
    json_list,
    missing_task,
    resolve_task,
    result_of_claim,
    task_errors,
    update_result,
)

if TYPE_CHECKING:
    from .backend import DatabaseBackend

NO_SPAN = contextlib.nullcontext()
MAX_TRACEBACK = 64 * 1024  # characters
NEWER_CODE_DELAY = 5.0  # seconds between two tries of a task that only newer code knows
NEWER_CODE_PATIENCE = 300.0  # seconds since its enqueue, after which it fails
MOST_FAILURES = 2**31 - 2  # the column has room for one more

_LEAD_IN = ("asgiref.", "asyncio.", "concurrent.futures.")  # between us and a coroutine

Limit = Callable[[float | None], contextlib.AbstractContextManager[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class Execution:
    """One attempt that is over. `result` is there if somebody asked for it (signals, context)."""

    claimed: Claimed
    outcome: Outcome
    result: TaskResult | None
    error: BaseException | None
    seconds: float

    @property
    def finished(self) -> bool:
        return self.outcome.retry_in is None

    @property
    def failed(self) -> bool:
        return self.outcome.status != TaskResultStatus.SUCCESSFUL


@contextlib.contextmanager
def unlimited(timeout: float | None) -> Any:
    """The Limit of a place that cannot interrupt a task."""
    yield


def execute(
    backend: DatabaseBackend, claimed: Claimed, worker: str, limit: Limit = unlimited
) -> Execution:
    """Runs the task of `claimed` for `worker`; `limit` raises TaskTimeout in it when time is up."""
    started = time.perf_counter()
    result: TaskResult | None = None
    value: str | None = None
    error: BaseException | None = None
    task: DjangoTask | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    signals = backend.parsed.signals
    try:
        task = resolve_task(claimed.task_path)
        args, kwargs = _arguments(claimed)
        listened = signals and anybody_listens()
        if listened or task.takes_context:
            result = result_of_claim(backend.engine, task, claimed, args, kwargs, worker)
        if listened:
            task_started.send_robust(type(backend), task_result=result)
        given = args
        if task.takes_context:
            given = [TaskContext(task_result=result), *args]  # type: ignore[arg-type]
        with tracing.span_of_run(claimed, worker) if tracing.is_active() else NO_SPAN:
            # A context of its own: no activated time zone or language outlives the task.
            context = contextvars.copy_context()
            with limit(claimed.policy.timeout):
                raw = context.run(task.call, *given, **kwargs)
        value = _return_value(task, raw)
    except BaseException as caught:
        error = caught
    outcome = _outcome(backend, claimed, worker, task, value, error)
    ended = signals and outcome.retry_in is None
    if ended and result is None and (outcome.status == "FAILED" or anybody_listens()):
        result = _result_at_end(backend, claimed, worker, task, args, kwargs)
    if result is not None:
        _complete(result, outcome)
    return Execution(claimed, outcome, result, error, time.perf_counter() - started)


def _arguments(claimed: Claimed) -> tuple[list[Any], dict[str, Any]]:
    args = [] if claimed.args == "[]" else json.loads(claimed.args)
    kwargs = {} if claimed.kwargs == "{}" else json.loads(claimed.kwargs)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise TypeError("args must be a JSON list and kwargs a JSON object")
    return args, kwargs


def _result_at_end(
    backend: DatabaseBackend,
    claimed: Claimed,
    worker: str,
    task: DjangoTask | None,
    args: list[Any],
    kwargs: dict[str, Any],
) -> TaskResult:
    """For task_finished, where nobody needed it before; of a task that is gone, too."""
    if task is None:
        path, priority, queue = claimed.task_path, claimed.priority, claimed.queue
        task = missing_task(path, priority, queue, None, backend.alias)
    return result_of_claim(backend.engine, task, claimed, args, kwargs, worker)


def _return_value(task: DjangoTask, raw: Any) -> str:
    if raw is None:
        return "null"
    try:
        normalized = normalize_json(raw)
    except (TypeError, ValueError):
        normalized = raw
    if problem := explain_not_json(normalized, "the return value"):
        raise TypeError(
            f"{problem}. Return values of tasks are stored as JSON; return strings, numbers, "
            "booleans, None, lists and dictionaries of these."
        )
    return dump_json(normalized)


def _outcome(
    backend: DatabaseBackend,
    claimed: Claimed,
    worker: str,
    task: DjangoTask | None,
    value: str | None,
    error: BaseException | None,
) -> Outcome:
    policy = claimed.policy
    if error is None:
        return _ended(claimed, worker, policy, "SUCCESSFUL", value=value)
    if isinstance(error, TaskInterrupted):
        return _uncounted(claimed, worker, 0.0)
    if isinstance(error, TaskCancelled):
        return _ended(claimed, worker, policy, "FAILED", error=error)
    if task is None:
        if _may_be_newer_code(backend, claimed):
            return _uncounted(claimed, worker, NEWER_CODE_DELAY)
        return _ended(claimed, worker, policy, "FAILED", error=error)
    if isinstance(error, Retry):
        return _again(claimed, worker, _asked_delay(error, policy, claimed))
    failures = min(claimed.failures, MOST_FAILURES) + 1
    if (
        failures < policy.max_attempts
        and not isinstance(error, Discard)
        and backend.may_retry(error, policy)
    ):
        delay = policy.delay_before(failures)
        return _again(claimed, worker, delay, error=error, failures=failures)
    return _ended(claimed, worker, policy, "FAILED", error=error, failures=failures)


def _ended(
    claimed: Claimed,
    worker: str,
    policy: Policy,
    status: str,
    *,
    value: str | None = None,
    error: BaseException | None = None,
    failures: int | None = None,
) -> Outcome:
    return Outcome(
        id=claimed.id,
        attempt=claimed.attempt,
        worker=worker,
        status=status,
        return_value=value,
        errors=_errors(claimed, error),
        worker_ids=_worker_ids(claimed, worker),
        failures=claimed.failures if failures is None else failures,
        retry_in=None,
        retain=policy.retention(failed=status == "FAILED"),
    )


def _again(
    claimed: Claimed,
    worker: str,
    delay: float,
    *,
    error: BaseException | None = None,
    failures: int | None = None,
) -> Outcome:
    return Outcome(
        id=claimed.id,
        attempt=claimed.attempt,
        worker=worker,
        status="READY",
        return_value=None,
        errors=_errors(claimed, error),
        worker_ids=_worker_ids(claimed, worker),
        failures=claimed.failures if failures is None else failures,
        retry_in=delay,
        retain=None,
    )


def _uncounted(claimed: Claimed, worker: str, delay: float) -> Outcome:
    """READY again as if this attempt had not been."""
    return _again(claimed, worker, delay)._replace(worker_ids=claimed.worker_ids)


def _asked_delay(error: Retry, policy: Policy, claimed: Claimed) -> float:
    if error.after is not None:
        with contextlib.suppress(ValueError):
            return seconds("after", error.after) or 0.0
    return policy.delay_before(claimed.failures + 1)


def _may_be_newer_code(backend: DatabaseBackend, claimed: Claimed) -> bool:
    """Whether a process with younger code than ours enqueued it, not long ago."""
    from .backend import CODE_SINCE

    try:
        code = load_json(claimed.policy_text).get("code", 0)
        enqueued_at = backend.engine.moment(claimed.enqueued_at)
        if enqueued_at is None:
            return False
        now = time.time()
        age = now - as_utc(enqueued_at).timestamp()
        known = CODE_SINCE < code < now + NEWER_CODE_PATIENCE
        return bool(known and abs(age) < NEWER_CODE_PATIENCE)
    except (ValueError, TypeError, AttributeError, OverflowError):
        return False


def _worker_ids(claimed: Claimed, worker: str) -> str:
    return _with_worker(claimed.worker_ids, worker)


@functools.lru_cache(maxsize=256)
def _with_worker(worker_ids: str, worker: str) -> str:
    return dump_json([*json_list(worker_ids), worker])


def _errors(claimed: Claimed, error: BaseException | None) -> str:
    if error is None:
        return claimed.errors
    return dump_json([*json_list(claimed.errors), described(error)])


def described(error: BaseException) -> dict[str, str]:
    """An entry of `errors`: the exception's class path and traceback, from the task's frame on."""
    kind = type(error)
    try:
        told = "".join(traceback.format_exception(kind, error, _without_our_frames(error)))
    except Exception:
        told = f"{kind.__qualname__}: (its traceback could not be formatted)\n"
    if len(told) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2
        told = f"{told[:half]}\n… {len(told) - MAX_TRACEBACK} characters left out …\n{told[-half:]}"
    return {"exception_class_path": class_path(kind), "traceback": told}


def _without_our_frames(error: BaseException) -> Any:
    """The traceback without the frames that lead to the task: ours, Django's, an event loop's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        if module not in (__name__, "django.tasks.base") and not module.startswith(_LEAD_IN):
            break
        trace = trace.tb_next
    return trace


def _complete(result: TaskResult, outcome: Outcome) -> None:
    """What is known before the database has written it; the time of the finish follows then."""
    update_result(
        result,
        status=TaskResultStatus(outcome.status),
        errors=task_errors(json_list(outcome.errors)),
    )
    if outcome.return_value is not None:
        update_result(result, _return_value=json.loads(outcome.return_value))


def interrupts(error: BaseException | None) -> bool:
    """Whether an exception that we raise into tasks cut this one short."""
    return isinstance(error, (TaskCancelled, TaskInterrupted, TaskTimeout))
