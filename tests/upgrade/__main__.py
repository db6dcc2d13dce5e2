"""`make test-upgrade`: the first version's code and this one's share a database, and lose nothing.

    python -m tests.upgrade                        SQLite, PostgreSQL and MariaDB
    python -m tests.upgrade --database postgresql  only this one
    python -m tests.upgrade --from COMMIT          another old version

The schema is the newest, as it is while a deploy goes on. Each version enqueues, runs what the
other enqueued, reads the other's results, and rescues what the other's killed node was running.
"""

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.process import Process
from tests.servers import SERVERS, Server
from tests.upgrade.versions import Version
from tests.waiting import wait_until

OLDEST = "e673d12"
CALLS = 200
HELD = 2
READY, DONE, EXIT = 60.0, 180.0, 60.0  # seconds
OPTIONS = {"heartbeat": 1, "worker_timeout": 4}
Expected = list[list[Any]]


class Upgrade:
    """An old and a new version on one database."""

    def __init__(self, old: Version, new: Version, folder: Path) -> None:
        self.old, self.new, self.folder = old, new, folder
        self.expected: Expected = []

    def run(self) -> None:
        self.new.python("-m", "django", "migrate", "--verbosity", "0")
        self.one_version_runs(self.old)
        self.both_run()
        self.one_dies(self.old, self.new)
        self.one_dies(self.new, self.old)
        self.one_version_runs(self.new)
        print(f"  {len(self.expected)} tasks, none lost")

    def enqueue(self, *versions: Version) -> Expected:
        added = [call for version in versions for call in version.call("enqueue", str(CALLS))]
        self.expected += added
        return added

    def one_version_runs(self, version: Version) -> None:
        """Before the first node is replaced, and after the last one was."""
        with ready(version.node("-w", "2")) as node:
            self.complete(self.enqueue(self.old, self.new), self.old, self.new)
            leave(node)
        print(f"  only {version.name}: what both enqueue is run")

    def both_run(self) -> None:
        with ready(self.old.node("-w", "2")) as old, ready(self.new.node("-w", "2")) as new:
            ran = self.complete(self.enqueue(self.old, self.new), self.old, self.new)
            for process in (old, new):
                leave(process)
        print(f"  both: {dict(ran)}")

    def one_dies(self, victim: Version, other: Version) -> None:
        """The machine of one node is gone; the other's node runs what that one was running."""
        gate = self.folder / f"{victim.name}-gate"
        started = self.folder / f"{victim.name}-started-"
        with ready(victim.node("-w", str(HELD))) as node:
            held = victim.call("hold", str(gate), str(started), str(HELD))
            wait_until(lambda: files(started) == HELD, DONE, "the tasks to start")
            node.kill()
        gate.touch()
        with ready(other.node("-w", "2")) as survivor:
            expected = [[id, "SUCCESSFUL", None] for id in held]
            ran = self.complete(expected, other, ignore_values=True)
            assert set(ran) == {other.name}, ran
            leave(survivor)
        print(f"  {victim.name} is killed: {other.name} rescues what it ran")

    def complete(
        self, expected: Expected, *readers: Version, ignore_values: bool = False
    ) -> Counter[str]:
        """Waits until all is finished, as every reader sees it; returns who ran how many."""
        text = json.dumps([id for id, _, _ in expected])
        ran: Counter[str] = Counter()
        for reader in readers:
            wait_until(lambda r=reader: finished(r.call("look", text)), DONE, "all to be finished")
            found = reader.call("look", text)
            seen = [row[: 2 if ignore_values else 3] for row in found]
            assert seen == [row[: 2 if ignore_values else 3] for row in expected], reader.name
            ran = Counter(row[3][-1].rsplit("-", 2)[0].split("-")[0] for row in found)
        return ran


def finished(rows: Iterable[list[Any]]) -> bool:
    return all(status in ("SUCCESSFUL", "FAILED") for _, status, _, _ in rows)


def files(prefix: Path) -> int:
    return len(list(prefix.parent.glob(f"{prefix.name}*")))


def ready(process: Process) -> Process:
    process.wait_for("ready", READY)
    return process


def leave(process: Process) -> None:
    code = process.terminate(EXIT)
    assert code == 0, f"{process.name} ended with {code} on SIGTERM\n{process.stderr}"


def upgrade(server: Server, commit: str) -> None:
    with server, tempfile.TemporaryDirectory(prefix="dbtasks-upgrade-") as name:
        folder = Path(name)
        print(f"{server.name} {server.version}, from {commit} to this checkout", flush=True)
        os.environ["DBTASKS_TEST_DATABASE_URL"] = server.url
        os.environ["DBTASKS_TEST_OPTIONS"] = json.dumps(OPTIONS)
        old = Version.of_commit("old", commit, folder / "old")
        new = Version.of_checkout("new", folder / "new")
        Upgrade(old, new, folder).run()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.upgrade",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--database", action="append", choices=list(SERVERS))
    parser.add_argument("--from", dest="commit", default=OLDEST, help=f"default: {OLDEST}")
    options = parser.parse_args(arguments)
    missing = 0
    for name in options.database or SERVERS:
        server = SERVERS[name]()
        if reason := server.available():
            print(f"{name}: SKIPPED, {reason}", file=sys.stderr)
            missing += 1
            continue
        upgrade(server, options.commit)
    return 1 if missing and (options.database or os.environ.get("CI") in ("true", "1")) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
