"""OpenTelemetry: a span per run, linked to the trace that enqueued the task."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from dbtasks import tracing
from dbtasks.models import ScheduledTask
from dbtasks.policy import policy_from_text
from dbtasks.testing import running
from tests.app import tasks
from tests.test_statistics import claimed

pytestmark = pytest.mark.usefixtures("db")
DEADLINE = 30.0


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    """The process has one, for good."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@pytest.fixture
def exporter(provider: TracerProvider) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter
    processor.shutdown()


def run(*results: Any) -> None:
    with running(workers=1, init_periodic=False) as runner:
        for result in results:
            assert runner.wait_for(result, DEADLINE)


def runs(exporter: InMemorySpanExporter) -> list[Any]:
    return [span for span in exporter.get_finished_spans() if span.name.startswith("run ")]


def test_a_run_is_linked_to_the_trace_that_enqueued_it(exporter: InMemorySpanExporter) -> None:
    with trace.get_tracer("test").start_as_current_span("request") as request:
        result = tasks.add.enqueue(1, 2)
    run(result)
    (span,) = runs(exporter)
    assert span.name == "run tests.app.tasks.add"
    assert span.kind is trace.SpanKind.CONSUMER
    (link,) = span.links
    assert link.context.trace_id == request.get_span_context().trace_id
    assert link.context.span_id == request.get_span_context().span_id
    assert span.attributes["messaging.message.id"] == result.id
    assert span.attributes["messaging.destination.name"] == "default"
    assert span.attributes["dbtasks.attempt"] == 1
    assert span.status.is_ok or span.status.is_unset
    result.refresh()
    assert result.return_value == 3


def test_each_attempt_is_a_span_and_an_error_is_told(exporter: InMemorySpanExporter) -> None:
    flaky = tasks.fail.using(max_attempts=2, backoff=0.01)  # type: ignore[attr-defined]
    run(flaky.enqueue("no luck"))
    spans = runs(exporter)
    assert [span.attributes["dbtasks.attempt"] for span in spans] == [1, 2]
    for span in spans:
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.events[0].attributes["exception.message"] == "no luck"
        assert not span.links


def test_what_runs_inside_has_the_run_as_its_parent(exporter: InMemorySpanExporter) -> None:
    with tracing.span_of_run(claimed(), "w"):
        told = tracing.traceparent()
    (span,) = runs(exporter)
    assert told.split("-")[2] == f"{span.context.span_id:016x}"


def test_a_row_has_the_link_only_where_there_is_a_trace(provider: TracerProvider) -> None:
    tasks.noop.enqueue()
    with trace.get_tracer("test").start_as_current_span("request"):
        tasks.noop.using(priority=1).enqueue()
    plain, linked = ScheduledTask.objects.order_by("priority")
    assert "trace" not in json.loads(plain.policy)
    assert tracing.TRACEPARENT.fullmatch(json.loads(linked.policy)["trace"])
    assert policy_from_text(plain.policy) == policy_from_text(linked.policy)


@pytest.mark.parametrize(
    "policy", ['{"trace":3}', '{"trace":"00-xyz"}', '["trace"]', '{"trace":"00-1-2-3"}']
)
def test_a_link_that_is_none_is_left_out(exporter: InMemorySpanExporter, policy: str) -> None:
    with tracing.span_of_run(claimed(policy_text=policy), "w"):
        pass
    (span,) = runs(exporter)
    assert not span.links


def test_a_span_that_cannot_be_made_harms_nothing(
    exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    ran = False
    with tracing.span_of_run(claimed(policy_text='"trace" {'), "w"):
        ran = True
    assert ran
    assert "no span for task" in caplog.text
    assert not runs(exporter)


def test_without_opentelemetry_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MODULE", "nothing.of.that.name")
    assert not tracing.is_active()
    assert tracing.traceparent() == ""
    assert tracing.with_trace('{"code":1}') == '{"code":1}'
