"""OpenTelemetry: a span per run, linked to the trace in which the task was enqueued.

Active in a process that has imported `opentelemetry.trace` (extra `otel`); elsewhere it costs a
look into a dictionary. The link travels in the row's policy, as a W3C `traceparent`, so a table
has it only where it is used. See docs/guides/logging.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .exceptions import Retry
from .ids import dashed

if TYPE_CHECKING:
    from .engines import Claimed

logger = logging.getLogger("dbtasks")

MODULE = "opentelemetry.trace"
# https://www.w3.org/TR/trace-context/#traceparent-header
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def is_active() -> bool:
    """Whether this process uses OpenTelemetry."""
    return MODULE in sys.modules


def traceparent() -> str:
    """The current span as a `traceparent` header; "" if there is none."""
    if not is_active():
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def with_trace(policy_text: str) -> str:
    """A row's policy that says where it was enqueued, if that is known."""
    if not is_active() or not (told := traceparent()):
        return policy_text
    rest = policy_text[:-1]
    return f'{rest}{"," if len(rest) > 1 else ""}"trace":"{told}"}}'


@contextlib.contextmanager
def span_of_run(claimed: Claimed, worker: str) -> Iterator[None]:
    """The span of what runs inside. That it cannot be made is logged and harms nothing."""
    try:
        span, trace = started_span(claimed, worker)
    except Exception as error:
        logger.error("no span for task %s", dashed(claimed.id), exc_info=error)
        yield
        return
    with trace.use_span(
        span, end_on_exit=True, record_exception=False, set_status_on_exception=False
    ):
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Retry):
                span.record_exception(error)
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def started_span(claimed: Claimed, worker: str) -> tuple[Any, Any]:
    from opentelemetry import trace

    link = enqueued_in(claimed)
    span = trace.get_tracer("dbtasks").start_span(
        f"run {claimed.task_path}",
        kind=trace.SpanKind.CONSUMER,
        links=[] if link is None else [trace.Link(link)],
        # https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
        attributes={
            "messaging.system": "dbtasks",
            "messaging.operation.type": "process",
            "messaging.destination.name": claimed.queue,
            "messaging.message.id": dashed(claimed.id),
            "dbtasks.task_path": claimed.task_path,
            "dbtasks.attempt": claimed.attempt,
            "dbtasks.worker_id": worker,
        },
    )
    return span, trace


def enqueued_in(claimed: Claimed) -> Any:
    """The SpanContext in which the row was enqueued, or None."""
    from opentelemetry import trace

    if '"trace"' not in claimed.policy_text:
        return None
    policy = json.loads(claimed.policy_text)
    told = policy.get("trace") if isinstance(policy, dict) else None
    found = TRACEPARENT.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in found.groups())
    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
