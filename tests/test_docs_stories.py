"""Pages that tell a story, each followed from its top to its bottom in an empty project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, Block, blocks, pages
from tests.test_quickstart import Quickstart, quickstart

pytestmark = pytest.mark.once

LEAVES = 60.0  # seconds for a node that the page itself has told to stop


def stories() -> list[Path]:
    """Pages with steps; the README's are followed in test_quickstart.py."""
    return [page for page in pages() if page != ROOT / "README.md" and steps(page)]


def steps(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.test]


@pytest.mark.parametrize("page", stories(), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_page_works_as_it_is_written(page: Path, tmp_path: Path) -> None:
    with quickstart(tmp_path) as story:
        install_script(story)
        for block in steps(page):
            what, _, argument = block.test.partition(" ")
            if what == "log":
                story.background[-1].wait_for(argument)
            else:
                story.follow(what, argument, block.text)
        for process in story.background:
            if "kill -TERM" in page.read_text(encoding="utf-8"):
                process.wait(LEAVES)


def install_script(story: Quickstart) -> None:
    """As pip does it."""
    script = story.folder / ".scripts" / "dbtasks-supervisor"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dbtasks_supervisor.cli "$@"\n')
    script.chmod(0o755)
