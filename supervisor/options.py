"""Every setting of a run, in one table: its flag, its variable, its help, its default.

The command line, the environment and the documentation are all made from ``SETTINGS``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from . import values
from .process import usable_cpus

MAX_WORKERS = 1024


@dataclass(frozen=True)
class Setting:
    """One setting. ``name`` is the field of ``RunConfig``.

    ``flags`` take a value, or none if ``switch`` is set; ``off_flags`` are switches for False.
    ``in_options``: ``TASKS[...]["OPTIONS"]`` may have it, too.
    """

    name: str
    help: str
    parse: values.Parser
    flags: tuple[str, ...] = ()
    off_flags: tuple[str, ...] = ()
    default: Callable[[], object] = lambda: None
    shown_default: str = ""
    metavar: str | None = None
    switch: bool = False
    in_options: bool = False

    @property
    def variables(self) -> tuple[tuple[str, bool], ...]:
        """The environment variables, each with whether its value is to be inverted."""
        long_flags = [(flag, False) for flag in self.flags] + [(f, True) for f in self.off_flags]
        return tuple((_variable(f), inverted) for f, inverted in long_flags if f.startswith("--"))

    @property
    def help_text(self) -> str:
        """The help with the default and the environment variable, for argparse."""
        default = f"default: {self.shown_default}; " if self.shown_default else ""
        variables = ", ".join(variable for variable, _ in self.variables)
        return f"{self.help} ({default}env: {variables})".replace("%", "%%")


def _variable(flag: str) -> str:
    return "DBTASKS_" + flag.removeprefix("--").replace("-", "_").upper()


def _default_workers() -> int:
    return min(usable_cpus(), MAX_WORKERS)


def _default_name() -> str:
    fit = "".join(filter(values.fits_name, socket.gethostname()))
    return fit[: values.MAX_NAME] or "localhost"


def _default_mode() -> str:
    return "process" if hasattr(os, "fork") else "thread"


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "workers",
        f"worker processes (or threads), 1 to {MAX_WORKERS}",
        values.integer(1, MAX_WORKERS),
        flags=("-w", "--workers"),
        default=_default_workers,
        shown_default="one per usable CPU",
        in_options=True,
    ),
    Setting(
        "worker_id",
        "this node's name; its workers are NAME-1, NAME-2, …",
        values.name,
        flags=("-i", "--worker-id"),
        default=_default_name,
        shown_default="the host's name",
        metavar="NAME",
    ),
    Setting(
        "backend",
        "which backend of the setting TASKS to run",
        values.alias,
        flags=("--backend",),
        default=lambda: "default",
        shown_default="default",
        metavar="ALIAS",
    ),
    Setting(
        "delay",
        "seconds between looks for work when nothing woke us, 0.01 to 3600",
        values.seconds(0.01, 3600),
        flags=("--delay",),
        shown_default="what suits the database",
        metavar="SECONDS",
        in_options=True,
    ),
    Setting(
        "periodic",
        "enqueue no periodic tasks here",
        values.boolean,
        off_flags=("--no-periodic",),
        default=lambda: True,
        switch=True,
    ),
    Setting(
        "queues",
        "queues to serve, in order of preference: names, prefixes like email*, or * for all",
        values.patterns,
        flags=("--queues",),
        default=lambda: ("*",),
        shown_default="*",
        metavar="A,B",
        in_options=True,
    ),
    Setting(
        "exclude_queues",
        "queues to leave alone; same form as --queues, and stronger",
        values.patterns_or_none,
        flags=("--exclude-queues",),
        default=tuple,
        shown_default="none",
        metavar="A,B",
        in_options=True,
    ),
    Setting(
        "mode",
        "process: one process per worker; thread: all workers are threads of one process",
        values.choice("process", "thread"),
        flags=("--mode",),
        default=_default_mode,
        shown_default="process, where the system can fork",
        metavar="process|thread",
    ),
    Setting(
        "grace",
        "seconds that running tasks get to end on shutdown before they are interrupted",
        values.seconds(0),
        flags=("--grace",),
        default=lambda: 30.0,
        shown_default="30",
        metavar="SECONDS",
        in_options=True,
    ),
    Setting(
        "max_tasks",
        "replace a worker after about N tasks; 0: never",
        values.or_off(values.integer(1)),
        flags=("--max-tasks",),
        shown_default="0",
        metavar="N",
        in_options=True,
    ),
    Setting(
        "max_memory",
        "replace a worker that uses more memory of its own than this, such as 512M; 0: never",
        values.or_off(values.memory),
        flags=("--max-memory",),
        shown_default="0",
        metavar="SIZE",
        in_options=True,
    ),
    Setting(
        "burst",
        "run until nothing is ready, then exit",
        values.boolean,
        flags=("--burst",),
        default=lambda: False,
        switch=True,
    ),
    Setting(
        "reload",
        "restart on code changes, for development",
        values.boolean,
        flags=("--reload",),
        off_flags=("--no-reload",),
        shown_default="on under DEBUG",
        switch=True,
    ),
    Setting(
        "pidfile",
        "write the pid here, and refuse to start while another process holds the file",
        values.path,
        flags=("--pidfile",),
        metavar="FILE",
    ),
    Setting(
        "status_file",
        "write the node's status here, for --healthcheck",
        values.path,
        flags=("--status-file",),
        metavar="FILE",
    ),
    Setting(
        "metrics_port",
        "serve metrics for Prometheus on this port, or HOST:PORT (needs django-dbtasks[metrics])",
        values.or_off(values.address),
        flags=("--metrics-port",),
        shown_default="none",
        metavar="PORT",
    ),
    Setting(
        "check",
        "load everything, run the checks, print what would run, and exit",
        values.boolean,
        flags=("--check",),
        default=lambda: False,
        switch=True,
    ),
    Setting(
        "healthcheck",
        "is the node that writes --status-file well? Exit with 0 or 1",
        values.boolean,
        flags=("--healthcheck",),
        default=lambda: False,
        switch=True,
    ),
    Setting(
        "log_format",
        "how to log to stderr; naming it overrides the project's own console logging",
        values.choice("text", "json"),
        flags=("--log-format",),
        default=lambda: "text",
        shown_default="text, unless the project logs dbtasks itself",
        metavar="text|json",
    ),
)
