"""The units of deploy/systemd: what systemd itself says of them, and that they fit the program.

`make test-systemd` runs them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dbtasks_supervisor import parent
from dbtasks_supervisor.options import SETTINGS
from tests.test_deploy_docs import after_the_grace_period, default_grace

pytestmark = pytest.mark.once

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "systemd"
SERVICE = FOLDER / "dbtasks-supervisor.service"
TEMPLATE = FOLDER / "dbtasks-supervisor@.service"
UNITS = (SERVICE, TEMPLATE)
PROJECT = "/srv/myproject"
MOST_EXPOSED = 30  # tenths; systemd calls 2.0 "OK" and 9.6, a unit without any setting, "UNSAFE"


def assignments(unit: Path) -> list[tuple[str, str]]:
    lines = unit.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if "=" in line and not line.startswith("#")]
    return [(name, value) for name, _, value in pairs]


@pytest.fixture(params=UNITS, ids=["service", "template"])
def unit(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture
def analyze() -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze(1) is not here")
    return tool


def installed(unit: Path, folder: Path) -> Path:
    """A copy whose project exists, so that only the unit itself can be wrong."""
    program = folder / "venv" / "bin" / "dbtasks-supervisor"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = folder / unit.name.replace("@.", "@one.")
    copy.write_text(unit.read_text(encoding="utf-8").replace(PROJECT, str(folder)))
    return copy


def test_systemd_understands_every_line(unit: Path, analyze: str, tmp_path: Path) -> None:
    command = [analyze, "verify", "--man=no", str(installed(unit, tmp_path))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    told = [line for line in ended.stderr.splitlines() if "dbtasks-supervisor" in line]
    assert told == []


def test_systemd_finds_it_well_enclosed(unit: Path, analyze: str, tmp_path: Path) -> None:
    copy = installed(unit, tmp_path)
    command = [analyze, "security", "--offline=yes", "--no-pager", str(copy)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in ended.stderr:
        pytest.skip("this systemd-analyze cannot judge a file (before 250)")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+) ", ended.stdout)
    assert found, ended.stdout + ended.stderr
    assert float(found[1]) * 10 <= MOST_EXPOSED


def test_the_template_differs_by_the_instance_alone() -> None:
    template = dict(assignments(TEMPLATE))
    for name, value in assignments(SERVICE):
        written = template.pop(name)
        expected = value.replace("supervisor.env", "%i.env")
        expected = expected.replace("dbtasks-supervisor/", "dbtasks-supervisor-%i/")
        if name in ("RuntimeDirectory", "StateDirectory"):
            expected += "-%i"
        if name == "ExecStart":
            written = written.replace(" --worker-id=%l-%i", "")
            expected = expected.replace("bin/dbtasks-supervisor-%i", "bin/dbtasks-supervisor")
        assert written.removesuffix(" (%i)") == expected, name
    assert template == {}


def test_every_name_is_said_once(unit: Path) -> None:
    names = [name for name, _ in assignments(unit)]
    assert sorted(names) == sorted(set(names))


def test_the_flags_exist(unit: Path) -> None:
    flags = re.findall(r" (--[a-z-]+)", dict(assignments(unit))["ExecStart"])
    known = {flag for setting in SETTINGS for flag in setting.flags}
    assert flags
    assert set(flags) <= known


def test_systemd_waits_as_long_as_a_stop_takes(unit: Path) -> None:
    limit = float(dict(assignments(unit))["TimeoutStopSec"])
    assert limit == default_grace() + after_the_grace_period()


def test_the_watchdog_is_patient_with_the_loop(unit: Path) -> None:
    assert float(dict(assignments(unit))["WatchdogSec"]) >= 10 * parent.LOOK


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
        ("Restart", "always"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", ""),
        ("ProtectSystem", "strict"),
    ],
)
def test_what_the_guide_relies_on(unit: Path, name: str, value: str) -> None:
    assert dict(assignments(unit))[name] == value


def test_every_setting_is_explained() -> None:
    """A comment stands above each, or above the group that it belongs to."""
    lines = SERVICE.read_text(encoding="utf-8").splitlines()
    groups = "\n".join(lines).split("\n\n")
    assert all("#" in group for group in groups if "=" in group and "[Install]" not in group)
