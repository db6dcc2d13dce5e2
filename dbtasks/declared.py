"""What each option, signal and exit code means, in words: the source of docs/reference/.

`make reference` writes the pages from here and from the code that parses the values.
"""

from __future__ import annotations

from typing import NamedTuple


class Declared(NamedTuple):
    """`takes` and `default` as a user writes them."""

    takes: str
    default: str
    meaning: str


UNDECLARED = Declared("", "", "")
DURATION = '`"1w2d3h4m5s"`, seconds or a `timedelta`'

OPTIONS = {
    "immediate": Declared(
        "`True`, `False`", "`False`", "Run tasks inside `enqueue()`; no runner is needed."
    ),
    "signals": Declared(
        "`True`, `False`",
        "`True`",
        "Send Django's `task_enqueued`, `task_started` and `task_finished`.",
    ),
    "notify": Declared("`True`, `False`", "`True`", "Wake runners by `NOTIFY` on PostgreSQL."),
    "database": Declared("an alias in `DATABASES`", '`"default"`', "Where the queue's tables are."),
    "heartbeat": Declared(DURATION, "10 s", "How often a node renews its lease."),
    "worker_timeout": Declared(
        DURATION,
        "30 s",
        "How long a lease holds; at least twice the heartbeat. After it other nodes rescue.",
    ),
    "prefetch": Declared(
        '`"auto"`, 1 to 1000',
        '`"auto"`',
        "How many tasks a worker claims at most at once; `1` turns batches off.",
    ),
    "catch_up": Declared(
        '`"latest"`, `"all"`, `"skip"`',
        '`"latest"`',
        "What becomes of due times of periodic tasks at which no node ran.",
    ),
    "catch_up_window": Declared(DURATION, "1 day", 'How far back `catch_up="all"` reaches.'),
    "periodic": Declared(
        "a mapping from task path to schedules", "none", "The periodic tasks of this backend."
    ),
    "retain": Declared(
        f"{DURATION}, or a mapping from task path to that",
        "forever",
        'How long finished rows are kept; `"*"` in a mapping is the rest.',
    ),
    "retain_failed": Declared(DURATION, "as `retain`", "The same for rows that failed."),
    "max_attempts": Declared(
        "1 to 10000", "1", "How often a task may raise before it is `FAILED`."
    ),
    "backoff": Declared(
        '`"exponential"`, a Duration, or a list of them',
        '`"exponential"`',
        "How long to wait before the next attempt; the last of a list repeats. Exponential: 1 s, "
        "doubling, with jitter, at most an hour.",
    ),
    "retry_for": Declared(
        "exception classes or their paths", "all", "The exceptions that are worth another attempt."
    ),
    "timeout": Declared(DURATION, "none", "When `dbtasks.TaskTimeout` is raised in the task."),
    "max_crashes": Declared(
        "0 to 10000", "3", "How often a task runs again after its worker died; 0: never."
    ),
    "ack": Declared(
        '`"batched"`, `"immediate"`',
        '`"batched"`',
        "Write an outcome together with others (at most some 20 ms later), or at once.",
    ),
    "workers": Declared("1 to 1024", "one per usable CPU", "As `--workers`."),
    "queues": Declared("a list of patterns", "all", "As `--queues`."),
    "exclude_queues": Declared("a list of patterns", "none", "As `--exclude-queues`."),
    "delay": Declared("seconds", "what suits the database", "As `--delay`."),
    "grace": Declared("seconds", "30", "As `--grace`."),
    "max_tasks": Declared("a number", "never", "As `--max-tasks`."),
    "max_memory": Declared('a size such as `"512M"`', "never", "As `--max-memory`."),
}

# By the name of the constant in dbtasks_supervisor.signals.
SIGNALS = {
    "DRAIN": "Drain: running tasks end, no others start. After the grace period tasks are "
    "interrupted, 5 s later killed; their rows go back, uncounted.",
    "INTERRUPT": "Drain; a second one interrupts the tasks, a third kills.",
    "KILL_NOW": "Kill the workers now; their rows go back.",
    "RELOAD": "Reload: the new code is checked in a fresh process first; then the same pid runs "
    "it, and workers are replaced one by one.",
    "ONE_MORE": "One worker more.",
    "ONE_LESS": "One worker less, but never the last.",
    "REOPEN_LOGS": "Open the log files again, after they were rotated.",
    "DUMP_STACKS": "Write what every process is doing to stderr.",
}

# By the name of the constant in dbtasks_supervisor.cli.
EXIT_CODES = {
    "EXIT_OK": "It was told to stop and did, or there was nothing more to do (`--burst`).",
    "EXIT_INTERNAL": "An error of dbtasks itself; or not well, with `--healthcheck`.",
    "EXIT_USAGE": "A flag, a variable, a setting or `--check` says that it cannot run like this.",
    "EXIT_BOOT": "The project's code does not load.",
    "EXIT_ALREADY_RUNNING": "Another process holds the `--pidfile`.",
    "EXIT_GAVE_UP": "No worker stayed alive for 300 s.",
}

# Fields of records in the log about a task.
LOG_FIELDS = {
    "task_id": "The id of the result, a UUID.",
    "task_path": "The dotted path of the task.",
    "queue": "Its queue.",
    "worker_id": "Who ran it.",
    "attempt": "Which attempt it was, from 1.",
    "duration_ms": "How long it ran, in milliseconds.",
}
