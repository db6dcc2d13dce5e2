"""The project as the supervisor runs it: loaded, checked and ready to be forked."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from django.apps import apps
from django.core import checks
from django.core.checks.registry import registry
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.utils.module_loading import autodiscover_modules

from dbtasks import metrics
from dbtasks.backend import DatabaseBackend
from dbtasks.checks import check_backend, missing_tables
from dbtasks.queues import QueueSelection, select_queues
from dbtasks.runner import database_backend

from .config import BootError, ConfigError, RunConfig, backend_alias, resolve


@dataclass(frozen=True)
class Application:
    """`backend` is checked; `argv` starts the same again."""

    backend: DatabaseBackend
    config: RunConfig
    queues: QueueSelection
    argv: tuple[str, ...]

    @property
    def reloads(self) -> bool:
        """Whether code changes are watched: as asked for, else in development only."""
        from django.conf import settings

        if self.config.reload is not None:
            return self.config.reload
        return bool(settings.DEBUG) and not self.config.burst


def load(namespace: argparse.Namespace) -> Application:
    """The application for a command line, after django.setup().

    Raises ConfigError or ImproperlyConfigured for what the user can mend in the settings or on the
    command line, and BootError where the project's code does not load.
    """
    alias = backend_alias(namespace, os.environ)
    backend = database_backend(alias)
    config = resolve(namespace, os.environ, backend.parsed.runner)
    refuse_unusable_queues(backend, config)
    if config.metrics_port is not None and not metrics.is_available():
        source = config.sources["metrics_port"]
        raise ConfigError(f"{source}: {metrics.MISSING.format(what=source)}")
    preload()
    errors = [message for message in check_backend(backend) if message.is_serious()]
    if errors:
        raise ImproperlyConfigured("\n".join(map(format_check, errors)))
    queues = select_queues(config.queues, config.exclude_queues)
    return Application(backend, config, queues, (sys.executable, *sys.orig_argv[1:]))


def refuse_unusable_queues(backend: DatabaseBackend, config: RunConfig) -> None:
    """Raises ConfigError for a pattern that matches none of the backend's QUEUES."""
    for name, patterns in (("queues", config.queues), ("exclude_queues", config.exclude_queues)):
        if patterns and (unusable := select_queues(patterns).unusable(backend.queues)):
            raise ConfigError(
                f"{config.sources[name]}: no task can use {', '.join(map(repr, unusable))}, since "
                f"TASKS[{backend.alias!r}]['QUEUES'] has only "
                f"{', '.join(map(repr, sorted(backend.queues)))}"
            )


def preload() -> None:
    """Imports each app's tasks before the first fork, so that workers share their memory."""
    try:
        autodiscover_modules("tasks")
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise BootError(f"a tasks module cannot be imported: {told}") from error


def refuse_threads() -> None:
    """A fork copies only the calling thread, and whatever locks the others hold stay locked."""
    others = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    ]
    if others:
        raise BootError(
            f"importing the project started threads ({', '.join(others)}), which do not survive "
            "a fork. Start them when they are first used, or run with --mode thread."
        )


def format_check(message: checks.CheckMessage) -> str:
    hint = f"\n    {message.hint}" if message.hint else ""
    return f"({message.id}) {message.msg}{hint}"


def print_check(application: Application, out: TextIO) -> bool:
    """What `--check` prints: all system checks, then what would run. Whether it may start."""
    backend, config = application.backend, application.config
    messages = list(project_checks(backend))
    for message in messages:
        print(f"{checks_level(message)} {format_check(message)}", file=out)
    options = backend.parsed
    print(f"node       {config.worker_id} on {socket.gethostname()}", file=out)
    print(f"backend    {backend.alias} in database {options.database!r}", file=out)
    print(f"workers    {config.workers} ({config.mode} mode)", file=out)
    print(f"queues     {application.queues}", file=out)
    found = sorted(task_paths())
    print(f"tasks      {len(found)}" + "".join(f"\n           {path}" for path in found), file=out)
    entries = options.periodic if config.periodic else ()
    print(f"periodic   {len(entries)}", file=out)
    for entry in entries:
        print(f"           {entry.name}: {entry.spec}", file=out)
    return not any(message.is_serious() for message in messages)


def project_checks(backend: DatabaseBackend) -> Iterator[checks.CheckMessage]:
    """What Django's checks and ours find, the database's too if it can be reached."""
    try:
        found = checks.run_checks()
    except DatabaseError:
        # Django asks some databases for their version to check models; W007 says that ours is away.
        others = registry.tags_available() - {checks.Tags.models}
        found = checks.run_checks(tags=sorted(others))
    for message in (*found, *missing_tables(backend)):
        if not message.is_silenced():
            yield message


def checks_level(message: checks.CheckMessage) -> str:
    if message.level >= checks.ERROR:
        return "ERROR"
    return "WARNING" if message.level >= checks.WARNING else "INFO"


def task_paths() -> list[str]:
    """The tasks in the apps' `tasks` modules."""
    from django.tasks.base import Task

    return [
        task.module_path
        for config in apps.get_app_configs()
        if (module := sys.modules.get(f"{config.name}.tasks")) is not None
        for task in vars(module).values()
        if isinstance(task, Task) and task.func.__module__ == module.__name__
    ]
