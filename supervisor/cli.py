"""The command line: `dbtasks-supervisor`, and what `manage.py taskrunner` shares with it."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from .config import ConfigError, add_arguments, resolve
from .status import healthcheck

EXIT_OK = 0
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_BOOT = 3
EXIT_ALREADY_RUNNING = 4
EXIT_GAVE_UP = 5


def main(argv: Sequence[str] | None = None) -> int:
    """`dbtasks-supervisor`: loads Django, then runs. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="dbtasks-supervisor",
        description="Runs Django's tasks from the project's database.",
    )
    parser.add_argument(
        "--settings",
        metavar="MODULE",
        help="the settings module, e.g. myproject.settings (env: DJANGO_SETTINGS_MODULE)",
    )
    parser.add_argument("--pythonpath", metavar="DIR", help="a directory for the import path")
    parser.add_argument(
        "-v", "--verbosity", type=int, choices=range(4), default=1, help="2 logs every task"
    )
    add_arguments(parser)
    namespace = parser.parse_args(argv)
    if code := early(namespace):
        return code
    # The working directory, as for manage.py: that is where a project's modules are.
    sys.path.insert(0, namespace.pythonpath or os.getcwd())
    if namespace.settings:
        os.environ["DJANGO_SETTINGS_MODULE"] = namespace.settings
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return fail(
            EXIT_USAGE,
            "no settings: give --settings myproject.settings or set DJANGO_SETTINGS_MODULE",
        )
    return run(namespace, setup=True)


def early(namespace: argparse.Namespace) -> int | None:
    """`--healthcheck`, which needs no Django; exits with its answer. None to go on."""
    if not (namespace.healthcheck or os.environ.get("DBTASKS_HEALTHCHECK")):
        return None
    try:
        config = resolve(namespace, os.environ, {})
    except ConfigError as error:
        return fail(EXIT_USAGE, str(error))
    if not config.healthcheck or config.status_file is None:
        return None
    well, told = healthcheck(config.status_file)
    print(told)
    raise SystemExit(EXIT_OK if well else EXIT_INTERNAL)


def run(namespace: argparse.Namespace, *, setup: bool) -> int:
    """Loads the application and runs it until it is told to stop. Returns the exit code."""
    inbox = make_inbox(namespace)
    if inbox is not None:
        inbox.booting = True
    from django.core.exceptions import ImproperlyConfigured

    try:
        if setup:
            import django

            django.setup()
        from . import application as loading

        application = loading.load(namespace)
        config = application.config
        if config.check:
            return EXIT_OK if loading.print_check(application, sys.stdout) else EXIT_USAGE
        from .logs import configure_logging

        configure_logging(
            config.log_format, int(namespace.verbosity), config.is_explicit("log_format")
        )
        if config.mode == "thread":
            from .threaded import run_threaded

            return run_threaded(application, inbox)
        loading.refuse_threads()
    except (ConfigError, ImproperlyConfigured) as error:
        return fail(EXIT_USAGE, str(error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if type(error).__name__ != "BootError":
            traceback.print_exc()
        return fail(EXIT_BOOT, f"the application failed to boot: {error}")
    assert inbox is not None
    return supervise(application, inbox)


def supervise(application: Any, inbox: Any) -> int:
    from .parent import Supervisor
    from .pidfile import AlreadyRunning, Pidfile

    pidfile = None
    try:
        if application.config.pidfile is not None:
            pidfile = Pidfile(application.config.pidfile)
            pidfile.acquire()
        return Supervisor(application, inbox, pidfile).run()
    except AlreadyRunning as error:
        return fail(EXIT_ALREADY_RUNNING, str(error))
    except ConfigError as error:
        return fail(EXIT_USAGE, str(error))
    finally:
        if pidfile is not None:
            pidfile.release()


def make_inbox(namespace: argparse.Namespace) -> Any:
    """Signals are heard from the first moment on: as PID 1 nobody else would hear them."""
    import threading

    if not hasattr(os, "fork") or threading.current_thread() is not threading.main_thread():
        return None
    from .signals import PARENT_SIGNALS, SignalInbox

    return SignalInbox(PARENT_SIGNALS)


def fail(code: int, message: str) -> int:
    """Says on stderr what is wrong; `code` is the exit code."""
    print(f"dbtasks: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
