"""What a worker holds can be taken from it at any time, and every row has exactly one taker."""

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from dbtasks.engines import Claimant, Claimed, Outcome
from dbtasks.hand import Handover, LocalHand, Row
from dbtasks.pace import MOST, WORTH, Pace
from dbtasks_supervisor.hand import KEPT_BYTES, SharedHand, heard, told

pytestmark = [
    pytest.mark.once,
    # pytest's own watchdog (faulthandler_timeout) is the other thread; the children only read.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

ME = Claimant("node", "worker")
ROUNDS = 300


def batch(count: int, first: int = 0) -> list[Claimed]:
    return [claimed(first + number, number) for number in range(count)]


def claimed(number: int, attempt: int) -> Claimed:
    row: dict[str, Any] = dict.fromkeys(Claimed._fields)
    return Claimed(**row | {"id": f"{number:032x}", "attempt": attempt})


def names(rows: Sequence[Claimed]) -> tuple[Row, ...]:
    return tuple((row.id, row.attempt) for row in rows)


def outcome(number: int, value: str = "null") -> Outcome:
    return Outcome(
        id=f"{number:032x}",
        attempt=1,
        worker=ME.worker,
        status="SUCCESSFUL",
        return_value=value,
        errors="[]",
        worker_ids='["worker"]',
        failures=0,
        retry_in=None,
        retain=0.5,
    )


@pytest.fixture(params=[LocalHand, SharedHand])
def hand(request: pytest.FixtureRequest) -> Iterator[LocalHand | SharedHand]:
    hand = request.param()
    yield hand
    if isinstance(hand, SharedHand):
        hand.close()


def taken(handover: Handover | None) -> tuple[Row, ...]:
    return handover.rows if handover else ()


def test_an_outcome_that_a_database_may_find_too_large_stays_with_its_worker(hand: Any) -> None:
    assert not hand.keep(outcome(1, "1" * (KEPT_BYTES + 1)))
    assert hand.take_over(ME) is None


def test_the_first_row_is_the_workers_and_the_others_must_be_taken(hand: Any) -> None:
    hand.deal(batch(3))
    assert [hand.take() for _ in range(3)] == [True, True, False]
    assert hand.take_over(ME) is None


def test_who_comes_later_gets_the_last_rows(hand: Any) -> None:
    rows = batch(5)
    hand.deal(rows)
    assert hand.take()
    assert hand.take_over(ME) == Handover(ME, names(rows[2:]), ())
    assert not hand.take()
    assert hand.take_over(ME) is None


def test_rows_of_a_batch_before_are_never_taken(hand: Any) -> None:
    hand.deal(batch(5))
    hand.fold()
    assert hand.take_over(ME) is None
    second = batch(3, first=100)
    hand.deal(second)
    assert taken(hand.take_over(ME)) == names(second[1:])


def test_a_single_row_leaves_nothing_to_take(hand: Any) -> None:
    hand.deal(batch(4))
    hand.fold()
    hand.deal(batch(1, first=50))
    assert not hand.take()
    assert hand.take_over(ME) is None


def test_outcomes_are_handed_over_once_and_their_owner_knows(hand: Any) -> None:
    assert hand.keep(outcome(1))
    assert hand.keep(outcome(2))
    assert not hand.gave_away(0)
    assert hand.take_over(ME) == Handover(ME, (), (outcome(1), outcome(2)))
    assert hand.keep(outcome(3))
    assert [hand.gave_away(position) for position in range(3)] == [True, True, False]
    assert hand.take_over(ME) == Handover(ME, (), (outcome(3),))
    hand.clear()
    assert not hand.gave_away(0)
    assert hand.take_over(ME) is None


def test_it_asks_to_be_watched_once_while_there_is_something_to_take(hand: Any) -> None:
    asked: list[None] = []
    hand._watch = hand.watch = lambda: asked.append(None)
    hand.deal(batch(1))
    assert hand.is_empty()
    assert not asked
    hand.deal(batch(2))
    assert len(asked) == 1
    assert not hand.is_empty()
    hand.deal(batch(2))
    assert len(asked) == 1
    hand.fold()
    assert hand.is_empty()
    hand.deal(batch(2))
    assert len(asked) == 2


def test_an_outcome_without_room_is_refused_and_harms_no_other() -> None:
    hand = SharedHand()
    assert hand.keep(outcome(1))
    assert not hand.keep(outcome(2, "x" * KEPT_BYTES))
    assert hand.keep(outcome(3))
    assert hand.unwritten(again=True) == (outcome(1), outcome(3))
    hand.close()


def test_what_was_kept_outlives_the_worker() -> None:
    hand = SharedHand()
    pid = os.fork()
    if pid == 0:
        hand.deal(batch(3))
        for number in range(3):
            hand.keep(outcome(number, f'"{number}"'))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert hand.unwritten(again=True) == tuple(outcome(n, f'"{n}"') for n in range(3))
    hand.close()


def test_a_worker_alone_holds_one_row() -> None:
    hand = SharedHand()
    assert hand.room > 1
    hand.leave_alone()
    assert hand.room == 1
    hand.leave_alone(False)
    assert hand.room > 1
    hand.close()


def test_a_handover_survives_its_message() -> None:
    handover = Handover(ME, (("a" * 32, 1), ("b" * 32, 7)), (outcome(1), outcome(2, '"é"')))
    assert heard({"kind": "settle", **told(handover)}) == handover


def test_a_row_is_started_by_the_worker_or_taken_by_another_process_never_both() -> None:
    """Round after round: a child takes rows one by one while the parent takes what is left."""
    hand = SharedHand()
    starts_read, starts_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            number = 0
            while os.read(go_read, 1) == b".":
                rows = batch(40, first=number * 100)
                number += 1
                hand.deal(rows)
                started = 1
                while started < len(rows) and hand.take():
                    started += 1
                    os.sched_yield()
                hand.fold()
                os.write(starts_write, bytes([started]))
        finally:
            os._exit(0)
    both = 0
    deadline = time.monotonic() + 30
    for number in itertools.count():
        if number >= ROUNDS and (both or time.monotonic() > deadline):
            break
        os.write(go_write, b".")
        rows: tuple[Row, ...] = ()
        for _ in range(random.randrange(400)):
            rows = taken(hand.take_over(ME))
            if rows:
                break
        (started,) = os.read(starts_read, 1)
        assert not taken(hand.take_over(ME))
        expected = names(batch(40, first=number * 100))
        assert len(rows) + started <= 40
        assert rows in ((), expected[40 - len(rows) :])
        both += bool(rows) and started < 40
    os.write(go_write, b"!")
    os.waitpid(pid, 0)
    for descriptor in (starts_read, starts_write, go_read, go_write):
        os.close(descriptor)
    hand.close()
    assert both  # the race took place


def test_a_row_is_started_by_the_worker_or_taken_by_another_thread_never_both() -> None:
    hand = LocalHand()
    for _ in range(ROUNDS):
        rows = batch(40)
        hand.deal(rows)
        stolen: list[Row] = []
        thief = threading.Thread(target=lambda s=stolen: s.extend(taken(hand.take_over(ME))))
        thief.start()
        started = 1
        while started < len(rows) and hand.take():
            started += 1
        thief.join()
        assert started + len(stolen) == 40
        assert tuple(stolen) == names(rows)[started:]


# Pace


def ramp(pace: Pace, seconds: float, batches: int) -> list[int]:
    limits = []
    for _ in range(batches):
        limits.append(pace.limit)
        for _ in range(pace.limit):
            pace.ran("path", seconds)
        pace.over(pace.limit, pace.limit, seconds * pace.limit)
    return limits


def test_the_pace_grows_to_what_fits_into_a_moment() -> None:
    limits = ramp(Pace(), 0.0004, 12)
    assert limits[0] == 1
    assert limits == sorted(limits)
    assert WORTH / 0.0004 * 0.5 < limits[-1] <= WORTH / 0.0004
    assert max(ramp(Pace(), 0.000001, 12)) == MOST
    assert max(ramp(Pace(3), 0.000001, 12)) == 3
    assert max(ramp(Pace(), 0.01, 12)) == 4
    assert set(ramp(Pace(), 0.1, 12)) == {1}


def test_the_pace_falls_back_when_a_batch_is_cut_short() -> None:
    pace = Pace()
    ramp(pace, 0.0004, 10)
    pace.over(pace.limit, 3, 0.001)
    assert pace.limit == 3


def test_a_task_that_is_not_known_may_take_for_ever() -> None:
    pace = Pace()
    assert pace.foresees("path") == float("inf")
    pace.ran("path", 0.001)
    assert pace.foresees("path") == 0.001
    pace.ran("path", 1.0)
    assert pace.foresees("path") > WORTH
