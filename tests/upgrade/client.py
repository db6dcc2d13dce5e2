"""What a project does, in whichever version of dbtasks the process finds. Prints one JSON value.

Not imported: its text is run with `python -c`, so that both versions run the same.
"""

import datetime
import json
import sys
from pathlib import Path

import django

django.setup()

from django.tasks import task_backends  # noqa: E402
from django.utils import timezone  # noqa: E402

import dbtasks  # noqa: E402
from tests.app.tasks import echo, fail, wait_for_file  # noqa: E402

assert Path(dbtasks.__file__).is_relative_to(Path.cwd()), f"the wrong dbtasks: {dbtasks.__file__}"


def enqueue(count: str) -> list[list[object]]:
    """(id, status and value that it must end with) of calls that are of every kind."""
    expected: list[list[object]] = []
    for number in range(int(count)):
        match number % 10:
            case 0:
                soon = timezone.now() + datetime.timedelta(seconds=1)
                result = echo.using(run_after=soon).enqueue(number)
                expected.append([result.id, "SUCCESSFUL", number])
            case 1:
                expected.append([fail.enqueue(str(number)).id, "FAILED", None])
            case 2:
                result = echo.using(priority=7, queue_name="email").enqueue(number)
                expected.append([result.id, "SUCCESSFUL", number])
            case _:
                expected.append([echo.enqueue(number).id, "SUCCESSFUL", number])
    return expected


def hold(gate: str, started: str, count: str) -> list[str]:
    """Tasks that run until the file `gate` exists; each makes a file when it starts."""
    names = [f"{started}{number}" for number in range(int(count))]
    return [wait_for_file.enqueue(gate, name).id for name in names]


def look(text: str) -> list[list[object]]:
    """(id, status, return value, who ran it) of each id."""
    found = []
    for id in json.loads(text):
        result = task_backends["default"].get_result(id)
        value = result.return_value if result.status == "SUCCESSFUL" else None
        found.append([id, str(result.status), value, list(result.worker_ids)])
    return found


COMMANDS = {"enqueue": enqueue, "hold": hold, "look": look}
print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
