"""The machine and the versions that figures belong to; no name and no path of it."""

import datetime
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

WRITES = 100


def describe() -> list[tuple[str, str]]:
    """What it is and what it says, in the order in which one reads it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        ("Date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")),
        ("Processor", f"{processor()}, {os.cpu_count()} CPUs"),
        ("Memory", f"{memory:.0f} GiB"),
        ("A write that reaches the disk", f"{fsync_milliseconds():.2f} ms (median of {WRITES})"),
        ("System", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("Django", importlib.metadata.version("Django")),
        ("Load at the start", f"{os.getloadavg()[0]:.1f} processes"),
    ]


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """Its model, where the system tells."""
    try:
        text = path.read_text()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return " ".join(models[0].split()) if models else platform.machine()


def fsync_milliseconds() -> float:
    """What a commit waits for at least: a small write and its fsync, in the temporary folder."""
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(WRITES):
            began = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)
