"""Tell systemd how the service is doing: sd_notify(3), sd_watchdog_enabled(3), without a library.

Nothing here blocks or raises; without ``NOTIFY_SOCKET`` everything is a no-op.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_ADDRESS = "NOTIFY_SOCKET"
_LIMIT = "WATCHDOG_USEC"
_WATCHED = "WATCHDOG_PID"
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)


class Notifier:
    """The line to the service manager.

    ``watchdog_interval`` is how often to call ``watchdog()``, in seconds: half of the unit's
    ``WatchdogSec=``, as sd_watchdog_enabled(3) advises; None when nobody is watching.
    Every method returns whether the message was delivered; False may be repeated later.
    """

    def __init__(self, address: str | None = None, watchdog_usec: int | None = None) -> None:
        self._address = address
        self._watchdog_usec = watchdog_usec if address else None
        # Opened once: running out of descriptors must not silence the watchdog.
        self._socket = _datagram_socket() if address else None

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Take the variables of sd_notify(3) out of ``environ``, so that children lack them."""
        address = environ.pop(_ADDRESS, "")
        limit = environ.pop(_LIMIT, "")
        watched = environ.pop(_WATCHED, "")
        supported = address.startswith(("/", "@")) and len(address) > 1
        watchdog_usec = int(limit) if limit.isdecimal() and int(limit) > 0 else None
        if watched and watched != str(os.getpid()):
            watchdog_usec = None  # the limit is for another process
        return cls(address if supported else None, watchdog_usec)

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of ``watchdog()``, or None."""
        return self._watchdog_usec / 2_000_000 if self._watchdog_usec else None

    def environ(self) -> dict[str, str]:
        """Return the variables for ``os.execve``, so that the next image finds systemd again."""
        if self._address is None:
            return {}
        variables = {_ADDRESS: self._address}
        if self._watchdog_usec:
            variables |= {_LIMIT: str(self._watchdog_usec), _WATCHED: str(os.getpid())}
        return variables

    def ready(self, status: str) -> bool:
        """Say that the service is up, or that a reload is complete."""
        return self._send("READY=1", _status(status))

    def status(self, text: str) -> bool:
        """Show one line in ``systemctl status``."""
        return self._send(_status(text))

    def stopping(self, status: str) -> bool:
        """Say that the shutdown has begun."""
        return self._send("STOPPING=1", _status(status))

    def reloading(self) -> bool:
        """Say that a reload has begun; ``Type=notify-reload`` wants the time of it, too."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> bool:
        """Say that the event loop is alive."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for so many seconds, from now, before systemd loses patience with start or stop."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, int(seconds * 1_000_000))}")

    def close(self) -> None:
        """Close the socket; later messages are dropped."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *assignments: str) -> bool:
        if self._socket is None or self._address is None:
            return False
        address = os.fsencode(self._address)
        if address.startswith(b"@"):
            address = b"\0" + address[1:]  # the abstract namespace, unix(7)
        message = "\n".join(assignments).encode("utf-8", "replace")
        with contextlib.suppress(OSError):
            self._socket.sendto(message, _SEND_FLAGS, address)
            return True
        return False


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"  # a newline would begin another assignment


def _datagram_socket() -> socket.socket | None:
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except OSError:
        return None
    sock.setblocking(False)
    return sock
