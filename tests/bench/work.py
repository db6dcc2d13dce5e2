"""What a contender does in its own environment: create its tables, and enqueue.

    python -m tests.bench.work migrate
    python -m tests.bench.work fill TASK COUNT [ARGUMENT ...]
    python -m tests.bench.work produce PATH COUNT [TASK] one `stamp` every 50 to 150 ms
    python -m tests.bench.work enqueue MODE COUNT        prints calls per second
    python -m tests.bench.work crowd PROCESSES COUNT     the same by many processes at once
    python -m tests.bench.work fleet ...                 ours only, see tests/bench/fleet.py

Which product that is, is said by BENCH_TASKS and the settings; nothing here knows it.
"""

import importlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from typing import Any

import django
from django.core.management import call_command
from django.db import connections, transaction

BATCH = 10_000
PAUSE = (0.05, 0.15)  # seconds
SEED = 7


def tasks() -> Any:
    return importlib.import_module(os.environ["BENCH_TASKS"])


def migrate() -> None:
    call_command("migrate", run_syncdb=True, interactive=False, verbosity=0)


def fill(task: str, count: str, *arguments: str) -> None:
    values = [json.loads(argument) for argument in arguments]
    for done in range(0, int(count), BATCH):
        tasks().enqueue_many(task, min(BATCH, int(count) - done), *values)


def produce(path: str, count: str, task: str = "stamp") -> None:
    """Prints, for each call, its number and when its transaction was committed."""
    pauses = random.Random(SEED)
    for number in range(int(count)):
        time.sleep(pauses.uniform(*PAUSE))
        with transaction.atomic():
            tasks().enqueue(task, path, number)
        print(number, repr(time.time()))


def enqueue(mode: str, count: str) -> None:
    tasks().enqueue("noop")  # the connection, and what is read once
    began = time.perf_counter()
    if mode == "bulk":
        tasks().enqueue_many("noop", int(count))
    elif mode == "transaction":
        with transaction.atomic():
            one_by_one(int(count))
    else:
        one_by_one(int(count))
    print(int(count) / (time.perf_counter() - began))


def one_by_one(count: int) -> None:
    module = tasks()
    for _ in range(count):
        module.enqueue("noop")


def crowd(processes: str, count: str) -> None:
    """From the moment when all are connected until the last one is done."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(int(processes) + 1)
    connections.close_all()
    members = [
        context.Process(target=member, args=(barrier, int(count))) for _ in range(int(processes))
    ]
    for process in members:
        process.start()
    barrier.wait()
    began = time.perf_counter()
    for process in members:
        process.join()
    took = time.perf_counter() - began
    if any(process.exitcode for process in members):
        raise SystemExit(f"exit codes {[process.exitcode for process in members]}")
    print(int(processes) * int(count) / took)


def member(barrier: Barrier, count: int) -> None:
    tasks().enqueue("noop")
    barrier.wait()
    one_by_one(count)


def fleet(*words: str) -> None:
    importlib.import_module("tests.bench.fleet").main(*words)


COMMANDS: dict[str, Callable[..., None]] = {
    "migrate": migrate,
    "fill": fill,
    "produce": produce,
    "enqueue": enqueue,
    "crowd": crowd,
    "fleet": fleet,
}


if __name__ == "__main__":
    django.setup()
    COMMANDS[sys.argv[1]](*sys.argv[2:])
