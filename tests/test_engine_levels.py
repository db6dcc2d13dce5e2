"""Claims from many queues that are equally urgent: who gives how much, and what is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from dbtasks.engines import Engine, get_engine
from dbtasks.engines.level import KNOWN_FOR
from dbtasks.queues import QueueSelection, select_queues
from tests.engines import EVERYTHING, ME, fresh_engine, new_task, outcome_of, put, statements

NAMES = [f"q{number:02}" for number in range(12)]


@pytest.fixture
def engine(db: None) -> Engine:
    return fresh_engine()


@pytest.fixture
def remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known stays known until something tells otherwise."""
    monkeypatch.setattr("dbtasks.engines.level.KNOWN_FOR", 3600.0)
    monkeypatch.setattr("dbtasks.engines.mysql.NAMES_GOOD_FOR", 3600.0)


def queues_of(engine: Engine, limit: int, queues: QueueSelection = EVERYTHING) -> Counter[str]:
    return Counter(row.queue for row in engine.claim(ME, queues, limit))


def drained(engine: Engine, limit: int, queues: QueueSelection = EVERYTHING) -> Iterator[str]:
    while claimed := engine.claim(ME, queues, limit):
        yield from (row.id for row in claimed)


def looks_at_heads(seen: list[tuple[str, object]]) -> list[str]:
    return [sql for sql, _ in seen if "RECURSIVE ready" in sql or "head AS" in sql]


def test_equally_urgent_queues_give_the_same_share(engine, database):
    if database == "mysql":
        pytest.skip("its rows come cheaper from one queue after the other")
    put(engine, *(new_task(name) for _ in range(9) for name in NAMES))
    assert queues_of(engine, 36) == dict.fromkeys(NAMES, 3)
    assert queues_of(engine, 60) == dict.fromkeys(NAMES, 5)
    assert queues_of(engine, 60) == dict.fromkeys(NAMES, 1)


def test_with_fewer_rows_to_claim_than_queues_those_that_waited_longest_give(engine, database):
    if database == "mysql":
        pytest.skip("its rows come cheaper from one queue after the other")
    names = NAMES[::-1]
    put(engine, *(new_task(name) for _ in range(2) for name in names))
    assert queues_of(engine, 5) == dict.fromkeys(names[:5], 1)
    assert queues_of(engine, 5) == dict.fromkeys(names[5:10], 1)


def test_what_one_queue_lacks_of_its_share_another_one_gives(engine, remembers):
    put(engine, *(new_task("many") for _ in range(50)), *(new_task(name) for name in NAMES))
    assert queues_of(engine, 40).total() == 40
    assert queues_of(engine, 40).total() == 22
    assert queues_of(engine, 40).total() == 0


@pytest.mark.parametrize("limit", [2, 7, 24])
def test_priorities_come_first_whatever_is_remembered(engine, remembers, limit):
    rows = [
        new_task(name, priority)
        for number, name in enumerate(NAMES)
        for priority in [5] * (number % 5) + [0] * 4 + [-5] * (number % 3)
    ]
    put(engine, *rows)
    priorities = {row.id: row.priority for row in rows}
    order = [priorities[id] for id in drained(engine, limit)]
    assert order == sorted(priorities.values(), reverse=True)


def test_preferences_come_first_whatever_is_remembered(engine, remembers):
    queues = select_queues(["high", "low"])
    put(engine, *(new_task("low") for _ in range(5)), new_task("high"))
    assert queues_of(engine, 2, queues) == {"high": 1, "low": 1}
    put(engine, *(new_task("high") for _ in range(2)))
    assert queues_of(engine, 2, queues) == {"high": 2}


def test_a_queue_with_less_of_a_priority_gives_no_lower_one_before_others(engine, remembers):
    put(engine, *(new_task("a", priority) for priority in [0, 0, 0, -5, -5, -5]))
    put(engine, *(new_task("b") for _ in range(8)))
    for _ in range(2):
        assert {row.priority for row in engine.claim(ME, EVERYTHING, 4)} == {0}


def test_what_was_of_two_priorities_is_not_remembered_as_one(engine, remembers):
    put(engine, new_task("a", 5), *(new_task("b") for _ in range(3)))
    outcomes = [outcome_of(row) for row in engine.claim(ME, EVERYTHING, 2)]
    finished, claimed = engine.finish_and_claim(outcomes, ME, EVERYTHING, 2)
    assert (len(finished), len(claimed)) == (2, 2)


def test_known_queues_are_not_asked_for_their_heads(engine, database, remembers):
    if database == "mysql":
        pytest.skip("its rows come cheaper from one queue after the other")
    put(engine, *(new_task(name) for _ in range(8) for name in NAMES))
    with statements() as seen:
        outcomes = [outcome_of(row) for row in engine.claim(ME, EVERYTHING, 24)]
    assert looks_at_heads(seen)
    with statements() as seen:
        finished, claimed = engine.finish_and_claim(outcomes, ME, EVERYTHING, 24)
    assert (len(finished), len(claimed), looks_at_heads(seen)) == (24, 24, [])


def test_a_higher_priority_in_a_known_queue_is_seen_at_once(engine, remembers):
    put(engine, *(new_task(name) for _ in range(8) for name in NAMES))
    engine.claim(ME, EVERYTHING, 24)
    (urgent,) = put(engine, new_task(NAMES[7], 50))
    assert engine.claim(ME, EVERYTHING, 24)[0].id == urgent


def test_another_queue_is_seen_when_the_known_ones_run_short(engine, database, remembers):
    if database == "mysql":
        pytest.skip("it remembers the queues' names, and asks for their heads")
    put(engine, *(new_task(name) for name in NAMES), *(new_task(NAMES[0]) for _ in range(20)))
    engine.claim(ME, EVERYTHING, 12)
    put(engine, *(new_task("other") for _ in range(5)))
    seen = queues_of(engine, 12) + queues_of(engine, 12)
    assert seen["other"] > 0


def test_what_is_known_is_so_for_a_moment(engine):
    put(engine, *(new_task(name) for _ in range(8) for name in NAMES))
    engine.claim(ME, EVERYTHING, 24)
    level = engine.levels.recall(EVERYTHING)  # type: ignore[attr-defined]
    if level is None:
        assert get_engine("default", "default").__class__.__name__ == "MySQLEngine"
        return
    engine.levels.remember(level._replace(since=level.since - KNOWN_FOR))  # type: ignore[attr-defined]
    assert engine.levels.recall(EVERYTHING) is None  # type: ignore[attr-defined]


def test_what_one_selection_knows_says_nothing_to_another(engine, remembers):
    put(engine, *(new_task(name) for _ in range(8) for name in NAMES))
    engine.claim(ME, EVERYTHING, 24)
    queues = select_queues(["q03", "q04"])
    assert queues_of(engine, 6, queues) == {"q03": 6}
