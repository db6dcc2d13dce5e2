"""Waiting for a condition with a deadline: what tests do instead of sleeping."""

import time
from collections.abc import Callable

POLL_SECONDS = 0.03


def wait_until[T](condition: Callable[[], T], timeout: float = 10, message: str = "") -> T:
    """Poll ``condition`` until it returns something true, and return that.

    ``timeout`` is in seconds. Raises AssertionError with ``message`` and the time waited when it
    passes; an exception of the condition itself is not caught.
    """
    started = time.monotonic()
    while True:
        outcome = condition()
        if outcome:
            return outcome
        waited = time.monotonic() - started
        if waited >= timeout:
            described = message or getattr(condition, "__qualname__", repr(condition))
            raise AssertionError(f"waited {waited:.1f} s in vain: {described} (last: {outcome!r})")
        time.sleep(POLL_SECONDS)
