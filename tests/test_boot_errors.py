"""What cannot start says why, in words that help, with the exit code for that kind of trouble."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.process import SUPERVISOR, TASKRUNNER, Project, run, supervise

pytestmark = pytest.mark.once

OPTIONS = "DBTASKS_TEST_OPTIONS"


def assert_refused(
    result: subprocess.CompletedProcess[str], code: int, *words: str, traceback: bool = False
) -> None:
    told = result.stderr
    assert result.returncode == code, told
    assert all(word in told for word in words), told
    assert ("Traceback" in told) is traceback, told
    assert result.stdout == ""


# 2: the command line and the configuration


@pytest.mark.parametrize("command", [SUPERVISOR, TASKRUNNER], ids=["supervisor", "taskrunner"])
def test_an_unknown_flag_is_a_usage_error(command: tuple[str, ...]) -> None:
    assert_refused(run("--nonsense", command=command), 2, "usage:", "--nonsense")


@pytest.mark.parametrize(
    ("flags", "env", "words"),
    [
        (["-w", "0"], {}, ("--workers: '0'", "1 to 1024")),
        ([], {"DBTASKS_WORKERS": "many"}, ("DBTASKS_WORKERS: 'many'", "1 to 1024")),
        ([], {OPTIONS: '{"workers": 5000}'}, ("OPTIONS['workers']: 5000", "1 to 1024")),
        (["--queues", "a", "--exclude-queues", "*"], {}, ("--exclude-queues", "leaves nothing")),
        (["--healthcheck"], {}, ("--status-file",)),
        (["--backend", "other"], {}, ("'other'", "'default'")),
    ],
)
def test_a_wrong_value_is_refused_with_the_name_of_its_source(
    flags: list[str], env: dict[str, str | None], words: tuple[str, ...]
) -> None:
    assert_refused(run(*flags, env=env), 2, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('{"workerz": 5}', ("'workerz'", "unknown option", "Did you mean 'workers'?")),
        (
            '{"periodic": {"tests.app.tasks.noop": "61 * * * *"}}',
            ("tests.app.tasks.noop", '"61"', "0-59"),
        ),
        (
            '{"periodic": {"tests.app.tasks.missing": "* * * * *"}}',
            ("tests.app.tasks.missing", "@task"),
        ),
        (
            '{"periodic": {"tests.app.models.Note": "* * * * *"}}',
            ("tests.app.models.Note", "not a task"),
        ),
    ],
)
def test_wrong_options_are_refused_by_key(options: str, words: tuple[str, ...]) -> None:
    assert_refused(run(env={OPTIONS: options}), 2, *words)


def test_a_queue_that_no_task_can_use_is_refused(tmp_path: Path) -> None:
    project = Project(tmp_path, settings='TASKS["default"]["QUEUES"] = ["default", "email"]')
    assert_refused(project.run("--queues", "emial"), 2, "--queues", "'emial'", "'email'")


def test_an_excluded_queue_that_no_task_can_use_is_refused_by_the_right_name(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path, settings='TASKS["default"]["QUEUES"] = ["default", "email"]')
    assert_refused(project.run("--exclude-queues", "emial"), 2, "--exclude-queues", "'emial'")


def test_a_project_without_our_backend_is_told_to_use_it(tmp_path: Path) -> None:
    project = Project(tmp_path, settings="del TASKS")
    assert_refused(project.run(), 2, "dbtasks.backend.DatabaseBackend", "TASKS['default']")


def test_a_backend_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    project = Project(tmp_path, settings='TASKS["default"]["BACKEND"] = "dbtasks.DatabaseBackend"')
    assert_refused(project.run(), 2, "dbtasks.DatabaseBackend", "'default'")


def test_a_project_without_our_app_is_told_to_install_it(tmp_path: Path) -> None:
    project = Project(
        tmp_path, settings='INSTALLED_APPS = [a for a in INSTALLED_APPS if a != "dbtasks"]'
    )
    assert_refused(project.run(), 2, "INSTALLED_APPS", "dbtasks")


def test_no_settings_module_at_all_is_a_usage_error() -> None:
    result = run(env={"DJANGO_SETTINGS_MODULE": None})
    assert_refused(result, 2, "--settings", "DJANGO_SETTINGS_MODULE")


def test_improper_configuration_that_the_project_finds_itself_needs_no_traceback(
    tmp_path: Path,
) -> None:
    project = Project(
        tmp_path,
        settings="""
        from django.core.exceptions import ImproperlyConfigured
        raise ImproperlyConfigured("set SHOP_KEY")
        """,
    )
    assert_refused(project.run(), 2, "set SHOP_KEY")


# 3: the project's code


def test_a_settings_module_that_does_not_exist_is_named_without_a_traceback() -> None:
    result = run("--settings", "tests.no_such_settings")
    assert_refused(result, 3, "'tests.no_such_settings'", "--settings", "--pythonpath")


def test_a_settings_module_that_raises_shows_where() -> None:
    result = run("--settings", "tests.app.broken")
    assert_refused(result, 3, "broken.py", "this module cannot be imported", traceback=True)


def test_a_settings_module_whose_import_is_missing_shows_where(tmp_path: Path) -> None:
    project = Project(tmp_path, settings="import no_such_library")
    assert_refused(project.run(), 3, "no_such_library", project.settings.name, traceback=True)


def test_a_settings_module_that_exits_is_a_boot_failure(tmp_path: Path) -> None:
    project = Project(tmp_path, settings='import sys; sys.exit("no SHOP_KEY")')
    assert_refused(project.run(), 3, "no SHOP_KEY", traceback=True)


@pytest.mark.parametrize(
    ("tasks", "word"),
    [('raise RuntimeError("out of stock")', "out of stock"), ("def broken(:", "SyntaxError")],
)
def test_a_tasks_module_that_cannot_be_imported_shows_where(
    tmp_path: Path, tasks: str, word: str
) -> None:
    project = Project(tmp_path, tasks=tasks)
    assert_refused(project.run(), 3, "a tasks module", word, "tasks.py", traceback=True)


THREAD = 'threading.Thread(target=time.sleep, args=(60,), name="stocktaker", daemon=True).start()'


@pytest.mark.parametrize("flags", [[], ["--check"]], ids=["start", "check"])
def test_an_import_that_starts_a_thread_is_refused_by_the_name_of_the_thread(
    tmp_path: Path, flags: list[str]
) -> None:
    project = Project(tmp_path, tasks=THREAD)
    assert_refused(project.run(*flags), 3, "stocktaker", "--mode thread")


def test_threads_do_not_matter_where_nothing_is_forked(tmp_path: Path) -> None:
    result = Project(tmp_path, tasks=THREAD).run("--mode", "thread", "--check")
    assert (result.returncode, result.stderr) == (0, "")


# 4: the pid file


@pytest.mark.parametrize("mode", ["process", "thread"])
def test_a_second_one_with_the_same_pidfile_is_refused(db: None, tmp_path: Path, mode: str) -> None:
    pidfile = tmp_path / "node.pid"
    with supervise("-w", "1", "--mode", mode, "--pidfile", str(pidfile)) as process:
        process.wait_for("ready")
        assert pidfile.read_text() == f"{process.pid}\n"

        result = run("--mode", mode, "--pidfile", str(pidfile))
        assert_refused(result, 4, "--pidfile", str(process.pid))
        assert process.terminate() == 0
    assert not pidfile.exists()


def test_a_pidfile_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    result = run("--pidfile", str(tmp_path / "nowhere" / "node.pid"))
    assert_refused(result, 2, "--pidfile", "cannot be written")


def test_a_refusal_is_one_message_also_in_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code = subprocess.call([*SUPERVISOR, "-w", "0"], stderr=writer, stdout=writer)
    finally:
        os.close(writer)
    assert code == 2
