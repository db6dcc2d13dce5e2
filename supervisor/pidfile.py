"""The pid file: one supervisor per file, whatever happened to the previous one.

The lock, not the number in the file, says that somebody is running. It is a record lock (fcntl(2))
and not flock(2) on purpose: a forked worker does not inherit it, so a worker that outlives a killed
supervisor cannot keep the next one from starting, and it survives an exec in place.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import MutableMapping
from pathlib import Path

from .config import ConfigError

_INHERITED = "_DBTASKS_PIDFILE_FD"


class AlreadyRunning(Exception):
    """Another live process holds the pid file; ``pid`` is 0 if it has not written it yet."""

    def __init__(self, pid: int, path: Path) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"--pidfile {path}: {holder} holds it already; "
            "stop that one, or give this one another --pidfile"
        )
        self.pid = pid
        self.path = path


class Pidfile:
    """The file at ``path``; not thread-safe, one object per process and path.

    No other code of the process may open and close the file while it is held: closing any
    descriptor of a file gives up the process's record locks on it (fcntl(2)).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._fd = -1
        self._owner = 0

    def acquire(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Lock the file and write our pid into it, taking over a stale one.

        After an exec in place, the descriptor named by ``environ`` is adopted.
        Raises ``AlreadyRunning``, and ``ConfigError`` when the file cannot be written.
        """
        inherited = environ.pop(_INHERITED, "")
        try:
            self._fd = self._adopt(inherited) if inherited else -1
            while self._fd < 0:
                self._fd = self._open_and_lock()
            self._write_pid()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"--pidfile {self.path}: cannot be written ({error.strerror or error}); "
                "give a file in a directory that this user can write"
            ) from error
        self._owner = os.getpid()

    def environ(self) -> dict[str, str]:
        """Let the descriptor survive ``os.execve`` and return the variables to hand to it."""
        if self._fd < 0:
            return {}
        os.set_inheritable(self._fd, True)
        return {_INHERITED: str(self._fd)}

    def release(self) -> None:
        """Remove the file and give up the lock; a forked child only closes its copy."""
        if self._fd >= 0 and self._owner == os.getpid() and self._is_in_place(self._fd):
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.close()

    def close(self) -> None:
        """Close this process's descriptor and leave the file alone."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open_and_lock(self) -> int:
        """Return a locked descriptor, or -1 when the file was removed under us."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _lock(fd):
                raise AlreadyRunning(_read_pid(fd), self.path)
            if self._is_in_place(fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return -1

    def _adopt(self, inherited: str) -> int:
        """Return the descriptor that an exec in place left us, or -1 if it is of no use."""
        if not inherited.isdecimal():
            return -1
        fd = int(inherited)
        if not self._is_in_place(fd) or not _lock(fd):
            return -1
        os.set_inheritable(fd, False)
        return fd

    def _is_in_place(self, fd: int) -> bool:
        """Whether ``fd`` is the file that the path names now, and not one removed meanwhile."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except OSError:
            return False

    def _write_pid(self) -> None:
        text = f"{os.getpid()}\n".encode()
        os.pwrite(self._fd, text, 0)
        os.ftruncate(self._fd, len(text))  # last, so that a reader never finds the file empty


def _lock(fd: int) -> bool:
    import fcntl

    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else 0
