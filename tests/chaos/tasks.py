"""Every kind of task that the attack runs. Each execution is journalled and returns its nonce."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from typing import Any

from django.db import Error as DatabaseError
from django.db import transaction

from dbtasks.tasks import task

from .journal import journalled
from .models import Entry

BIG = 60_000  # characters
OUTLIVES = 5  # seconds that a task's child process runs if nobody ends it


class Refused(Exception):
    """What the tasks raise that are to raise."""


@task(takes_context=True)
def noop(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        return nonce


@task(takes_context=True)
def sleep(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        time.sleep(0.001 + 0.199 * share(token))
        return nonce


@task(takes_context=True)
def compute(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        deadline = time.monotonic() + 0.1 * share(token)
        while time.monotonic() < deadline:
            hashlib.sha256(bytes(10_000)).digest()
        return nonce


# What it does in the database can fail in an outage: that is worth another attempt.
@task(takes_context=True, max_attempts=1000, backoff=[0.1, 0.3])
def write_entry(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        with transaction.atomic():
            Entry.objects.update_or_create(token=token, defaults={"nonce": nonce})
        return nonce


@task(takes_context=True, max_attempts=1000, backoff=[0.1, 0.3], retry_for=[DatabaseError])
def write_and_refuse(context: Any, token: str) -> str:
    """Its entry must never be seen."""
    with journalled(context) as nonce, transaction.atomic():
        Entry.objects.update_or_create(token=token, defaults={"nonce": nonce})
        raise Refused("after the write")


@task(takes_context=True, max_attempts=20, backoff=[0.05, 0.2])
def fail_twice(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        refusals = [e for e in context.task_result.errors if "Refused" in e.exception_class_path]
        if len(refusals) < 2:
            raise Refused("try again")
        return nonce


@task(takes_context=True, max_attempts=3, backoff=[0.05, 0.1])
def fail_always(context: Any, token: str) -> str:
    with journalled(context):
        raise Refused("each time")


@task(takes_context=True)
def fail_once(context: Any, token: str) -> str:
    with journalled(context):
        raise Refused("there is one attempt")


@task(takes_context=True)
def return_much(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        return nonce + " " + "x" * int(BIG * share(token))


@task(takes_context=True, max_crashes=1)
def poison(context: Any, token: str) -> str:
    with journalled(context):
        os._exit(7)


@task(takes_context=True, timeout=0.3)
def overrun(context: Any, token: str) -> str:
    with journalled(context) as nonce:
        time.sleep(30)
        return nonce


@task(takes_context=True)
def start_process(context: Any, token: str) -> str:
    """What it starts must not outlive its worker, wherever that is killed."""
    with journalled(context) as nonce:
        with subprocess.Popen(["sleep", str(OUTLIVES)]) as process:
            time.sleep(0.05 * share(token))
            process.kill()
        return nonce


@task(takes_context=True)
def tick(context: Any, name: str) -> str:
    with journalled(context) as nonce:
        return nonce


def share(token: str) -> float:
    """A number from 0 to 1 that is always the same for a token."""
    return int(token[:4], 16) / 0xFFFF
