"""A booted systemd in namespaces of its own: no network, no disk, gone at the end.

The image is the lower layer of an overlay, so nothing of a boot is left in it. The control group is
the machine's own, below ours: systemd finds an empty hierarchy, whatever the host mounts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.systemd.image import PACKAGES_AT, PYTHON, ROOT, SITE_PACKAGES, SOURCE, furnish
from tests.waiting import wait_until

BOOT_SECONDS = 120.0
COMMAND_SECONDS = 120.0
TOOLS = ("unshare", "nsenter", "mount", "pivot_root")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
READY = ("running", "degraded")  # degraded: a unit of Debian's that namespaces do not suit

# Everything is mounted from inside the new namespaces, and gone with them.
BOOT = f"""
set -e
image=$1 work=$2 group=$3
mount --make-rprivate /
mount -t tmpfs tmpfs $work
mkdir $work/upper $work/work $work/root $work/groups
mount -t overlay overlay -o lowerdir=$image,upperdir=$work/upper,workdir=$work/work $work/root
cd $work/root
{{python}} -m tests.systemd.machine $work/root
mount --bind {{prefix}} {PYTHON}
mount --bind {{packages}} {PACKAGES_AT}
mount --bind {ROOT} {SOURCE}
for each in {PYTHON} {PACKAGES_AT} {SOURCE}; do mount -o remount,bind,ro $each; done
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for each in {" ".join(DEVICES)}; do touch dev/$each; mount --bind /dev/$each dev/$each; done
hostname machine
mkdir -p old
pivot_root . old
umount -l /old
echo /{PYTHON}/lib >etc/ld.so.conf.d/python.conf
/sbin/ldconfig
exec env -i container=dbtasks PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"""


class Machine:
    """One boot of `image`. Needs root; see `missing`."""

    def __init__(self, image: Path) -> None:
        self.image = image
        self.folder = Path(tempfile.mkdtemp(prefix="dbtasks-machine-"))
        self.group = cgroup2() / f"dbtasks-{os.getpid()}"
        self.systemd = 0

    def __enter__(self) -> Machine:
        self.group.mkdir()
        script = BOOT.format(python=sys.executable, prefix=sys.base_prefix, packages=SITE_PACKAGES)
        self._log = open(self.folder / "boot.log", "wb")
        (self.folder / "work").mkdir()
        # First into the group, then into the namespaces: so the group is the root inside.
        self._process = subprocess.Popen(
            [
                *("sh", "-c", f'echo $$ >{self.group}/cgroup.procs; exec "$@"', "boot"),
                *("unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup"),
                *("--kill-child", "sh", "-c", script, "boot"),
                *(str(self.image), str(self.folder / "work"), str(self.group)),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self.systemd = wait_until(self._find_systemd, BOOT_SECONDS, "systemd begins")
            wait_until(self.is_up, BOOT_SECONDS, "systemd is up")
        except BaseException as error:
            error.add_note((self.folder / "boot.log").read_text(errors="replace"))
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.systemd or self._process.pid, signal.SIGKILL)
        self._process.wait(30)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        for group in [*sorted(self.group.rglob("*/"), reverse=True), self.group]:
            with contextlib.suppress(OSError):
                group.rmdir()

    def _find_systemd(self) -> int:
        assert self._process.poll() is None, "it did not boot"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in children.read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                return int(pid)
        return 0

    def is_up(self) -> bool:
        return self.run("systemctl", "is-system-running", check=False).strip() in READY

    # Inside

    def run(self, *command: str, check: bool = True, user: str | None = None) -> str:
        """Its output; with `check` it must end with 0. `user`: who runs it, else root."""
        ended = self.call(*command, user=user)
        if check:
            told = f"{ended.stdout}{ended.stderr}"
            assert ended.returncode == 0, f"{' '.join(command)}: {ended.returncode}\n{told}"
        return ended.stdout

    def call(self, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
        as_user = () if user is None else ("setpriv", "--reuid", user, "--regid", user)
        groups = () if user is None else ("--clear-groups",)
        return subprocess.run(
            ["nsenter", "-t", str(self.systemd), "-a", *as_user, *groups, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def path(self, inside: str) -> Path:
        """A path of the machine, as we see it."""
        return Path(f"/proc/{self.systemd}/root", inside.lstrip("/"))


def cgroup2() -> Path:
    """Where the hierarchy of version 2 is mounted, alone or beside version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise AssertionError("no cgroup2 is mounted here, which systemd needs")


def missing() -> list[str]:
    """What this machine lacks to boot another one."""
    lacks = [f"{tool} (util-linux)" for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        lacks.append("root's rights")
    return lacks


@contextlib.contextmanager
def booted(image: Path) -> Iterator[Machine]:
    with Machine(image) as machine:
        yield machine


if __name__ == "__main__":
    furnish(Path(sys.argv[1]))
