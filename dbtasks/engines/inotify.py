"""inotify(7): the kernel tells when a file was written, by any process of this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

IN_MODIFY = 0x2
EVENTS_AT_ONCE = 64 * 1024  # bytes


class FileWatch:
    """Becomes readable when one of the files was written.

    Raises OSError where the system has no inotify, or has no more of it for this user.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        try:
            import ctypes  # not every Python has it

            libc = ctypes.CDLL(None, use_errno=True)
            init, self._add = libc.inotify_init1, libc.inotify_add_watch
        except (ImportError, AttributeError):
            raise OSError("this system has no inotify") from None
        self._descriptor = _checked(init(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            for path in paths:
                _checked(self._add(self._descriptor, os.fsencode(path), IN_MODIFY))
        except OSError:
            self.close()
            raise

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bool:
        """Whether a file was written since the last call."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._descriptor, EVENTS_AT_ONCE))
        return False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
