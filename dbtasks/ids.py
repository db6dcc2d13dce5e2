"""UUID version 7: ids that grow with time, so that the primary key grows at its end."""

from __future__ import annotations

import os
import threading
import time
import uuid

_STEP_NS = 245  # one tick of the 12-bit fraction of a millisecond (1 ms / 4096, rounded up)
_lock = threading.Lock()
_last_ns = 0


def uuid7() -> uuid.UUID:
    """A UUIDv7, strictly increasing within this process (RFC 9562, section 6.2, method 3)."""
    return uuid.UUID(int=_next())


def new_id() -> str:
    """A UUIDv7 as the engines want it: 32 hexadecimal digits, without the price of a UUID."""
    return f"{_next():032x}"


def _next() -> int:
    global _last_ns
    with _lock:
        _last_ns = now_ns = max(time.time_ns(), _last_ns + _STEP_NS)
    milliseconds, rest = divmod(now_ns, 1_000_000)
    fraction = rest * 4096 // 1_000_000
    random_bits = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80
    return value | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random_bits


def parse_id(value: object) -> uuid.UUID | None:
    """The UUID that a caller typed, or None where it is none."""
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return None


def dashed(hexadecimal: str) -> str:
    """An id as users see it, from the 32 hexadecimal digits that the engines use."""
    h = hexadecimal
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def random_suffix() -> str:
    """Eight hex digits that make a node or a worker unique among its namesakes."""
    return os.urandom(4).hex()
