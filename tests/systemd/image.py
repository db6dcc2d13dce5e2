"""Debian in a folder (debootstrap), and what a boot of it adds: Python, our code and a project.

python -m tests.systemd.image FOLDER [SUITE]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = ROOT / "deploy" / "systemd"
PROJECT = Path(__file__).resolve().parent / "project"
SITE_PACKAGES = next(Path(path) for path in sys.path if path.endswith("site-packages"))
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
SUITE = "bookworm"
# libpython3-stdlib brings the libraries that any Python of Debian's is linked with.
PACKAGES = ("systemd", "systemd-sysv", "libpython3-stdlib", "util-linux", "procps")
# What a machine without a console, devices and users does not need.
MASKED = (
    "console-getty.service",
    "getty@.service",
    "systemd-logind.service",
    "systemd-udevd.service",
    "systemd-timesyncd.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "modprobe@.service",
)
SCRIPT = """#!/srv/myproject/venv/bin/python
import sys
from dbtasks_supervisor.cli import main
sys.exit(main())
"""
# Where things are inside.
PYTHON, PACKAGES_AT, SOURCE = "opt/python", "opt/site-packages", "opt/source"


def make_image(folder: Path, suite: str = SUITE) -> None:
    """Installs Debian; some 300 MB and a minute or two. Raises CalledProcessError."""
    draft = folder.with_name(f"{folder.name}.draft")
    if draft.exists():
        shutil.rmtree(draft)
    include = f"--include={','.join(PACKAGES)}"
    subprocess.run(["debootstrap", "--variant=minbase", include, suite, str(draft)], check=True)
    draft.rename(folder)


def furnish(root: Path) -> None:
    """Writes into the running image's own layer: the environment, the project and the units."""
    for folder in (PYTHON, PACKAGES_AT, SOURCE):
        (root / folder).mkdir(parents=True, exist_ok=True)
    make_environment(root / "srv/myproject/venv")
    shutil.copytree(PROJECT, root / "srv/myproject", dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    for unit in UNITS.iterdir():
        shutil.copy(unit, units)
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
    (root / "etc/dbtasks").mkdir(exist_ok=True)
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/hostname").write_text("machine\n")
    with open(root / "etc/passwd", "a") as file:
        file.write("dbtasks:x:990:990::/nonexistent:/usr/sbin/nologin\n")
    with open(root / "etc/group", "a") as file:
        file.write("dbtasks:x:990:\n")


def make_environment(venv: Path) -> None:
    """As `python -m venv` makes it, with the packages that are installed here, and our code."""
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(f"/{PYTHON}/bin/{VERSION}")
    (venv / "pyvenv.cfg").write_text(f"home = /{PYTHON}/bin\n")
    packages = venv / "lib" / VERSION / "site-packages"
    packages.mkdir(parents=True)
    for entry in SITE_PACKAGES.iterdir():
        if not entry.name.startswith("__editable__") and entry.suffix != ".pth":
            (packages / entry.name).symlink_to(f"/{PACKAGES_AT}/{entry.name}")
    (packages / "dbtasks").symlink_to(f"/{SOURCE}/dbtasks")
    (packages / "dbtasks_supervisor").symlink_to(f"/{SOURCE}/supervisor")
    script = venv / "bin/dbtasks-supervisor"
    script.write_text(SCRIPT)
    script.chmod(0o755)


if __name__ == "__main__":
    make_image(Path(sys.argv[1]), *sys.argv[2:3])
