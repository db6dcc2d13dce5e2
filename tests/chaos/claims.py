"""The claims of a task, how each ended, and which fault explains that it ended so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .attack import Fault
from .history import FINISHED, Change, Row
from .settings import LEASE

SLACK = 2.0  # seconds that a busy machine may take over anything
# Seconds after an outage in which the server may still carry out what nobody waits for any more,
# and in which workers look for such claims under their name.
LATE = 10.0
ENDINGS = (
    "kill supervisor",
    "kill node",
    "kill all nodes",
    "deploy (TERM)",
    "interrupt (INT, INT)",
    "quit (QUIT)",
)


class Ended(Enum):
    FINISHED = "finished"
    RAISED = "its task raised and is tried again"
    CRASHED = "its worker died"
    RELEASED = "given back uncounted"
    OPEN = "never"


@dataclass
class Claim:
    """From the change to RUNNING to the next one. `reason`: the error of a crash."""

    worker: str
    began: float
    ended: float = float("inf")
    how: Ended = Ended.OPEN
    reason: str = ""

    @property
    def slot(self) -> tuple[str, str]:
        """(node, role) of the worker: "node1-2.abcdef" is ("node1", "2")."""
        node, _, role = self.worker.partition(".")[0].rpartition("-")
        return node, role


def claims_of(row: Row, changes: Iterable[Change]) -> list[Claim]:
    """In their order. Each failure and each crash has its own entry in the row's errors."""
    claims: list[Claim] = []
    failures = crashes = 0
    for change in changes:
        if change.old_status == "READY" and change.new_status == "RUNNING":
            claims.append(Claim(change.new_worker or "", change.at))
        elif change.old_status == "RUNNING" and claims:
            claim = claims[-1]
            claim.ended = change.at
            if change.crashes > crashes:
                claim.how = Ended.CRASHED
                claim.reason = error_at(row, failures + crashes)
            elif change.new_status in FINISHED:
                claim.how = Ended.FINISHED
            else:
                claim.how = Ended.RAISED if change.failures > failures else Ended.RELEASED
            failures, crashes = change.failures, change.crashes
    return claims


def error_at(row: Row, index: int) -> str:
    return row.errors[index]["traceback"] if index < len(row.errors) else ""


def lost_its_lease(claim: Claim) -> bool:
    return claim.how is Ended.CRASHED and "did not renew its lease" in claim.reason


def explained(claim: Claim, faults: Sequence[Fault], kind: str) -> bool:
    """Whether what we did, or the task itself, is why this claim did not bring a result."""
    match claim.how:
        case Ended.FINISHED | Ended.RAISED:
            return True
        case Ended.CRASHED if "exited with status 7" in claim.reason:
            return kind == "poison"
        case Ended.CRASHED if "hard time limit" in claim.reason:
            return kind == "overrun"
        case Ended.CRASHED if "did not renew its lease" in claim.reason:
            return any(keeps_from_renewing(fault, claim, faults) for fault in faults)
        case Ended.CRASHED if "supervisor was killed" in claim.reason:
            return any(ends_node(fault, claim, faults) for fault in faults)
        case Ended.CRASHED:
            return any(kills(fault, claim) for fault in faults)
        case Ended.RELEASED:
            return any(
                kills(fault, claim) or ends_node(fault, claim, faults) or is_outage(fault, claim)
                for fault in faults
            )
    return False


def overlaps(fault: Fault, began: float, ended: float) -> bool:
    return fault.began <= ended and (fault.ended is None or fault.ended >= began)


def kills(fault: Fault, claim: Claim) -> bool:
    """SIGKILL to that very worker; the server may carry out its claim a moment later."""
    if fault.kind in ("kill node", "kill all nodes"):
        return claim.slot[0] in fault.nodes and overlaps(fault, claim.began - LATE, claim.ended)
    return (
        fault.kind.startswith("kill worker")
        and claim.slot in fault.roles
        and overlaps(fault, claim.began - LATE, claim.ended)
    )


def ends_node(fault: Fault, claim: Claim, faults: Sequence[Fault]) -> bool:
    """The node was told to leave, or lost its supervisor. A reload takes nothing from a task.

    After an outage the server may carry out a claim that was sent long before.
    """
    sent_before = LATE if any(is_outage(other, claim) for other in faults) else SLACK
    return (
        fault.kind in ENDINGS
        and claim.slot[0] in fault.nodes
        and overlaps(fault, claim.began - sent_before, claim.ended)
    )


def keeps_from_renewing(fault: Fault, claim: Claim, faults: Sequence[Fault]) -> bool:
    """The scheduler could not renew the lease, for at least a part of the lease's length."""
    window = (claim.ended - LEASE - SLACK, claim.ended)
    if claim.slot[0] not in fault.nodes:
        return False
    if fault.kind in ("stop scheduler", "stop node", "kill scheduler"):
        return overlaps(fault, *window)
    return ends_node(fault, claim, faults)


def is_outage(fault: Fault, claim: Claim) -> bool:
    return not fault.nodes and overlaps(fault, claim.began - LATE, claim.ended)
