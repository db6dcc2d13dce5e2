"""The pages of the documentation, and their fenced blocks.

What a block is, its language says; a comment before it can say more:

    <!-- test: create FILE -->, append FILE, shell, shell background, python, log TEXT
        a step of the page's story, which is followed in an empty project (test_docs_stories.py)
    <!-- on: postgresql -->
        it is for that database only (sqlite, postgresql, mysql)
    <!-- not run: REASON -->
        it is not executed, and why; it is still read as far as its language can be

All others are executed in tests/test_docs_blocks.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<marks>(?:^ *<!-- (?:test|on|not run): [^>]*? -->\n+)*)"
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- (test|on|not run): ([^>]*?) -->")


@dataclass(frozen=True)
class Block:
    """`test`, `on`, `not_run`: what the comments before it say; "" if they do not."""

    page: Path
    line: int
    language: str
    text: str
    test: str = ""
    on: str = ""
    not_run: str = ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """README.md and all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        marks = {key.replace(" ", "_"): value for key, value in MARK.findall(match["marks"])}
        indent = match["indent"]
        lines = match["text"].splitlines(keepends=True)
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start("language")) + 1,
                language=match["language"],
                text="".join(line.removeprefix(indent) for line in lines),
                **marks,
            )
        )
    return found


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]
