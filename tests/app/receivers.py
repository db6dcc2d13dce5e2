"""Receivers of dbtasks' signals that write what they are told to a file, and may misbehave."""

import json
import os
import signal as signals_of_the_system
import time
from typing import Any

from dbtasks import signals


def connect(path: str, behaviour: str) -> None:
    """`behaviour`: "", or what each receiver does after writing: "raise", "exit", "hang", "die"."""
    for name, signal in signals.BY_NAME.items():
        signal.connect(receiver(name, path, behaviour), weak=False)


def receiver(name: str, path: str, behaviour: str) -> Any:
    def receive(sender: Any, signal: Any, **details: Any) -> None:
        told = {"signal": name, "pid": os.getpid(), "sender": sender.__name__, **details}
        with open(path, "a") as file:
            file.write(json.dumps(told, default=repr) + "\n")
        if behaviour == "raise":
            raise RuntimeError("a broken receiver")
        if behaviour == "exit":
            raise SystemExit(7)
        if behaviour == "die" and name == "worker_started":
            os.kill(os.getpid(), signals_of_the_system.SIGKILL)
        if behaviour == "hang" and name in ("task_rescued", "node_degraded"):
            time.sleep(3600)

    return receive
