"""Which workers still live, for a scheduler that has outlived the parent that knew it.

Each worker holds a lock of its own on a file without a name (fcntl(2), advisory record locks). The
kernel drops it with the process, however that ends, and no child process of a task inherits it.
"""

from __future__ import annotations

import fcntl
import tempfile


class Roll:
    """Made before the fork. Raises OSError if no temporary file can be made."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="dbtasks-roll-")  # noqa: SIM115  outlives us

    def answer(self) -> None:
        """In a worker, before its first claim."""
        fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def is_anybody_there(self) -> bool:
        """In a process that never answers."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.lockf(self._file, fcntl.LOCK_UN)
        return False
