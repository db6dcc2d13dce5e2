"""The configuration of one run, resolved once: flag, then environment, ``OPTIONS``, default.

Nothing here imports Django, so that ``--healthcheck`` stays cheap.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .options import SETTINGS, Setting

CHILDREN = "_DBTASKS_CHILDREN"  # what an exec in place takes over, as JSON in the environment
#: Unix time in seconds. What was saved later may be newer than the code that this process has.
STARTED = time.time()
_SETTINGS = {setting.name: setting for setting in SETTINGS}
_DEFAULT = "default"


class ConfigError(Exception):
    """A setting that cannot be used; the message names where it came from and what is allowed."""


class BootError(Exception):
    """The application cannot be loaded; the message says why."""


@dataclass(frozen=True)
class RunConfig:
    """How to run; times in seconds, memory in bytes, None where a thing is off or undecided."""

    workers: int
    worker_id: str
    backend: str
    delay: float | None  # None: the database's own
    periodic: bool
    queues: tuple[str, ...]
    exclude_queues: tuple[str, ...]
    mode: Literal["process", "thread"]
    grace: float
    max_tasks: int | None
    max_memory: int | None
    burst: bool
    reload: bool | None  # None: decided by DEBUG
    pidfile: Path | None
    status_file: Path | None
    metrics_port: tuple[str, int] | None  # host ("" for all) and port
    check: bool
    healthcheck: bool
    log_format: Literal["text", "json"]
    #: Setting name to where its value came from: a flag, a variable, an OPTIONS key or "default".
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def is_explicit(self, name: str) -> bool:
        """Whether somebody asked for this value, rather than the default having been taken."""
        return self.sources.get(name, _DEFAULT) != _DEFAULT


class _Found(NamedTuple):
    raw: object
    source: str
    inverted: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag; an absent one is None in the namespace, and no value is checked yet."""
    for setting in SETTINGS:
        if setting.flags and setting.switch:
            parser.add_argument(
                *setting.flags,
                dest=setting.name,
                action="store_const",
                const=True,
                help=setting.help_text,
            )
        elif setting.flags:
            parser.add_argument(
                *setting.flags,
                dest=setting.name,
                metavar=setting.metavar,
                help=setting.help_text,
            )
        for flag in setting.off_flags:
            shares = bool(setting.flags)
            parser.add_argument(
                flag,
                dest=setting.name if shares else _dest(flag),
                action="store_const",
                const=not shares,
                help=f"the opposite of {setting.flags[0]}" if shares else setting.help_text,
            )


def resolve(
    namespace: argparse.Namespace, environ: Mapping[str, str], options: Mapping[str, object]
) -> RunConfig:
    """Return the configuration; ``options`` is the backend's ``OPTIONS``, whose other keys pass.

    Raises ``ConfigError``.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        values[setting.name], sources[setting.name] = _value(setting, namespace, environ, options)
    config = RunConfig(**values, sources=sources)
    _check_queues(config)
    if config.healthcheck and config.status_file is None:
        raise ConfigError(
            "--healthcheck: give the file to read with --status-file FILE or DBTASKS_STATUS_FILE, "
            "the same as that of the node"
        )
    return config


def backend_alias(namespace: argparse.Namespace, environ: Mapping[str, str]) -> str:
    """Return the backend's alias, which the caller needs to find ``OPTIONS`` before ``resolve``.

    Raises ``ConfigError``.
    """
    alias, _ = _value(_SETTINGS["backend"], namespace, environ, {})
    return str(alias)


def _value(
    setting: Setting,
    namespace: argparse.Namespace,
    environ: Mapping[str, str],
    options: Mapping[str, object],
) -> tuple[Any, str]:
    found = _from_flag(setting, namespace) or _from_environ(setting, environ)
    if found is None and setting.in_options and options.get(setting.name) is not None:
        found = _Found(options[setting.name], f"OPTIONS[{setting.name!r}]")
    if found is None:
        return setting.default(), _DEFAULT
    return _parse(setting, found), found.source


def _from_flag(setting: Setting, namespace: argparse.Namespace) -> _Found | None:
    value = getattr(namespace, setting.name, None)
    if setting.flags and value is not None:
        off = setting.off_flags and value is False
        return _Found(value, setting.off_flags[0] if off else _long(setting.flags))
    for flag in setting.off_flags:
        value = getattr(namespace, _dest(flag), None)
        # False is what call_command(no_periodic=False) means: not asked for.
        if not setting.flags and value is not None and value is not False:
            return _Found(value, flag, inverted=True)
    return None


def _from_environ(setting: Setting, environ: Mapping[str, str]) -> _Found | None:
    """Find the setting's variable; an empty one is as good as none, as in ``DBTASKS_WORKERS=``."""
    found = [
        _Found(environ[variable], variable, inverted)
        for variable, inverted in setting.variables
        if environ.get(variable, "").strip()
    ]
    if len({_parse(setting, one) for one in found}) > 1:
        names = " and ".join(f"{one.source}={one.raw}" for one in found)
        raise ConfigError(f"{names} contradict each other: set only one of them")
    return found[0] if found else None


def _parse(setting: Setting, found: _Found) -> Any:
    try:
        value = setting.parse(found.raw)
    except ValueError as error:
        raise ConfigError(f"{found.source}: {found.raw!r} is not allowed; use {error}") from None
    return not value if found.inverted else value


def _check_queues(config: RunConfig) -> None:
    if all(_is_covered(queue, config.exclude_queues) for queue in config.queues):
        queues, excluded = (config.sources[name] for name in ("queues", "exclude_queues"))
        raise ConfigError(
            f"{excluded}: {','.join(config.exclude_queues)!r} leaves nothing of "
            f"{','.join(config.queues)!r} ({queues}); exclude fewer queues"
        )


def _is_covered(queue: str, excluded: tuple[str, ...]) -> bool:
    """Whether every queue that the pattern ``queue`` matches is excluded."""
    return any(
        queue == pattern or (pattern.endswith("*") and queue.startswith(pattern[:-1]))
        for pattern in excluded
    )


def _long(flags: tuple[str, ...]) -> str:
    return next(flag for flag in flags if flag.startswith("--"))


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
