"""The first steps of a forked child, and its last one."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .board import Board
from .channel import Channel
from .logs import set_process_name
from .process import dump_stack_handler, set_parent_death_signal, set_title
from .signals import WORKER_DRAIN, WORKER_INTERRUPT, block_all, unblock_all

logger = logging.getLogger("dbtasks")

EXIT_OK, EXIT_CRASHED, EXIT_BOOT = 0, 1, 3

Main = Callable[[Channel, Board], int]


def fork(
    main: Main,
    board: Board,
    channels: tuple[Channel, Channel],
    *,
    title: str,
    name: str,
    heirlooms: Iterable[Any],
    parent_death: int = 0,
) -> int:
    """Forks a child that runs `main` and exits with what it returns; gives the child's pid.

    `channels`: the parent's end and the child's. `heirlooms`: open things of the parent that the
    child must close. `parent_death`: the signal for when the parent dies, 0 for none.
    Raises OSError if the system has no room for another process.
    """
    ours, theirs = channels
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    drop_connections(close=True)
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    block_all()  # a signal between fork and exec of our first steps would be handled twice
    try:
        pid = os.fork()
        if pid:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # both do it, so that neither has to wait for the other
            return pid
    finally:
        if os.getpid() == parent:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = EXIT_CRASHED
    try:
        ours.close()
        for heirloom in heirlooms:
            with contextlib.suppress(Exception):
                heirloom.close()
        settle_in(parent, title, name, parent_death)
        code = main(theirs, board)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_CRASHED
    except BaseException as error:
        with contextlib.suppress(BaseException):
            logger.critical("%s crashed", name, exc_info=error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)  # no atexit handlers, no finalizers: they belong to the parent


def settle_in(parent: int, title: str, name: str, parent_death: int) -> None:
    """Makes the copy of the parent a process of its own."""
    if parent_death:
        set_parent_death_signal(parent_death)
    if os.getppid() != parent:
        os._exit(EXIT_OK)  # it died before we could ask to be told
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if signum not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(signum, signal.SIG_DFL)
    # A terminal's Ctrl-C and hang-up are for the parent, which drains us. What a worker listens to
    # must not end it before it can: the parent says the same by message.
    for signum in (signal.SIGINT, signal.SIGHUP, WORKER_DRAIN, WORKER_INTERRUPT):
        signal.signal(signum, signal.SIG_IGN)
    drop_connections(close=False)
    random.seed()
    set_title(title)
    set_process_name(name)
    dump_stack_handler()
    gc.enable()
    unblock_all()


def drop_connections(*, close: bool) -> None:
    """No connection is ever shared. A child only forgets them: closing would say goodbye on the
    socket that the parent still has."""
    from django.db import connections

    for connection in connections.all(initialized_only=True):
        raw = connection.connection
        if raw is None:
            continue
        if close:
            with contextlib.suppress(Exception):
                connection.close()
        connection.connection = None
        connection.in_atomic_block = False
        connection.savepoint_ids = []


def use_one_connection() -> None:
    """A process with one thread needs no pool, and a pool would start threads of its own."""
    from django.db import connections

    for connection in connections.all():
        connection.settings_dict.get("OPTIONS", {}).pop("pool", None)
