"""One end of the private line between the supervisor and one of its children.

A message is one JSON object on one line with the key ``kind``. Where the system has
``SOCK_SEQPACKET`` (unix(7)) the kernel keeps the messages apart; elsewhere the newline does.
Neither end ever waits for the other: what cannot be sent now is refused, and the sender decides
whether it matters.
"""

from __future__ import annotations

import errno
import json
import socket
from typing import Any

MAX_MESSAGE = 65_536  # bytes, the newline included
# More than the kernel queues for one socket, so a flood cannot keep the reader in receive().
_MAX_READS = 1024
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)
# macOS has the constant, but not for AF_UNIX.
_NO_SUCH_SOCKET = {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE}

Message = dict[str, Any]


class Channel:
    """One end of a socket pair, non-blocking in both directions; not safe for threads."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._incoming = b""
        self._skipping = False  # inside a line that was too long to keep
        self._outgoing = b""  # the rest of a line that a stream socket took in part
        self._closed = False

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return two connected ends; each process closes the one that it does not use.

        Raises ``OSError`` when the process has no descriptors left.
        """
        first, second = _socketpair()
        return cls(first), cls(second)

    @property
    def closed(self) -> bool:
        """True after end of file: the peer is gone and all that it sent has been received."""
        return self._closed

    def fileno(self) -> int:
        """Return the descriptor for a selector, or -1 after ``close()``."""
        return self._socket.fileno()

    def send(self, kind: str, **fields: Any) -> bool:
        """Send one message without waiting; return whether it was accepted.

        False: the peer's buffer is full, the peer is gone, or the message is longer than
        ``MAX_MESSAGE`` bytes. Raises ``TypeError`` when a field is not JSON.
        """
        line = json.dumps({"kind": kind, **fields}, separators=(",", ":")).encode() + b"\n"
        if len(line) > MAX_MESSAGE or not self._flush():
            return False
        try:
            sent = self._socket.send(line, _SEND_FLAGS)
        except OSError:
            return False
        self._outgoing = line[sent:]  # only a stream socket ever takes a part
        return True

    def receive(self) -> list[Message]:
        """Return the messages that are there now, oldest first; malformed ones are dropped."""
        self._flush()
        messages: list[Message] = []
        for _ in range(_MAX_READS):
            try:
                data = self._socket.recv(MAX_MESSAGE)
            except ConnectionResetError:
                # The peer left without reading all; what it sent is still queued behind the error.
                continue
            except BlockingIOError:
                break
            except OSError:
                self._closed = True
                break
            if not data:
                self._closed = True
                break
            messages += self._decode(data)
        return messages

    def close(self) -> None:
        """Close this process's descriptor; copies in other processes stay open."""
        self._closed = True
        self._socket.close()

    def _flush(self) -> bool:
        """Send what is left of an earlier line; return whether the socket is free for a new one."""
        if self._outgoing:
            try:
                self._outgoing = self._outgoing[self._socket.send(self._outgoing, _SEND_FLAGS) :]
            except OSError:
                return False
        return not self._outgoing

    def _decode(self, data: bytes) -> list[Message]:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        if self._skipping and lines:
            lines, self._skipping = lines[1:], False
        if len(self._incoming) >= MAX_MESSAGE:
            self._incoming, self._skipping = b"", True
        return [message for line in lines if (message := _parse(line)) is not None]


def _parse(line: bytes) -> Message | None:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(message, dict) and isinstance(message.get("kind"), str):
        return message
    return None


def _socketpair() -> tuple[socket.socket, socket.socket]:
    packets = getattr(socket, "SOCK_SEQPACKET", None)
    if packets is not None:
        try:
            return socket.socketpair(socket.AF_UNIX, packets)
        except OSError as error:
            if error.errno not in _NO_SUCH_SOCKET:
                raise
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
