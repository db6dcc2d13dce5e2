"""What a child is doing, in one page of memory that it shares with its parent.

The child writes, the parent looks when it wants to and once more after the child's death. Neither
costs a system call, so a worker can say what it runs for every task without waking the parent.

The page holds two records and a counter. A write fills the record that the counter does *not*
point at and then moves the counter, one aligned 8-byte store. A SIGKILL between any two stores thus
leaves the previous record, whole. A reader accepts a record only if it carries the number that
the counter showed and its checksum is right; otherwise it looks again. The checksum is for
processors that reorder stores (ARM): there the counter can overtake the record that it announces.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAX_PATH = 200  # bytes of UTF-8
_ID_LENGTH = 32
# Enough for any reader that gets the processor at all; the bound keeps the parent from spinning.
_MAX_LOOKS = 100


class State(IntEnum):
    """What a child is doing, as it says itself."""

    STARTING = 0
    IDLE = 1
    BUSY = 2  # a task runs
    WRITING = 3  # a task is over; what came of it is not in the database yet
    WAITING = 4  # for the database
    LOOKING = 5  # for the last time before it is idle; a wake-up will be noticed


@dataclass(frozen=True, slots=True)
class BoardView:
    """One consistent reading of a board; times are ``time.monotonic()`` seconds."""

    state: State
    ticked: float  # the last sign of life
    task_id: str  # 32 hexadecimal digits: runs, or is over but not written yet; or ""
    attempt: int
    task_path: str
    started: float  # 0.0 when no task runs
    deadline: float  # 0.0 when there is none
    done: int  # tasks ended, the failed ones included
    failed: int

    @property
    def running(self) -> bool:
        """Whether a task has begun, and what came of it is not in the database yet."""
        return bool(self.task_id)

    @property
    def executing(self) -> bool:
        """Whether a task's code runs; nothing can be said of how long that may take."""
        return self.state is State.BUSY

    @property
    def asking(self) -> bool:
        """Whether it waits for the database, or between two tries to reach it."""
        return self.state in _ASKING


_ASKING = (State.WRITING, State.WAITING, State.LOOKING)

# state, attempt, done, failed, started, deadline, task id, length of the path, path
_Fields = tuple[int, int, int, int, float, float, bytes, int, bytes]
_STATE: Final = 0
_DONE: Final = 2
_FAILED: Final = 3
_STARTED: Final = 4
_ID: Final = 6
_FIELDS = struct.Struct(f"=BIQQdd{_ID_LENGTH}sH{MAX_PATH}s")
_SEAL = struct.Struct("=QI")  # number of the record, CRC-32 of the fields
_RECORD = _SEAL.size + _FIELDS.size
_SLOT = 512
_SLOTS_AT = 64
_COUNTER = 0  # in words of 8 bytes
_TICKED = 1
_NOBODY = bytes(_ID_LENGTH)
# Plain numbers: reading a member of an enumeration is the slower half of a comparison.
_BUSY, _WRITING = int(State.BUSY), int(State.WRITING)


class Board:
    """The page of one child; made by the parent before the fork, written by the child only.

    One thread writes. ``tick()`` without a state may also be called from a signal handler.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)  # anonymous and shared
        whole = memoryview(self._page)
        self._numbers = whole[:_SLOTS_AT].cast("Q")
        self._times = whole[:_SLOTS_AT].cast("d")
        whole.release()
        self._closed = False
        self._fields: _Fields = (int(State.STARTING), 0, 0, 0, 0.0, 0.0, _NOBODY, 0, b"")
        self._times[_TICKED] = time.monotonic()
        self._publish(self._fields)
        self._seen = _view(_FIELDS.pack(*self._fields), self._times[_TICKED])

    def tick(self, state: State | None = None) -> None:
        """Show a sign of life, and the state if it changed."""
        self._times[_TICKED] = time.monotonic()
        if state is not None and state != self._fields[_STATE]:
            self._publish((int(state), *self._fields[1:]))

    def begin(self, task_id: str, attempt: int, path: str, deadline: float | None) -> None:
        """Show that this attempt starts now; the state becomes BUSY.

        ``task_id`` is 32 hexadecimal digits, ``deadline`` the hard limit in monotonic seconds.
        Raises ``ValueError`` for an id of another length.
        """
        if len(task_id) != _ID_LENGTH:
            raise ValueError(f"task_id={task_id!r}: must be 32 hexadecimal digits without dashes")
        now = time.monotonic()
        fields = self._fields
        encoded = path.encode("utf-8", "replace")[:MAX_PATH]
        self._times[_TICKED] = now
        self._publish(
            (
                _BUSY,
                attempt,
                fields[_DONE],
                fields[_FAILED],
                now,
                deadline or 0.0,
                task_id.encode("ascii"),
                len(encoded),
                encoded,
            )
        )

    def limit(self, deadline: float) -> None:
        """Show the hard limit of the task that runs, in monotonic seconds."""
        fields = self._fields
        self._publish((*fields[:5], deadline, *fields[6:]))

    @property
    def began(self) -> float:
        """When the task began that runs (monotonic seconds); for the child itself."""
        return self._fields[_STARTED]

    def end(self, failed: bool, settled: bool = False) -> None:
        """Count the task, which is over. Unless what came of it is safe it stays the last one."""
        fields = self._fields
        done, failures = fields[_DONE] + 1, fields[_FAILED] + failed
        self._times[_TICKED] = time.monotonic()
        if settled:
            self._publish((_WRITING, 0, done, failures, 0.0, 0.0, _NOBODY, 0, b""))
            return
        self._publish((_WRITING, fields[1], done, failures, fields[4], 0.0, *fields[6:]))

    def settle(self) -> None:
        """Show that what came of the task is in the database."""
        fields = self._fields
        if fields[_ID] != _NOBODY:
            done, failures = fields[_DONE], fields[_FAILED]
            self._publish((fields[_STATE], 0, done, failures, 0.0, 0.0, _NOBODY, 0, b""))

    def read(self) -> BoardView:
        """Return what the child last published; of a closed board, what was last seen."""
        if self._closed:
            return self._seen
        for _ in range(_MAX_LOOKS):
            number = self._numbers[_COUNTER]
            ticked = self._times[_TICKED]
            at = _slot_at(number)
            record = self._page[at : at + _RECORD]
            fields = record[_SEAL.size :]
            if _SEAL.unpack_from(record) == (number, zlib.crc32(fields)):
                self._seen = _view(fields, ticked)
                break
        return self._seen

    def close(self) -> None:
        """Unmap the page in this process."""
        if self._closed:
            return
        self.read()
        self._closed = True
        self._numbers.release()
        self._times.release()
        self._page.close()

    def _publish(self, fields: _Fields) -> None:
        number = self._numbers[_COUNTER] + 1
        at = _slot_at(number)
        packed = _FIELDS.pack(*fields)
        self._page[at : at + _RECORD] = _SEAL.pack(number, zlib.crc32(packed)) + packed
        self._numbers[_COUNTER] = number
        self._fields = fields


def _slot_at(number: int) -> int:
    return _SLOTS_AT + _SLOT * (number & 1)


def _view(packed: bytes, ticked: float) -> BoardView:
    state, attempt, done, failed, started, deadline, task_id, length, path = _FIELDS.unpack(packed)
    return BoardView(
        state=State(state),
        ticked=ticked,
        task_id=task_id.rstrip(b"\0").decode("ascii"),
        attempt=attempt,
        task_path=path[:length].decode("utf-8", "ignore"),  # the cut may split a character
        started=started,
        deadline=deadline,
        done=done,
        failed=failed,
    )
