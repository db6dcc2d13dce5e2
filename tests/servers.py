"""Throwaway database servers: a PostgreSQL or a MariaDB in a temporary folder, gone at the end.

    with PostgreSQL() as server:
        connect_to(server.url)

They listen on a free port of 127.0.0.1 and read none of the machine's configuration, so that a
server which already runs here does not matter. ``stop``, ``kill`` and ``pause`` are what tests of
an outage use; the data survives them, and ``start`` brings the server back on the same port.

    python -m tests.servers postgresql -- command and its arguments

runs one command with ``DBTASKS_TEST_DATABASE_URL`` set.
"""

import argparse
import contextlib
import getpass
import importlib
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

import psutil

START_SECONDS = 90.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_LINES = 20


class Server(ABC):
    """A database that tests can reach: ``url`` and ``version`` are known once it has started."""

    name: str
    lane: str = ""  # what its run is called, if not by the server's name
    pytest_arguments: tuple[str, ...] = ()  # which of the tests are to run on it

    def __init__(self) -> None:
        self.url = ""
        self.version = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def available(self) -> str | None:
        """None, or why this database cannot be had here and what to install."""
        return None

    @abstractmethod
    def start(self) -> None:
        """Return when connections are accepted. Raises RuntimeError with the end of the log."""

    @abstractmethod
    def close(self) -> None:
        """Stop the server and remove its data."""


class SQLite(Server):
    """A file in a temporary folder."""

    name = "sqlite"

    def start(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="dbtasks-sqlite-")
        self.url = f"sqlite:///{self.folder}/database.sqlite3"
        self.version = sqlite3.sqlite_version

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Daemon(Server):
    """A server process of our own, or, where the environment names a URL, one that already runs."""

    override: ClassVar[str]
    client: ClassVar[tuple[str, str]]
    programs: ClassVar[tuple[str, ...]]
    packages: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]

    def __init__(self, *, durable: bool = False) -> None:
        """``durable``: commits reach the disk, as in production; tests are quicker without."""
        super().__init__()
        self.durable = durable
        self.external = os.environ.get(self.override)
        self.account: str | None = None
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def available(self) -> str | None:
        module, install = self.client
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{module} cannot be imported ({error}): {install}"
        missing = [program for program in self.programs if not self.program(program)]
        if missing and not self.external:
            return f"{', '.join(missing)} not found: apt-get install {self.packages}"
        return None

    def start(self) -> None:
        if self.external:
            self.url = self.external
        elif self._process is None:
            if self._folder is None:
                self._create()
            self._launch()
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the process and keep its data. SIGKILL follows if it does not leave in time."""
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(self.stop_signal)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def restart(self) -> None:
        self._own_process()
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL the server and the processes it forked, as the kernel does when out of memory."""
        for process in self._family():
            _send(process, signal.SIGKILL)
        self._own_process().wait()
        self._process = None

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, as when a network drops packets."""
        # The parent first: it cannot fork one more while we look at its children.
        self._own_process().send_signal(signal.SIGSTOP)
        for process in self._family():
            _send(process, signal.SIGSTOP)

    def resume(self) -> None:
        for process in self._family():
            _send(process, signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def folder(self) -> Path:
        assert self._folder is not None, "the server was never started"
        return self._folder

    @classmethod
    @abstractmethod
    def program(cls, name: str) -> str | None:
        """The path of one of the server's programs, or None."""

    @abstractmethod
    def initialise(self) -> list[str]:
        """The command that creates the data in ``folder``."""

    @abstractmethod
    def command(self) -> list[str]:
        """The command that is the server, in the foreground."""

    @abstractmethod
    def probe(self) -> str:
        """Connect and return the server's version. Raises the client library's error."""

    @abstractmethod
    def own_url(self) -> str:
        """The URL of the server that we started."""

    def _create(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix=f"dbtasks-{self.name}-"))
        if self.account:
            shutil.chown(self._folder, self.account)
        self.port = _free_port()
        if self._spawn(self.initialise()).wait():
            raise RuntimeError(f"{self.name} could not be initialised:\n{self._log()}")

    def _launch(self) -> None:
        self._process = self._spawn(self.command())
        self.url = self.own_url()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        whom: dict[str, Any] = {}
        if self.account:
            group = pwd.getpwnam(self.account).pw_gid
            whom = {"user": self.account, "group": group, "extra_groups": []}
        with open(self.folder / "server.log", "ab") as log:
            # A session of its own: Ctrl-C at the terminal is for the tests, which then stop us.
            return subprocess.Popen(
                command,
                cwd=self.folder,
                # MariaDB clears its folder for temporary tables at the start, others' included.
                env=os.environ | {"TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **whom,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.version = self.probe()
                return
            except Exception as error:
                ended = self._process is not None and self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    what = "ended at once" if ended else f"not ready in {START_SECONDS:.0f} s"
                    raise RuntimeError(f"{self.name}: {what} ({error})\n{self._log()}") from error
            time.sleep(POLL_SECONDS)

    def _log(self) -> str:
        if self.external:
            return f"Is the URL in {self.override} the right one?"
        log = (self.folder / "server.log").read_text(errors="replace")
        return "\n".join(log.splitlines()[-LOG_LINES:])

    def _own_process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(
                f"no {self.name} process of ours runs: unset {self.override}, or start() it first"
            )
        return self._process

    def _family(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._own_process().pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class PostgreSQL(Daemon):
    """The newest PostgreSQL in /usr/lib/postgresql, or the one on PATH."""

    name = "postgresql"
    override = "DBTASKS_TEST_POSTGRESQL_URL"
    client = ("psycopg", 'pip install "psycopg[binary]"')
    programs = ("initdb", "postgres")
    packages = "postgresql"
    stop_signal = signal.SIGQUIT  # what `pg_ctl stop -m immediate` sends

    def __init__(self, *, durable: bool = False) -> None:
        super().__init__(durable=durable)
        # PostgreSQL refuses to run as root.
        self.account = "postgres" if os.geteuid() == 0 else None

    def available(self) -> str | None:
        if self.account and not self.external:
            try:
                pwd.getpwnam(self.account)
            except KeyError:
                return f"no user postgres, and it refuses root: apt-get install {self.packages}"
        return super().available()

    @classmethod
    def program(cls, name: str) -> str | None:
        packaged = [
            path
            for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
            if path.parts[-3].isdecimal()
        ]
        if packaged:
            return str(max(packaged, key=lambda path: int(path.parts[-3])))
        return shutil.which(name)

    def initialise(self) -> list[str]:
        return [
            str(self.program("initdb")),
            *("--pgdata", str(self.folder / "data"), "--username", "dbtasks"),
            *("--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
        ]

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "max_connections": 200,
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return [
            str(self.program("postgres")),
            *("-D", str(self.folder / "data")),
            *(word for key, value in options.items() for word in ("-c", f"{key}={value}")),
        ]

    def own_url(self) -> str:
        return f"postgresql://dbtasks:dbtasks@127.0.0.1:{self.port}/postgres"

    def probe(self) -> str:
        psycopg = importlib.import_module("psycopg")
        with psycopg.connect(self.url, connect_timeout=5) as connection:
            return str(connection.execute("SHOW server_version").fetchone()[0]).split()[0]


class MariaDB(Daemon):
    """MariaDB from PATH, with buffers small enough for a laptop."""

    name = "mariadb"
    override = "DBTASKS_TEST_MARIADB_URL"
    packages = "mariadb-server libmariadb-dev pkg-config gcc"
    client = ("MySQLdb", f"apt-get install {packages}, then make env")
    programs = ("mariadb-install-db", "mariadbd")
    stop_signal = signal.SIGTERM

    @classmethod
    def program(cls, name: str) -> str | None:
        # Debian keeps the server in /usr/sbin, which is not on everybody's PATH.
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        return shutil.which(name, path=path)

    def initialise(self) -> list[str]:
        grants = (
            "CREATE USER IF NOT EXISTS 'dbtasks'@'127.0.0.1' IDENTIFIED BY 'dbtasks';\n"
            "GRANT ALL PRIVILEGES ON *.* TO 'dbtasks'@'127.0.0.1' WITH GRANT OPTION;\n"
            "CREATE DATABASE IF NOT EXISTS dbtasks CHARACTER SET utf8mb4;\n"
        )
        (self.folder / "grants.sql").write_text(grants)
        return [
            str(self.program("mariadb-install-db")),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        ]

    def command(self) -> list[str]:
        return [
            str(self.program("mariadbd")),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--user={getpass.getuser()}"),
            *(f"--socket={self.folder / 'socket'}", f"--pid-file={self.folder / 'pid'}"),
            *("--bind-address=127.0.0.1", f"--port={self.port}", "--skip-name-resolve"),
            *(f"--init-file={self.folder / 'grants.sql'}", "--character-set-server=utf8mb4"),
            *("--max-connections=200", "--innodb-buffer-pool-size=64M", "--skip-log-bin"),
            f"--innodb-flush-log-at-trx-commit={1 if self.durable else 0}",
        ]

    def own_url(self) -> str:
        return f"mysql://dbtasks:dbtasks@127.0.0.1:{self.port}/dbtasks"

    def probe(self) -> str:
        parts = urlsplit(self.url)
        connection = importlib.import_module("MySQLdb").connect(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            connect_timeout=5,
        )
        try:
            cursor = connection.cursor()
            cursor.execute("SELECT VERSION()")
            return str(cursor.fetchone()[0]).split("-")[0]
        finally:
            connection.close()


SERVERS: dict[str, type[Server]] = {server.name: server for server in (SQLite, PostgreSQL, MariaDB)}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _send(process: psutil.Process, signal_: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_)


def main(arguments: list[str]) -> int:
    """Run a command beside a server; its exit code is ours (69, EX_UNAVAILABLE: no server)."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers")
    parser.add_argument("database", choices=SERVERS)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- command")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("name a command: python -m tests.servers postgresql -- pytest tests")
    server = SERVERS[options.database]()
    if reason := server.available():
        print(f"{server.name}: {reason}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    with server:
        environment = os.environ | {"DBTASKS_TEST_DATABASE_URL": server.url}
        return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
