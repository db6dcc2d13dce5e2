"""The sdist, the wheel that is built from it, and the wheel in an environment of its own.

Built from a copy: an old build/ or egg-info in the tree must not get into what is published.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import tarfile
import textwrap
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.process import Process, run

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = {"dbtasks": "dbtasks", "supervisor": "dbtasks_supervisor"}
ALSO_IN_SDIST = {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "MANIFEST.in"}
GENERATED = {"PKG-INFO", "setup.cfg"}
ALONE = {"PYTHONPATH": None, "DJANGO_SETTINGS_MODULE": None}  # nothing of the tests' own project
SETTINGS = """
INSTALLED_APPS += ["dbtasks"]
TASKS = {"default": {"BACKEND": "dbtasks.backend.DatabaseBackend", "OPTIONS": {"retain": "7d"}}}
"""
TASKS = """
from dbtasks import task


@task(max_attempts=3)
def add(a, b):
    return a + b
"""
ENQUEUE = """
import time
from myproject.tasks import add

result = add.enqueue(2, 3)
deadline = time.monotonic() + 60
while not result.is_finished:
    assert time.monotonic() < deadline, result.status
    time.sleep(0.05)
    result.refresh()
assert result.return_value == 5, result.errors
"""
# What only an extra brings; a module that needs it says so by its import.
EXTRAS = {"MySQLdb", "psycopg", "prometheus_client", "opentelemetry"}
IMPORT_ALL = """
import importlib
import django

django.setup()
for name in {modules}:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in {extras}:
            raise
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("distribution")
    source, dist = folder / "source", folder / "dist"
    hidden = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=hidden)
    dist.mkdir()
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(dist)!r})"
    must(sys.executable, "-c", build, cwd=source)
    (sdist,) = dist.iterdir()
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation")
    must(*pip, "-w", str(dist), str(sdist), cwd=folder)
    return dist


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An environment with the wheel and the Supervisor project, and nothing else that we named."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input")
    must(*pip, str(wheel), "supervisor", cwd=folder)
    return python


def must(*command: str, cwd: Path) -> str:
    result = run(command=command, cwd=cwd, env=ALONE, timeout=300)
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def code_files() -> set[str]:
    """All that our two folders hold, as paths in the wheel."""
    return {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_has_the_code_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == code_files()
    assert {"dbtasks/py.typed", "dbtasks_supervisor/py.typed"} <= names


def test_the_sdist_has_the_code_and_its_documents_and_no_tests(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    folders = "|".join([*FOLDERS, "docs", "deploy", r"django_dbtasks\.egg-info"])
    rest = {name for name in names if not re.match(f"({folders})/", name)}
    assert rest == ALSO_IN_SDIST | GENERATED
    code = {name for name in names if re.match("(dbtasks|supervisor)/", name)}
    assert {name.replace("supervisor/", "dbtasks_supervisor/", 1) if name.startswith("supervisor/")
            else name for name in code} == code_files()
    assert "docs/deploys.md" in names
    assert "deploy/systemd/dbtasks-supervisor.service" in names


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "django-dbtasks"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.12"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {"postgresql", "mysql", "dev"} <= set(metadata.get_all("Provides-Extra", []))
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert {re.split("[<>=!~; ]", line)[0] for line in required} == {
        *("Django", "croniter", "psutil", "setproctitle")
    }


def test_the_changelog_begins_with_this_version_or_what_is_to_come(metadata: Message) -> None:
    """As Keep a Changelog has it: a heading per version, the newest first, with its date."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings
    dated = r"\[?\d+\.\d+\.\d+\]? - \d{4}-\d\d-\d\d"
    assert re.fullmatch(rf"\[?Unreleased\]?|{dated}", headings[0])
    assert all(re.fullmatch(dated, heading) for heading in headings[1:])
    assert "Keep a Changelog" in text
    if "Unreleased" not in headings[0]:
        assert metadata["Version"] in headings[0]


def test_it_lives_beside_the_supervisor_project(python: str, tmp_path: Path) -> None:
    files = "import supervisor, dbtasks_supervisor, dbtasks, json; print(json.dumps([m.__file__ for m"
    told = must(python, "-c", f"{files} in (supervisor, dbtasks_supervisor, dbtasks)]))", cwd=tmp_path)
    theirs, ours, app = (Path(name).parent for name in json.loads(told))
    assert (theirs.name, ours.name, app.name) == ("supervisor", "dbtasks_supervisor", "dbtasks")
    assert len({theirs.parent, ours.parent, app.parent}) == 1
    scripts = Path(python).parent
    assert must(str(scripts / "supervisord"), "--version", cwd=tmp_path).strip()
    assert "--grace" in must(str(scripts / "dbtasks-supervisor"), "--help", cwd=tmp_path)


@pytest.mark.parametrize("entry", ["manage.py", "script"])
def test_a_new_project_runs_its_first_task(python: str, tmp_path: Path, entry: str) -> None:
    must(python, "-m", "django", "startproject", "myproject", ".", cwd=tmp_path)
    with open(tmp_path / "myproject" / "settings.py", "a") as file:
        file.write(SETTINGS)
    (tmp_path / "myproject" / "tasks.py").write_text(textwrap.dedent(TASKS))
    manage = (python, "manage.py")
    must(*manage, "migrate", "-v", "0", cwd=tmp_path)
    assert "no changes" in must(*manage, "makemigrations", "--check", cwd=tmp_path).lower()
    must(*manage, "taskrunner", "--check", cwd=tmp_path)
    script = str(Path(python).parent / "dbtasks-supervisor")
    commands = {
        "manage.py": (*manage, "taskrunner"),
        "script": (script, "--settings", "myproject.settings"),
    }
    with Process((*commands[entry], "-w", "2"), cwd=tmp_path, env=ALONE) as process:
        process.wait_for("ready", 60)
        must(*manage, "shell", "-v", "0", "-c", ENQUEUE, cwd=tmp_path)
        process.signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr


def test_every_module_can_be_imported(python: str, wheel: Path, tmp_path: Path) -> None:
    """The admin and all others need nothing that the wheel does not bring."""
    with zipfile.ZipFile(wheel) as archive:
        modules = [
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.endswith(".py") and "/migrations/" not in name
        ]
    (tmp_path / "settings.py").write_text(
        'SECRET_KEY = "x"\nINSTALLED_APPS = [f"django.contrib.{a}" for a in ("admin", "auth",'
        ' "contenttypes", "messages", "sessions")] + ["dbtasks"]\n'
    )
    code = IMPORT_ALL.format(modules=modules, extras=EXTRAS)
    env = ALONE | {"DJANGO_SETTINGS_MODULE": "settings"}
    result = run(command=(python, "-c", code), cwd=tmp_path, env=env, timeout=120)
    assert result.returncode == 0, result.stderr
