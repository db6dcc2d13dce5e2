"""The README's quickstart does what it says, as it stands there.

A comment before a fenced block says what the block is: `<!-- test: append FILE -->`,
`<!-- test: create FILE -->`, `<!-- test: shell -->`, `<!-- test: shell background -->` (runs until
the end; SIGTERM must end it with 0) or `<!-- test: python -->` (for `manage.py shell`).
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process import Process, run

pytestmark = pytest.mark.once

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^<!-- test: ([^>]+?) -->\n+```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROJECT = "myproject"
MANAGE = (sys.executable, "manage.py")


def blocks() -> list[tuple[str, str, str]]:
    """(what, argument, text) of each block that is marked."""
    found = []
    for head, text in BLOCK.findall(README.read_text(encoding="utf-8")):
        what, _, argument = head.partition(" ")
        found.append((what, argument, text))
    return found


def test_every_mark_is_before_a_block_and_is_known() -> None:
    marks = README.read_text(encoding="utf-8").count("<!-- test: ")
    assert marks == len(blocks()) > 0
    assert {what for what, _, _ in blocks()} == {"append", "create", "shell", "python"}


class Quickstart:
    """An empty project, and what the blocks do to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.background: list[Process] = []
        # The scripts of this interpreter first, as in an activated environment.
        scripts = folder / ".scripts"
        scripts.mkdir()
        (scripts / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (scripts / "python").chmod(0o755)
        self.env: dict[str, str | None] = {
            "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]]),
            "DJANGO_SETTINGS_MODULE": None,
            "DBTASKS_TEST_DATABASE_URL": None,
        }
        self.must("django-admin", command=(sys.executable, "-m", "django"))

    def must(self, what: str, *, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        flags = ("startproject", PROJECT, ".") if what == "django-admin" else ()
        result = run(*flags, command=command, cwd=self.folder, env=self.env, timeout=60)
        assert result.returncode == 0, f"{what}\n{result.stdout}{result.stderr}"
        return result

    def follow(self, what: str, argument: str, text: str) -> None:
        match what, argument:
            case "append", file:
                with open(self.folder / file, "a", encoding="utf-8") as target:
                    target.write(f"\n{text}")
            case "create", file:
                (self.folder / file).write_text(text, encoding="utf-8")
            case "shell", "background":
                self.start(text)
            case "shell", _:
                self.must(text, command=("bash", "-ec", text))
            case "python", _:
                self.must(text, command=(*MANAGE, "shell", "-v", "0", "-c", text))
            case _:
                raise AssertionError(f"README.md: no test knows <!-- test: {what} -->")

    def start(self, text: str) -> None:
        process = Process(("bash", "-ec", f"exec {text.strip()}"), cwd=self.folder, env=self.env)
        self.background.append(process)
        process.wait_for("ready")

    def end(self) -> None:
        """SIGTERM to what runs in the background; each must end with 0."""
        for process in self.background:
            with process:
                process.signal(signal.SIGTERM)
                assert process.wait() == 0, process.stderr


@contextmanager
def quickstart(folder: Path) -> Iterator[Quickstart]:
    start = Quickstart(folder)
    try:
        yield start
        start.end()
    finally:
        for process in start.background:
            process.kill()


def test_the_quickstart_works_as_it_is_written(tmp_path: Path) -> None:
    with quickstart(tmp_path) as start:
        for what, argument, text in blocks():
            start.follow(what, argument, text)
        assert start.background, "the quickstart starts no runner"
        (process,) = start.background
        assert "Traceback" not in process.stderr
        assert "ERROR" not in process.stderr


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_project_with_sqlite_as_startproject_makes_it_serves_many_writers(
    tmp_path: Path, mode: str
) -> None:
    """No WAL, no IMMEDIATE: slower, but nothing is lost and nothing fails."""
    with quickstart(tmp_path) as start:
        for what, argument, text in blocks():
            if what in ("append", "create"):
                start.follow(what, argument, text)
        start.must("migrate", command=(*MANAGE, "migrate"))
        start.start(f"python manage.py taskrunner -w 3 --mode {mode}")
        start.follow("python", "", ENQUEUE)


ENQUEUE = """
import time
from dbtasks.models import ScheduledTask
from myproject.tasks import add

for number in range(100):
    add.enqueue(number, 1)
deadline = time.monotonic() + 30
while ScheduledTask.objects.exclude(status="SUCCESSFUL").exists():
    assert time.monotonic() < deadline, list(ScheduledTask.objects.values("status", "errors"))
    time.sleep(0.1)
assert ScheduledTask.objects.filter(task_path="myproject.tasks.add").count() == 100
"""
