"""The tests' settings with short leases, two schedules a second, and patience with our kills."""

from dbtasks import Periodic
from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as APPS
from tests.settings import TASKS as THEIR_TASKS

LEASE = 2.0  # seconds

INSTALLED_APPS = [*APPS, "tests.chaos"]
OPTIONS = {
    "heartbeat": 0.5,
    "worker_timeout": LEASE,
    # What we kill must not fail: a FAILED task is then one of the kinds that fail by themselves.
    "max_crashes": 1000,
    "periodic": {
        "tests.chaos.tasks.tick": [
            Periodic("1s", args=["latest"], name="latest"),
            Periodic("1s", args=["all"], name="all", catch_up="all"),
        ],
    },
}
# A copy: the tests' own settings are imported by the same process.
TASKS = {"default": {**THEIR_TASKS["default"], "OPTIONS": OPTIONS}}
