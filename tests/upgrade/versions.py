"""A version of dbtasks in a folder of its own, from the history of this repository."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from tests.process import Process, supervise

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENT = (Path(__file__).parent / "client.py").read_text(encoding="utf-8")
PARTS = ("dbtasks", "supervisor", "tests")
CALL_SECONDS = 120


class Version:
    """Its code, and what can be done with it on the database that the environment names."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        # The package is imported by another name than its folder has.
        (folder / "dbtasks_supervisor").symlink_to(folder / "supervisor")

    @classmethod
    def of_commit(cls, name: str, commit: str, folder: Path) -> Version:
        """Raises RuntimeError where the history does not reach back to the commit."""
        command = ["git", "archive", commit, *PARTS]
        packed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if packed.returncode:
            told = packed.stderr.decode(errors="replace").strip()
            raise RuntimeError(f"{' '.join(command)}: {told} (is this a clone without history?)")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        return cls(name, folder)

    @classmethod
    def of_checkout(cls, name: str, folder: Path) -> Version:
        folder.mkdir()
        for part in PARTS:
            (folder / part).symlink_to(ROOT / part)
        return cls(name, folder)

    @property
    def env(self) -> dict[str, str]:
        # Before the installed one, which is the checkout.
        return {"PYTHONPATH": str(self.folder), "DJANGO_SETTINGS_MODULE": "tests.settings"}

    def call(self, *words: str) -> Any:
        """What client.py prints."""
        return json.loads(self.python("-c", CLIENT, *words))

    def python(self, *words: str) -> str:
        ran = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS,
            check=False,
        )
        if ran.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(words[-3:])}\n{ran.stdout}{ran.stderr}")
        return ran.stdout

    def node(self, *flags: str) -> Process:
        command = (sys.executable, "-m", "dbtasks_supervisor.cli")
        return supervise(*flags, env=self.env, cwd=self.folder, command=command, name=self.name)
