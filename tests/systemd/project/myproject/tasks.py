import os
import time
from pathlib import Path

from dbtasks import task
from myproject.version import VERSION

STATE = Path("/var/lib/dbtasks-supervisor")


@task
def version():
    return VERSION


@task
def wait_for(name):
    """Runs until the file exists; leaves a line for each time that it was begun."""
    with open(STATE / f"{name}.begun", "a") as file:
        file.write(f"{os.getpid()}\n")
    while not (STATE / name).exists():
        time.sleep(0.02)
    return os.getpid()


@task
def attempt_to(what):
    """What a task can do here: the name of the error, or "done"."""
    try:
        match what:
            case "write /etc":
                Path("/etc/dbtasks/mine").touch()
            case "write the code":
                Path("/srv/myproject/myproject/mine.py").touch()
            case "write the state":
                (STATE / "mine").touch()
            case "write /tmp":
                Path("/tmp/mine").touch()
            case "see systemd":
                Path("/proc/1/status").read_text()
            case "become root":
                os.setuid(0)
            case "unshare":
                os.unshare(os.CLONE_NEWUSER)
    except OSError as error:
        return type(error).__name__
    return "done"
