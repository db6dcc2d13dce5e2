"""What must hold whatever was killed. Each check yields what is broken; none asks the database."""

from __future__ import annotations

import datetime
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from .calls import Fate
from .claims import Claim, Ended, claims_of, explained, lost_its_lease
from .history import FINISHED, Execution, History, Row
from .kinds import KINDS

SECOND = datetime.timedelta(seconds=1)
CLOCKS = 0.005  # seconds between the database's clock and the journal's
WRITERS = ("write_entry", "write_and_refuse")


class Broken(NamedTuple):
    promise: str
    what: str
    task_id: str = ""


def broken_promises(history: History) -> Iterator[Broken]:
    """All of them, the gravest first."""
    yield from no_task_is_lost(history)
    for row in history.rows.values():
        yield from it_ends_as_it_must(row)
        yield from its_result_is_written_once(row, history)
        yield from each_run_has_a_claim(row, history)
        yield from each_rerun_has_a_cause(row, history)
        yield from no_two_run_at_once(row, history)
    yield from entries_exist_if_successful(history)
    yield from occurrences_are_exact(history)


def no_task_is_lost(history: History) -> Iterator[Broken]:
    promise = "a committed task has one row, one that was rolled back has none"
    rows = Counter(row.token for row in history.rows.values() if not row.periodic)
    for call in history.calls:
        found = rows.pop(call.token, 0)
        allowed = {Fate.COMMITTED: (1,), Fate.DOUBTFUL: (0, 1), Fate.ROLLED_BACK: (0,)}
        if found not in allowed[call.fate]:
            yield Broken(promise, f"{call.kind} {call.token}: {found} rows, {call.fate.value}")
    for token in rows:
        yield Broken(promise, f"a row of a task that nobody enqueued: {token}")


def it_ends_as_it_must(row: Row) -> Iterator[Broken]:
    """SUCCESSFUL, or FAILED for the reason for which its kind fails."""
    promise = "every task ends, and fails only for its own reason"
    kind = KINDS.get(row.kind)
    wanted = "SUCCESSFUL" if kind is None or kind.error is None else "FAILED"
    if row.status != wanted or row.claimed_by:
        held = f", claimed by {row.claimed_by}" if row.claimed_by else ""
        yield Broken(promise, f"{row.kind} is {row.status}{held}, not {wanted}", row.id)
    elif kind is not None and kind.error is not None:
        errors = [error["exception_class_path"] for error in row.errors]
        if not errors or errors[-1] != kind.error:
            yield Broken(promise, f"{row.kind} failed with {errors}, not {kind.error}", row.id)
        elif kind.times is not None and errors.count(kind.error) != kind.times:
            text = f"{row.kind} failed {errors.count(kind.error)} times so, not {kind.times}"
            yield Broken(promise, text, row.id)


def its_result_is_written_once(row: Row, history: History) -> Iterator[Broken]:
    promise = "a result is written once, by the worker that has the claim and ran the task"
    changes = history.changes.get(row.id, [])
    finishes = [change for change in changes if change.new_status in FINISHED]
    if row.status in FINISHED and len(finishes) != 1:
        yield Broken(promise, f"{len(finishes)} changes to a finished row", row.id)
    for change in changes:
        if change.old_status in FINISHED:
            yield Broken(promise, f"a finished row was changed: {change}", row.id)
    if row.status != "SUCCESSFUL" or len(finishes) != 1:
        return
    authors = [each for each in history.executions.get(row.id, []) if each.nonce == row.nonce]
    if not authors or not authors[0].returned:
        yield Broken(promise, f"nothing that returned has the nonce {row.nonce!r}", row.id)
    elif authors[0].worker != finishes[0].old_worker:
        text = f"{authors[0].worker} returned it, but {finishes[0].old_worker} had the claim"
        yield Broken(promise, text, row.id)


def each_run_has_a_claim(row: Row, history: History) -> Iterator[Broken]:
    """A claim is run at most once, and nothing runs without one."""
    claims = Counter(claim.worker for claim in claims_of(row, history.changes.get(row.id, [])))
    runs = Counter(execution.worker for execution in history.executions.get(row.id, []))
    for worker, count in (runs - claims).items():
        text = f"{worker} ran it {runs[worker]} times with {claims[worker]} claims ({count} more)"
        yield Broken("each execution has a claim of its own", text, row.id)


def claim_of(execution: Execution, claims: list[Claim]) -> Claim | None:
    """The claim under which the task was started: that worker's latest by then."""
    before = [
        claim
        for claim in claims
        if claim.worker == execution.worker and claim.began - CLOCKS <= execution.start
    ]
    return before[-1] if before else None


def each_rerun_has_a_cause(row: Row, history: History) -> Iterator[Broken]:
    promise = "a claim without a result is explained by a fault or by the task"
    claims = claims_of(row, history.changes.get(row.id, []))
    started = [claim_of(execution, claims) for execution in history.executions.get(row.id, [])]
    for claim in claims:
        if claim.how is Ended.RELEASED and not any(claim is each for each in started):
            continue  # it waited behind a slow task, and went back without having been started
        if not explained(claim, history.faults, row.kind):
            text = f"{claim.worker}'s claim ended so: {claim.how.value} {claim.reason.strip()}"
            yield Broken(promise, text, row.id)


def no_two_run_at_once(row: Row, history: History) -> Iterator[Broken]:
    """Only one whose node lost its lease may find that another one runs its task."""
    executions = history.executions.get(row.id, [])
    claims = by_worker(claims_of(row, history.changes.get(row.id, [])))
    for earlier, later in pairwise(executions):
        if earlier.end is None or later.start >= earlier.end:
            continue
        if not any(lost_its_lease(claim) for claim in claims[earlier.worker]):
            text = f"{later.worker} began it while {earlier.worker} still ran it"
            yield Broken("nobody else runs a task that a living worker runs", text, row.id)


def by_worker(claims: list[Claim]) -> dict[str, list[Claim]]:
    found: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        found[claim.worker].append(claim)
    return found


def entries_exist_if_successful(history: History) -> Iterator[Broken]:
    promise = "what a task wrote in a transaction is there if and only if it was successful"
    for row in history.rows.values():
        wanted = row.kind == "write_entry" and row.status == "SUCCESSFUL"
        if row.kind in WRITERS and (row.token in history.entries) != wanted:
            yield Broken(promise, f"{row.kind} is {row.status}", row.id)


def occurrences_are_exact(history: History) -> Iterator[Broken]:
    promise = "a periodic task is enqueued exactly once per due time"
    owners = {row.id: row.periodic for row in history.rows.values() if row.periodic}
    seen: dict[str, list[datetime.datetime]] = defaultdict(list)
    for occurred in history.occurrences:
        seen[occurred.name].append(occurred.due)
        if owners.pop(occurred.task_id, None) != occurred.name:
            yield Broken(promise, f"{occurred.name} at {occurred.due}: no task of its own")
    for task_id, name in owners.items():
        yield Broken(promise, f"a task of {name} without an occurrence", task_id)
    for name, times in seen.items():
        for earlier, later in pairwise(sorted(times)):
            if earlier == later:
                yield Broken(promise, f"{name} at {later}: twice")
            elif name == "all" and later - earlier != SECOND:
                yield Broken(promise, f"{name}: nothing between {earlier} and {later}")
        if any(due.microsecond for due in times) or min(times) <= history.since[name]:
            yield Broken(promise, f"{name} has a due time that is none of its schedule")
        if name == "all" and min(times) - history.since[name] > SECOND:
            yield Broken(promise, f"{name}: nothing until {min(times)}")


def gaps(history: History, name: str) -> int:
    """Due times that a node was too late for; catch_up="latest" allows them."""
    times = sorted(each.due for each in history.occurrences if each.name == name)
    return sum(int((later - earlier) / SECOND) - 1 for earlier, later in pairwise(times))


def claims_by_end(history: History) -> Counter[Ended]:
    return Counter(
        claim.how
        for row in history.rows.values()
        for claim in claims_of(row, history.changes.get(row.id, []))
    )


def lost_leases(history: History) -> int:
    """Claims that another node took because it believed their node dead."""
    return sum(
        lost_its_lease(claim)
        for row in history.rows.values()
        for claim in claims_of(row, history.changes.get(row.id, []))
    )
