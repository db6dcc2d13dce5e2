"""What the admin asks about the queue, so that it costs the same with millions of rows.

Nothing here counts or scans the history. Each look reads at most so many entries of one index, in
its order, and filters what it read: claimable, deferred, claimed and failed rows by the indexes
that hold nothing else, all others by the primary key, which grows with time. The last way is also
that to failed rows on MySQL and MariaDB, which have no partial indexes.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import re
import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from ..fields import in_range, nearest_utc
from .base import Engine
from .connection import marks
from .portable import PortableEngine

WINDOW = 50_000  # rows of the history that one look reads
GLANCE = 1000  # that the first one of several reads: most often these are enough
PATIENCE = 0.25  # seconds for one look after another, where the first ones found too little
CAP = 10_000  # entries of a smaller index that one look reads or counts
QUEUES_SHOWN = 50
AGES_READ = 500  # rows per queue, to find its oldest
FAILURES_READ = 500
WHOLE_ERRORS = 20_000  # characters of `errors` that are read to name an exception

# Only the columns that matter: MariaDB writes what it looked at into a table, long texts to a disk.
LOOK = """
SELECT id FROM (
    SELECT {columns} FROM dbtasks_scheduledtask{index} WHERE {source} LIMIT %s
) looked_at
WHERE backend = %s{conditions} ORDER BY {order} LIMIT %s OFFSET %s"""

# Where the rows of one state are, and in which order.
READY = (
    "backend = %s AND ready_queue >= '' {queue}ORDER BY backend, ready_queue, precedence, id",
    "ready_queue, precedence, id",
)
DUE = "backend = %s AND due_at > '{0}' AND due_at < '{1}' ORDER BY backend, due_at"
DEFERRED = (DUE.format("1000-01-01", "9000-01-01"), "due_at, id")
PAUSED = (DUE.format("8999-12-31", "9999-12-31"), "due_at, id")  # see engines.operations.PARKED
RUNNING = ("claim_node > '' ORDER BY claim_node, claimed_by", "claim_node, claimed_by, id")

LAST_READ = "SELECT id FROM dbtasks_scheduledtask{index} WHERE {source} LIMIT 1 OFFSET %s"

# A literal: SQLite does not find out that a parameter's value is what the index is about.
IS_FAILED = "dbtasks_scheduledtask.status = 'FAILED'"

# One queue's depth; its oldest among the first, and the head of its lowest priority, which waits
# longest where others always overtake it.
QUEUE_DEPTH = """
SELECT %s AS name,
    (SELECT COUNT(*) FROM (
        SELECT precedence FROM dbtasks_scheduledtask{index} WHERE backend = %s AND ready_queue = %s
        ORDER BY precedence LIMIT %s) counted) AS depth,
    (SELECT {first} FROM (
        SELECT COALESCE(run_after, enqueued_at) AS since FROM dbtasks_scheduledtask{index}
        WHERE backend = %s AND ready_queue = %s ORDER BY precedence, id LIMIT %s) first) AS first,
    (SELECT {last} FROM dbtasks_scheduledtask{index}
     WHERE backend = %s AND ready_queue = %s AND precedence = (
        SELECT MAX(precedence) FROM dbtasks_scheduledtask{index}
        WHERE backend = %s AND ready_queue = %s)
     ORDER BY precedence, id LIMIT 1) AS last"""

COUNTS = """
SELECT {now},
    (SELECT COUNT(*) FROM (SELECT due_at FROM dbtasks_scheduledtask{due}
        WHERE {deferred} LIMIT %s) deferred),
    (SELECT COUNT(*) FROM (SELECT due_at FROM dbtasks_scheduledtask{due}
        WHERE {paused} LIMIT %s) paused),
    (SELECT COUNT(*) FROM (SELECT claim_node, backend FROM dbtasks_scheduledtask{claimed}
        WHERE claim_node > '' ORDER BY claim_node LIMIT %s) running WHERE backend = %s),
    (SELECT due_at FROM dbtasks_scheduledtask{due} WHERE {deferred} LIMIT 1)"""

ERRORS = """
SELECT id, task_path,
    CASE WHEN LENGTH(errors) <= %s THEN errors ELSE SUBSTR(errors, 1, 1000) END
FROM dbtasks_scheduledtask WHERE id IN ({ids})"""

# Texts of a row, each cut where it is giant, with its whole length in characters.
TEXTS = """
SELECT LENGTH(args), SUBSTR(args, 1, %s), LENGTH(kwargs), SUBSTR(kwargs, 1, %s),
    LENGTH(return_value), SUBSTR(return_value, 1, %s), LENGTH(errors), SUBSTR(errors, 1, %s)
FROM dbtasks_scheduledtask WHERE id = %s"""

EXCEPTION = re.compile(r'"exception_class_path":\s*"([^"\\]{1,500})"')
NOW = ("ready", "deferred", "paused", "running")  # each has an index of its own
STATES = (*NOW, "failed", "successful")


@dataclasses.dataclass(frozen=True)
class Look:
    """What is looked for; empty texts match everything. `state`: one of STATES, or "".

    `worker` is part of a worker's id, `text` part of a task's path, `error` the exception of a
    failed task. `before`: only ids below it, the place where an earlier look ended; `offset` is
    that of the looks at ready, deferred and running rows.
    """

    state: str = ""
    queue: str = ""
    task: str = ""
    text: str = ""
    worker: str = ""
    error: str = ""
    since: datetime.datetime | None = None
    before: uuid.UUID | None = None
    offset: int = 0

    @property
    def in_history(self) -> bool:
        """Whether the primary key is read, and not the small index of one state."""
        return self.state not in NOW


@dataclasses.dataclass(frozen=True)
class Found:
    """Ids in order. There may be `more`; `reached` is the id down to which the history was read."""

    ids: list[uuid.UUID]
    more: bool = False
    reached: uuid.UUID | None = None


class Failure(NamedTuple):
    """A failed task and the class path of its last exception ("" if it is not known)."""

    id: uuid.UUID
    task_path: str
    exception: str


@dataclasses.dataclass(frozen=True)
class Depth:
    """A queue with claimable rows: how many (at most CAP + 1), and since when the oldest waits."""

    queue: str
    ready: int
    oldest: datetime.datetime | None


@dataclasses.dataclass(frozen=True)
class Load:
    """Rows that are not claimable, each counted up to CAP + 1, and when the next one is due."""

    now: datetime.datetime
    deferred: int
    paused: int
    running: int
    next_due: datetime.datetime | None


class Text(NamedTuple):
    """The beginning of a column, and how many characters it has in all."""

    length: int
    start: str

    @property
    def cut(self) -> bool:
        return self.length > len(self.start)


class Looks:
    """The looks, through the engine of one backend."""

    def __init__(self, engine: Engine, window: int = WINDOW) -> None:
        self.engine = cast(PortableEngine, engine)
        self.backend = engine.backend
        self.window = window

    # Tasks

    def find(self, look: Look, limit: int) -> Found:
        """Up to `limit` rows: newest first, or in the order in which they run or are due."""
        if look.error:
            return self.find_failures(look, limit)
        return self.find_in_history(look, limit) if look.in_history else self.find_now(look, limit)

    def find_patiently(self, look: Look, limit: int, patience: float = PATIENCE) -> Found:
        """`find`, and further back in the history until it has enough or has looked for so long."""
        deadline = time.monotonic() + patience
        ids: list[uuid.UUID] = []
        glance = Looks(cast(Engine, self.engine), min(GLANCE, self.window))
        for view in itertools.chain([glance], itertools.repeat(self)):
            found = view.find(look, limit - len(ids))
            ids += found.ids
            found = dataclasses.replace(found, ids=ids)
            enough = len(ids) >= limit or not found.more or not look.in_history
            if enough or (view is self and time.monotonic() > deadline):
                break
            look = dataclasses.replace(look, before=found.reached)
        return found

    def find_in_history(self, look: Look, limit: int) -> Found:
        index, source, parameters = self.history_source(look)
        conditions, values = self.conditions(look)
        rows = self.engine.rows(
            LOOK,
            [*parameters, self.window_of(look), self.backend, *values, limit + 1, 0],
            index=self.index(index),
            source=source,
            columns=columns_of(look, "id DESC"),
            conditions=conditions,
            order="id DESC",
        )
        ids = [as_uuid(id) for (id,) in rows]
        if len(ids) > limit:
            return Found(ids[:limit], True, ids[limit - 1])
        last = [*parameters, self.window_of(look) - 1]
        return Found(ids, *self.last_read(self.index(index), source, last))

    def last_read(
        self, index: str, source: str, parameters: Sequence[Any]
    ) -> tuple[bool, uuid.UUID | None]:
        """Whether the window ended before the history did, and with which id."""
        rows = self.engine.rows(LAST_READ, parameters, index=index, source=source)
        return (True, as_uuid(rows[0][0])) if rows else (False, None)

    def find_now(self, look: Look, limit: int) -> Found:
        index, source, parameters, order = self.source_of_state(look)
        conditions, values = self.conditions(look)
        # Where the index filters and orders alone, nothing is read that is not shown.
        alone = look.state == "ready" and not (look.task or look.text or look.worker)
        most = min(CAP, look.offset + limit + 1) if alone else CAP
        rows = self.engine.rows(
            LOOK,
            [*parameters, most, self.backend, *values, limit + 1, look.offset],
            index=self.index(index),
            source=source,
            columns=columns_of(look, order),
            conditions=conditions,
            order=order,
        )
        return Found([as_uuid(id) for (id,) in rows[:limit]], len(rows) > limit)

    def find_failures(self, look: Look, limit: int) -> Found:
        failures, found = self.failures(look)
        ids = [failure.id for failure in failures if failure.exception == look.error]
        if len(ids) > limit:
            return Found(ids[:limit], True, ids[limit - 1])
        return dataclasses.replace(found, ids=ids)

    def failures(self, look: Look) -> tuple[list[Failure], Found]:
        """The newest failed tasks with their exceptions, and how far back that is."""
        look = dataclasses.replace(look, state="failed", error="")
        found = self.find_in_history(look, FAILURES_READ)
        return self.exceptions(found.ids), found

    def exceptions(self, ids: Sequence[uuid.UUID]) -> list[Failure]:
        if not ids:
            return []
        rows = self.engine.rows(ERRORS, [WHOLE_ERRORS, *(id.hex for id in ids)], ids=marks(ids))
        by_id = {as_uuid(id): (str(path), last_exception(errors)) for id, path, errors in rows}
        return [Failure(id, *by_id[id]) for id in ids if id in by_id]

    def texts(self, id: uuid.UUID, characters: int, errors: int) -> dict[str, Text | None]:
        """The giant columns of one row, cut after so many characters; {} if there is no row."""
        rows = self.engine.rows(TEXTS, [characters] * 3 + [errors, id.hex])
        if not rows:
            return {}
        (row,) = rows
        pairs = zip(row[::2], row[1::2], strict=True)
        names = ("args", "kwargs", "return_value", "errors")
        return {
            name: None if start is None else Text(int(length), str(start))
            for name, (length, start) in zip(names, pairs, strict=True)
        }

    # The queue

    def load(self) -> Load:
        deferred_at, paused_at = DEFERRED[0], PAUSED[0]
        parameters = [self.backend, CAP + 1] * 2 + [CAP + 1, self.backend, self.backend]
        ((now, deferred, paused, running, due),) = self.engine.rows(
            COUNTS,
            parameters,
            due=self.index("dbtasks_due"),
            claimed=self.index("dbtasks_claimed"),
            deferred=deferred_at,
            paused=paused_at,
        )
        connection = self.engine.connection
        return Load(
            nearest_utc(now, connection),
            int(deferred),
            int(paused),
            int(running),
            None if due is None else nearest_utc(due, connection),
        )

    def depths(self) -> list[Depth]:
        """Of each queue with claimable rows, up to QUEUES_SHOWN of them; by name."""
        names = sorted(self.engine.ready_queues())[:QUEUES_SHOWN]
        if not names:
            return []
        parameters: list[Any] = []
        for name in names:
            here = [self.backend, name]
            parameters += [name, *here, CAP + 1, *here, AGES_READ, *here, *here]
        one = QUEUE_DEPTH.format(
            index=self.index("dbtasks_claim"),
            first=in_range("MIN(since)", self.vendor),
            last=in_range("COALESCE(run_after, enqueued_at)", self.vendor),
        )
        text = " UNION ALL ".join([f"SELECT * FROM ({one}) one"] * len(names))
        connection = self.engine.connection
        found = []
        for name, depth, *times in self.engine.rows("{depths}", parameters, depths=text):
            waits = [nearest_utc(time, connection) for time in times if time is not None]
            found.append(Depth(str(name), int(depth), min(waits, default=None)))
        return found

    # How the statements are put together

    @property
    def vendor(self) -> str:
        return str(self.engine.connection.vendor)

    def index(self, name: str) -> str:
        """For MariaDB, which would rather sort a table that looks small to it."""
        return f" FORCE INDEX ({name})" if self.vendor == "mysql" else ""

    def knows_failed(self, look: Look) -> bool:
        """Whether the failed rows have an index that holds nothing else."""
        return look.state == "failed" and self.vendor != "mysql"

    def window_of(self, look: Look) -> int:
        """How many rows one look reads at most; those of a small index lie far apart."""
        return min(CAP, self.window) if self.knows_failed(look) else self.window

    def history_source(self, look: Look) -> tuple[str, str, list[Any]]:
        conditions: list[str] = []
        parameters: list[Any] = []
        index = "PRIMARY"
        if self.knows_failed(look):
            index = "dbtasks_failed"
            conditions += ["backend = %s", IS_FAILED]
            parameters.append(self.backend)
        if look.before is not None:
            conditions.append("id < %s")
            parameters.append(look.before.hex)
        if look.since is not None:
            conditions.append("id >= %s")
            parameters.append(lowest_id(look.since).hex)
        return index, f"{' AND '.join(conditions) or '1 = 1'} ORDER BY id DESC", parameters

    def source_of_state(self, look: Look) -> tuple[str, str, list[Any], str]:
        """The index that has the rows of that state, how it is read, and in which order."""
        match look.state:
            case "ready":
                source, order = READY
                named = "AND ready_queue = %s " if look.queue else ""
                parameters = [self.backend, look.queue] if look.queue else [self.backend]
                return "dbtasks_claim", source.format(queue=named), parameters, order
            case "deferred":
                return "dbtasks_due", DEFERRED[0], [self.backend], DEFERRED[1]
            case "paused":
                return "dbtasks_due", PAUSED[0], [self.backend], PAUSED[1]
        return "dbtasks_claimed", RUNNING[0], [], RUNNING[1]

    def conditions(self, look: Look) -> tuple[str, list[Any]]:
        position = "strpos" if self.vendor == "postgresql" else "instr"
        conditions, values = "", []
        for condition, value in (
            ("status = %s", look.state.upper() if look.in_history else ""),
            ("queue = %s", look.queue),
            ("task_path = %s", look.task),
            (f"{position}(task_path, %s) > 0", look.text),
        ):
            if value:
                conditions += f" AND {condition}"
                values.append(value)
        if look.worker:
            parts = (f"{position}({column}, %s) > 0" for column in ("claimed_by", "worker_ids"))
            conditions += f" AND ({' OR '.join(parts)})"
            values += [look.worker] * 2
        return conditions, values


def columns_of(look: Look, order: str) -> str:
    """What a look must read to filter and to sort."""
    wanted = ["id", "backend", *(word for word in re.findall(r"\w+", order) if word != "DESC")]
    wanted += ["status"] * look.in_history + ["queue"] * bool(look.queue)
    wanted += ["task_path"] * bool(look.task or look.text)
    wanted += ["claimed_by", "worker_ids"] * bool(look.worker)
    return ", ".join(dict.fromkeys(wanted))


def lowest_id(moment: datetime.datetime) -> uuid.UUID:
    """Below every UUIDv7 that was made from `moment` (aware) on."""
    milliseconds = max(0, int(moment.timestamp() * 1000)) & 0xFFFF_FFFF_FFFF
    return uuid.UUID(int=milliseconds << 80)


def last_exception(errors: str) -> str:
    """The class path of the last entry in a JSON text that may be cut."""
    found = EXCEPTION.findall(errors)
    return found[-1] if found else ""


def as_uuid(value: Any) -> uuid.UUID:
    """An id as the driver returned it."""
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))
