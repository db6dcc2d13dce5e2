"""The hand of a worker process (see dbtasks.hand), shared with its parent without a lock.

A pipe holds one token for each row that has not been started: the worker must read one before it
starts a row, and the parent reads whatever is left to take those rows away. The kernel decides who
got each one. Whoever takes k tokens at the end has the last k rows of the batch; a token's byte is
its batch's number, so that tokens of a later batch are not taken for those of an earlier one.

Which rows a batch has, and the outcomes that are not written yet, are in shared memory. So they
survive the worker too: what it had done when it was killed is written in its place.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import marshal
import mmap
import os
import struct
import termios
from collections.abc import Callable, Sequence
from typing import Any, Final

from dbtasks.engines import Claimant, Claimed, Outcome
from dbtasks.hand import Handover, Row

from .channel import Message

ROOM = 1000  # rows in a batch; their tokens fit into any pipe
KEPT_BYTES = 24 * 1024  # of outcomes; they must fit into one message to the scheduler
_ROW = struct.Struct("=16sI")  # id, attempt
_LENGTH = struct.Struct("=I")
# Words of 8 bytes at the beginning; each is one aligned store, written after what it announces.
_WATCHED: Final = 0
_BATCH: Final = 1  # number << 32 | rows
_KEPT: Final = 2  # generation << 32 | outcomes
_GIVEN: Final = 3  # the same, as far as the parent has taken them
_ALONE: Final = 4
_CANCELLED: Final = 5  # when the task began that is to end, monotonic seconds
_ROWS_AT = 64
_BATCH_BYTES = ROOM * _ROW.size  # twice: the parent may still read the rows of the batch before
_KEPT_AT = _ROWS_AT + 2 * _BATCH_BYTES
_SIZE = _KEPT_AT + KEPT_BYTES


class SharedHand:
    """Made by the parent before the fork. The worker calls what dbtasks.hand.Hand has.

    `watch`, set by the worker, is called when there is something to take and nobody looks.
    Raises OSError if the process has no descriptors left.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _SIZE)  # anonymous and shared
        whole = memoryview(self._page)
        self._words = whole[:_ROWS_AT].cast("Q")
        self._times = whole[:_ROWS_AT].cast("d")
        whole.release()
        self._tokens, self._mint = os.pipe()
        for descriptor in (self._tokens, self._mint):
            os.set_blocking(descriptor, False)
        self.watch: Callable[[], object] = lambda: None
        self._number = 0
        self._generation = 0
        self._count = self._used = 0
        self._closed = False

    # The worker's side

    @property
    def room(self) -> int:
        return 1 if self._words[_ALONE] else ROOM

    def deal(self, rows: Sequence[Claimed]) -> None:
        count = len(rows)
        if count < 2:
            return
        self._number += 1
        at = self._rows_at(self._number)
        packed = b"".join(_ROW.pack(bytes.fromhex(row.id), row.attempt) for row in rows)
        self._page[at : at + len(packed)] = packed
        self._words[_BATCH] = self._number << 32 | count
        os.write(self._mint, bytes([self._number & 0xFF]) * (count - 1))
        if not self._words[_WATCHED]:
            self.watch()

    def take(self) -> bool:
        try:
            return bool(os.read(self._tokens, 1))
        except BlockingIOError:
            return False

    def fold(self) -> None:
        self._take_tokens()

    def keep(self, outcome: Outcome) -> bool:
        record = marshal.dumps(tuple(outcome))
        end = self._used + _LENGTH.size + len(record)
        if end > KEPT_BYTES:
            return False
        at = _KEPT_AT + self._used
        self._page[at : _KEPT_AT + end] = _LENGTH.pack(len(record)) + record
        self._used = end
        self._count += 1
        self._words[_KEPT] = self._generation << 32 | self._count
        return True

    def clear(self) -> None:
        self._generation += 1
        self._count = self._used = 0
        self._words[_KEPT] = self._generation << 32

    def gave_away(self, position: int) -> bool:
        generation, count = divmod(self._words[_GIVEN], 1 << 32)
        return generation == self._generation and position < count

    def is_cancelled(self, began: float) -> bool:
        """Whether the task that began then is to end (see Board.begin)."""
        return self._times[_CANCELLED] == began

    # The parent's side

    def cancel(self, began: float) -> None:
        """The task that began then is to end, and no other."""
        self._times[_CANCELLED] = began

    def is_empty(self) -> bool:
        """Whether there is nothing to take; from then on `watch` tells when that changes."""
        self._words[_WATCHED] = 0
        empty = not self.holds_outcomes and not self._has_tokens()
        self._words[_WATCHED] = not empty
        return empty

    def leave_alone(self, alone: bool = True) -> None:
        """Nobody will take anything from now on: the worker holds one row at a time."""
        self._words[_ALONE] = alone

    def take_over(self, who: Claimant) -> Handover | None:
        """All that is left, or None if that is nothing."""
        rows = self._take_rows()
        outcomes = self.unwritten(again=False)
        return Handover(who, rows, outcomes) if rows or outcomes else None

    @property
    def holds_outcomes(self) -> bool:
        """Whether anything is not written that only the worker and we know."""
        return bool(self._words[_KEPT] & 0xFFFFFFFF)

    def unwritten(self, *, again: bool) -> tuple[Outcome, ...]:
        """The outcomes that are not written; `again`: also those that were taken before."""
        generation, count = divmod(self._words[_KEPT], 1 << 32)
        kept = self._page[_KEPT_AT:]
        given_generation, given = divmod(self._words[_GIVEN], 1 << 32)
        first = given if generation == given_generation and not again else 0
        if self._words[_KEPT] >> 32 != generation or first >= count:
            return ()
        self._words[_GIVEN] = generation << 32 | count
        return tuple(_records(kept, count)[first:])

    def close(self) -> None:
        """Forget it in this process."""
        if not self._closed:
            self._closed = True
            self._words.release()
            self._times.release()
            self._page.close()
            for descriptor in (self._tokens, self._mint):
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    # Inside

    def _rows_at(self, number: int) -> int:
        return _ROWS_AT + (number & 1) * _BATCH_BYTES

    def _take_tokens(self) -> bytes:
        try:
            return os.read(self._tokens, mmap.PAGESIZE)
        except BlockingIOError:
            return b""

    def _has_tokens(self) -> bool:
        return bool(_waiting_bytes(self._tokens))

    def _take_rows(self) -> tuple[Row, ...]:
        """The rows whose tokens are left. If the worker has gone on, it gives them back itself."""
        tokens = self._take_tokens()
        batch = self._words[_BATCH]
        number, count = divmod(batch, 1 << 32)
        if not tokens or tokens[-1] != number & 0xFF:
            return ()
        at = self._rows_at(number)
        packed = self._page[at : at + count * _ROW.size]
        if self._words[_BATCH] != batch:
            return ()
        rows = [(id.hex(), attempt) for id, attempt in _ROW.iter_unpack(packed)]
        return tuple(rows[-len(tokens) :])


def _records(kept: bytes, count: int) -> list[Outcome]:
    outcomes, at = [], 0
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(kept, at)
        at += _LENGTH.size
        outcomes.append(Outcome(*marshal.loads(kept[at : at + length])))
        at += length
    return outcomes


def _waiting_bytes(descriptor: int) -> int:
    (waiting,) = struct.unpack("=i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))
    return int(waiting)


def told(handover: Handover) -> dict[str, Any]:
    """A handover as the fields of a message."""
    outcomes = marshal.dumps([tuple(outcome) for outcome in handover.outcomes])
    return {
        "node": handover.who.node,
        "worker": handover.who.worker,
        "rows": handover.rows,
        "outcomes": base64.b64encode(outcomes).decode("ascii"),
    }


def heard(message: Message) -> Handover:
    """The handover that a message tells."""
    outcomes = marshal.loads(base64.b64decode(message["outcomes"]))
    return Handover(
        Claimant(message["node"], message["worker"]),
        tuple((id, attempt) for id, attempt in message["rows"]),
        tuple(Outcome(*outcome) for outcome in outcomes),
    )
