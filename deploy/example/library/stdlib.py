"""The input: the modules of Python's standard library, as they lie on this machine."""

import sysconfig
from pathlib import Path

STDLIB = Path(sysconfig.get_path("stdlib"))
# Tests, and what is not the library's own.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}


def module_paths(limit: int = 500) -> list[Path]:
    """At most `limit` modules, the same ones each time: the outer packages first, then by name.

    Raises FileNotFoundError where the library is not there as files (in a zip file, say).
    """
    found = [
        path for path in STDLIB.rglob("*.py") if LEFT_OUT.isdisjoint(path.relative_to(STDLIB).parts)
    ]
    if not found:
        raise FileNotFoundError(f"there are no modules of the standard library in {STDLIB}")
    return sorted(found, key=lambda path: (len(path.parts), path))[:limit]


def module_name(path: Path | str) -> str:
    """The dotted name, `json.decoder`; for a file from elsewhere just that of the file."""
    path = Path(path)
    inside = path.relative_to(STDLIB) if path.is_relative_to(STDLIB) else Path(path.name)
    return ".".join(inside.with_suffix("").parts).removesuffix(".__init__")
