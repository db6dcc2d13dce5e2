"""Waiting for a key while something is shown: nothing that is typed appears on the screen."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator

Wait = Callable[[float], str]


@contextlib.contextmanager
def keys() -> Iterator[Wait]:
    """What waits for so many seconds, or until a key is pressed, and says which ("" for none).

    Without a terminal to read from, and where there is no termios, it only waits. Ctrl-C interrupts
    as ever; the terminal is at the end what it was before.
    """
    try:
        import termios
        import tty
    except ImportError:
        yield without_keys
        return
    try:
        descriptor = sys.stdin.fileno()
        before = termios.tcgetattr(descriptor)
    except (OSError, ValueError, AttributeError, termios.error):
        yield without_keys
        return
    try:
        tty.setcbreak(descriptor)
        yield lambda seconds: next_key(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def without_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def next_key(descriptor: int, seconds: float) -> str:
    readable, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 1).decode("ascii", "replace") if readable else ""
