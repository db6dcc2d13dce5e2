"""The example project: its tasks count right, and the demo shows what it says and leaves nothing.

Each process gets the example's own settings, so nothing here touches the database of the session.
"""

import hashlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "deploy" / "example"
DEMO_SECONDS = 90
MODULES = 60
SOURCE = '''"""Two classes, four functions, one of them nested and one async."""


class Shelf:
    def add(self, book):
        def where():
            return self

        return where


class Empty:
    async def wait(self): ...


def lend(): ...
'''

# Runs `{body}` in the example, with tasks executed by a Runner; prints `answer` as JSON.
SCRIPT = """
import json, django
django.setup()
from django.core.management import call_command
from django.tasks import task_backends
from library.models import Module, Throughput
from library.tasks import index_module, measure_throughput, report
from dbtasks.runner import Runner

def run():
    Runner(workers=2, worker_id="test", init_periodic=False, burst=True).run()

call_command("migrate", verbosity=0)
{body}
print(json.dumps(answer))
"""


def environment(folder: Path) -> dict[str, str]:
    """The example's settings, a database and temporary files in `folder`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXAMPLE_")}
    return environ | {
        "DJANGO_SETTINGS_MODULE": "example.settings",
        "EXAMPLE_DATABASE_URL": f"sqlite:///{folder / 'example.sqlite3'}",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLE), os.environ.get("PYTHONPATH", "")]),
        "TMPDIR": str(folder),
    }


def in_example(folder: Path, body: str) -> Any:
    """What `body` left in `answer`."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "shelf.py"
    path.write_text(SOURCE)
    return path


def loaded(path: Path) -> ModuleType:
    """A module of the example that needs no Django, without changing the import path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stdlib() -> ModuleType:
    return loaded(EXAMPLE / "library" / "stdlib.py")


@pytest.fixture(scope="module")
def screens() -> ModuleType:
    return loaded(EXAMPLE / "showcase" / "screen.py")


# The project


def manage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE / "manage.py"), *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )


def test_the_example_passes_its_system_checks_in_silence(tmp_path: Path) -> None:
    ran = manage(tmp_path, "check", "--fail-level", "INFO")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "System check identified no issues (0 silenced).\n"


def test_the_migrations_of_the_example_are_complete(tmp_path: Path) -> None:
    ran = manage(tmp_path, "makemigrations", "--check", "--dry-run", "library")
    assert ran.returncode == 0, ran.stdout


def test_a_database_url_of_an_unknown_kind_is_refused_with_what_to_write(tmp_path: Path) -> None:
    environ = environment(tmp_path) | {"EXAMPLE_DATABASE_URL": "oracle://host/name"}
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert ran.returncode == 1
    assert "EXAMPLE_DATABASE_URL begins with 'oracle'" in ran.stderr
    assert "write sqlite:////path" in ran.stderr
    assert "Traceback" not in ran.stderr


# The tasks


def test_a_module_is_counted_and_hashed(tmp_path: Path, module: Path) -> None:
    answer = in_example(
        tmp_path,
        f"""
result = index_module.enqueue({str(module)!r})
run()
result.refresh()
stored = Module.objects.values("path", "functions", "classes", "lines", "sha256").get()
answer = [result.return_value, stored]
""",
    )
    found = {
        "functions": 4,
        "classes": 2,
        "lines": 16,
        "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(),
    }
    assert answer == [found, {"path": str(module), **found}]


def test_a_module_that_is_indexed_twice_is_one_row_with_the_newer_numbers(
    tmp_path: Path, module: Path
) -> None:
    answer = in_example(
        tmp_path,
        f"""
index_module.enqueue({str(module)!r})
run()
open({str(module)!r}, "a").write("class Third: ...")
index_module.enqueue({str(module)!r})
run()
answer = list(Module.objects.values_list("classes", "lines"))
""",
    )
    assert answer == [[3, 17]]


def test_a_file_that_is_no_python_fails_once_with_its_syntax_error(
    tmp_path: Path, module: Path
) -> None:
    module.write_text("def :\n")
    answer = in_example(
        tmp_path,
        f"""
result = index_module.enqueue({str(module)!r})
run()
result.refresh()
answer = [result.status, [error.exception_class_path for error in result.errors]]
""",
    )
    assert answer == ["FAILED", ["builtins.SyntaxError"]]


def test_the_report_waits_for_the_last_module_and_adds_up(tmp_path: Path, module: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("def one(): ...\n")
    answer = in_example(
        tmp_path,
        f"""
since = "2020-01-01T00:00:00+00:00"
waiting = report.enqueue(modules=2, since=since)
index_module.enqueue({str(module)!r})
run()
waiting.refresh()
early = waiting.status
index_module.enqueue({str(other)!r})
import threading
runner = Runner(workers=1, worker_id="test", init_periodic=False)
thread = threading.Thread(target=runner.run)
thread.start()
finished = runner.wait_for(waiting, timeout=30)
runner.stop()
thread.join()
answer = [early, finished, waiting.attempts, waiting.return_value]
""",
    )
    early, finished, attempts, total = answer
    assert (early, finished) == ("READY", True)
    assert attempts >= 2
    assert {key: total[key] for key in ("modules", "lines", "functions", "classes")} == {
        "modules": 2,
        "lines": 17,
        "functions": 5,
        "classes": 2,
    }
    assert [row["module"] for row in total["longest"]] == ["shelf", "other"]


def test_modules_from_before_do_not_count_for_a_report(tmp_path: Path, module: Path) -> None:
    answer = in_example(
        tmp_path,
        f"""
index_module.enqueue({str(module)!r})
run()
from django.utils import timezone
result = report.enqueue(modules=1, since=timezone.now().isoformat())
run()
result.refresh()
answer = result.status
""",
    )
    assert answer == "READY"


def test_the_periodic_task_measures_the_last_two_seconds(tmp_path: Path) -> None:
    answer = in_example(
        tmp_path,
        """
from datetime import timedelta
from django.utils import timezone
fields = {"functions": 0, "classes": 0, "lines": 0, "sha256": ""}
for path, age in [("a", 0), ("b", 0), ("c", 0), ("long ago", 60)]:
    Module.objects.create(
        path=path, indexed_at=timezone.now() - timedelta(seconds=age), **fields
    )
measure_throughput.func()
answer = list(Throughput.objects.values_list("modules", "per_second"))
""",
    )
    assert answer == [[3, 1.5]]


# The input


def test_the_modules_are_the_same_each_time_without_tests_and_installed_packages(
    stdlib: ModuleType,
) -> None:
    paths = stdlib.module_paths(100_000)
    names = {stdlib.module_name(path) for path in paths}
    assert paths == stdlib.module_paths(100_000)
    assert len(names) == len(paths) > 400
    assert {"ast", "json", "json.decoder", "asyncio.events"} <= names
    assert not [name for name in names if name.split(".")[0] in ("test", "site-packages")]
    assert stdlib.module_paths(7) == paths[:7]


def independent_count(paths: list[Path]) -> tuple[int, int, int]:
    """Lines, functions and classes, counted by tokens: `def` and `class` are hard keywords."""
    lines = functions = classes = 0
    for path in paths:
        source = path.read_bytes()
        text = io.TextIOWrapper(io.BytesIO(source), encoding="latin-1", newline=None).read()
        lines += text.count("\n") + (not text.endswith("\n") and bool(text))
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.NAME:
                functions += token.string == "def"
                classes += token.string == "class"
    return lines, functions, classes


# The screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def drawn(terminal: Terminal) -> list[str]:
    """The lines that were drawn over each other, without escape sequences."""
    return re.sub(r"\x1b\[\??[0-9;]*[a-zA-Z]", "", terminal.getvalue()).strip().split("\r")


@pytest.mark.parametrize("columns", [10, 30, 80, 300])
def test_a_progress_line_fits_the_terminal(
    screens: ModuleType, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = screens.Screen(terminal)
    with screen.progress():
        screen.show_progress(250, 500, "100/s  2.5 s  a.module.with_a_long_name")
        screen.show_progress(500, 500, "100/s  5.0 s  b")
    assert len(drawn(terminal)) == 2
    assert max(map(len, drawn(terminal))) <= columns
    assert "\n" not in terminal.getvalue()[:-1]


def test_the_cursor_comes_back_after_an_exception(screens: ModuleType, terminal: Terminal) -> None:
    def interrupted() -> None:
        with screens.Screen(terminal).progress():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().startswith("\x1b[?25l")
    assert terminal.getvalue().endswith("\x1b[?25h\n")


def test_no_color_takes_the_colours_but_not_the_progress(
    screens: ModuleType, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> str:
        screen = screens.Screen(terminal)
        screen.heading("Report")
        screen.show_progress(1, 2, "")
        return terminal.getvalue()

    assert re.search(r"\x1b\[\d+m", shown())
    terminal.truncate(0)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[\d+m", shown())
    assert "1 of 2" in terminal.getvalue()


def test_a_dumb_terminal_gets_plain_lines(
    screens: ModuleType, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = screens.Screen(terminal)
    with screen.progress():
        screen.show_progress(1, 2, "told")
        screen.show_progress(2, 2, "told")
    assert terminal.getvalue() == "1 of 2  told\n2 of 2  told\n"


# The demo


class Running:
    """A demo whose output goes to a file, and every process that it ever had."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.output = folder / "output"
        environ = environment(self.temporary)
        del environ["EXAMPLE_DATABASE_URL"]
        with self.output.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, str(EXAMPLE / "demo.py"), *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = {self.process}

    @property
    def told(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def look(self) -> None:
        try:
            self.family |= set(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return

    def supervisor(self) -> psutil.Process | None:
        """The child of the demo that has workers of its own."""
        self.look()
        try:
            parents = [child for child in self.process.children() if len(child.children()) >= 2]
        except psutil.NoSuchProcess:
            return None
        return parents[0] if parents else None

    def has_told(self, text: str) -> bool:
        self.look()
        assert self.process.poll() is None or text in self.told, self.told
        return text in self.told

    def wait(self) -> int:
        def ended() -> bool:
            self.look()
            return self.process.poll() is not None

        wait_until(ended, DEMO_SECONDS, "the demo ends")
        return int(self.process.returncode)

    def alive(self) -> list[psutil.Process]:
        return [
            process
            for process in self.family
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]

    def assert_nothing_left(self) -> None:
        wait_until(lambda: not self.alive(), 10, "all processes of the demo are gone")
        assert list(self.temporary.iterdir()) == []


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Running]:
    demo = Running(folder, *arguments)
    try:
        yield demo
    finally:
        for process in demo.alive():
            process.kill()


def test_the_demo_shows_progress_the_report_and_an_account_and_leaves_nothing(
    tmp_path: Path, stdlib: ModuleType
) -> None:
    with running(tmp_path, "--modules", str(MODULES)) as demo:
        assert demo.wait() == 0, demo.told
        told = demo.told
        demo.assert_nothing_left()
        assert len(demo.family) >= 6  # the demo, the supervisor and its workers were seen

    assert re.search(rf"^ *{MODULES} of {MODULES} ", told, re.MULTILINE)
    assert "\x1b" not in told  # no escape sequences in a pipe
    assert "\r" not in told

    total = re.search(r"^  all (\d+) +([\d,]+) +([\d,]+) +([\d,]+)$", told, re.MULTILINE)
    assert total, told
    modules, *counts = (int(number.replace(",", "")) for number in total.groups())
    assert modules == MODULES
    assert tuple(counts) == independent_count(stdlib.module_paths(MODULES))

    account = dict(re.findall(r"^  (tasks|retries|workers|periodic) +(\d+)", told, re.MULTILINE))
    assert int(account["tasks"]) >= MODULES + 1
    assert 1 <= int(account["workers"]) <= 4
    assert int(account["periodic"]) >= 1
    assert ", of which 0 failed" in told
    assert "Drained: the supervisor ended with exit code 0" in told


def test_ctrl_c_stops_the_demo_and_everything_it_started(tmp_path: Path) -> None:
    with running(tmp_path) as demo:
        wait_until(lambda: demo.has_told(" of 500 "), DEMO_SECONDS, "progress is shown")
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait() == 130, demo.told
        demo.assert_nothing_left()
        assert demo.told.endswith("Stopped\n")


def test_ctrl_c_ends_a_demo_that_runs_forever_with_a_drain_and_exit_code_0(tmp_path: Path) -> None:
    with running(tmp_path, "--forever", "--modules", "5", "--workers", "2") as demo:
        wait_until(lambda: demo.has_told("Ctrl-C drains"), DEMO_SECONDS, "the first index is made")
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait() == 0, demo.told
        demo.assert_nothing_left()
        assert "Drained: the supervisor ended with exit code 0" in demo.told


def test_a_supervisor_that_dies_makes_the_demo_fail_with_its_last_lines(tmp_path: Path) -> None:
    with running(tmp_path, "--forever", "--modules", "5", "--workers", "2") as demo:
        wait_until(lambda: demo.has_told("Ctrl-C drains"), DEMO_SECONDS, "the first index is made")
        supervisor = wait_until(demo.supervisor, DEMO_SECONDS, "the supervisor has workers")
        assert supervisor is not None
        supervisor.kill()
        assert demo.wait() == 1, demo.told
        demo.assert_nothing_left()
        assert "the supervisor ended with exit code -9" in demo.told
        assert "Last lines of the supervisor:\n" in demo.told
        assert "Traceback" not in demo.told


@pytest.mark.parametrize("wrong", ["0", "-1", "many"])
def test_a_number_out_of_range_is_refused_by_the_name_of_its_flag(
    tmp_path: Path, wrong: str
) -> None:
    ran = subprocess.run(
        [sys.executable, str(EXAMPLE / "demo.py"), f"--modules={wrong}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert ran.returncode == 2
    assert "--modules" in ran.stderr
    assert "use a whole number from 1" in ran.stderr
