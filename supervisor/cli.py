"""The command line: `dbtasks-supervisor`, and what `manage.py taskrunner` shares with it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .config import CHILDREN, BootError, ConfigError, add_arguments, resolve
from .status import healthcheck

if TYPE_CHECKING:
    from .application import Application
    from .signals import SignalInbox

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
    inbox = make_inbox()
    if inbox is not None:
        # After a reload there are children already, which leaving would abandon.
        inbox.booting = CHILDREN not in os.environ
    from django.core.exceptions import ImproperlyConfigured

    try:
        if setup:
            set_up_django()
        application = load(namespace, can_fork=inbox is not None)
    except (ConfigError, ImproperlyConfigured) as error:
        return fail(EXIT_USAGE, str(error))
    except BootError as error:
        if error.__cause__ is not None:
            say("".join(traceback.format_exception(error.__cause__)))
        return fail(EXIT_BOOT, f"the application failed to boot: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code in (0, None):
            raise  # a signal said so
        say(traceback.format_exc())
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return fail(EXIT_BOOT, f"the application failed to boot: {told}")
    if application.config.check:
        from .application import print_check

        return EXIT_OK if print_check(application, sys.stdout) else EXIT_USAGE
    return start(application, inbox, int(namespace.verbosity))


def set_up_django() -> None:
    """Raises BootError if the settings module does not exist, and whatever the project raises."""
    import django

    name = os.environ["DJANGO_SETTINGS_MODULE"]
    try:
        django.setup()
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise BootError(
                f"there is no settings module {name!r} ({error}); give --settings a dotted path "
                "like myproject.settings, and --pythonpath the directory that it begins in"
            ) from None
        raise


def load(namespace: argparse.Namespace, *, can_fork: bool) -> Application:
    """The application. Raises ConfigError, ImproperlyConfigured, and BootError."""
    from . import application as loading

    application = loading.load(namespace)
    if application.config.mode == "process":
        if not can_fork:
            raise ConfigError(
                f"{application.config.sources['mode']}: worker processes need a system that can "
                "fork, and the main thread; use --mode thread"
            )
        loading.refuse_threads()
    return application


def start(application: Application, inbox: SignalInbox | None, verbosity: int) -> int:
    """Runs the application in its mode, under its pid file. Returns the exit code."""
    from .logs import configure_logging
    from .pidfile import AlreadyRunning, Pidfile

    config = application.config
    configure_logging(config.log_format, verbosity, config.is_explicit("log_format"))
    pidfile = Pidfile(config.pidfile) if config.pidfile is not None else None
    try:
        if pidfile is not None:
            pidfile.acquire()
        if config.mode == "thread":
            from .threaded import run_threaded

            return run_threaded(application, inbox, pidfile)
        from .parent import Supervisor

        assert inbox is not None
        return Supervisor(application, inbox, pidfile).run()
    except AlreadyRunning as error:
        return fail(EXIT_ALREADY_RUNNING, str(error))
    except ConfigError as error:
        return fail(EXIT_USAGE, str(error))
    finally:
        if pidfile is not None:
            pidfile.release()


def make_inbox() -> SignalInbox | None:
    """Signals are heard from the first moment on: as PID 1 nobody else would hear them."""
    import threading

    if not hasattr(os, "fork") or threading.current_thread() is not threading.main_thread():
        return None
    from .signals import PARENT_SIGNALS, SignalInbox

    return SignalInbox(PARENT_SIGNALS)


def fail(code: int, message: str) -> int:
    """Says on stderr what is wrong; `code` is the exit code."""
    say(f"dbtasks: {message}\n")
    return code


def say(text: str) -> None:
    """On stderr, past its buffer: what nobody reads there must not change the exit code."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), text.encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
