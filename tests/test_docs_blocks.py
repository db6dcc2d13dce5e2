"""Every block of code in README.md and docs/ works as it stands there.

A page's Python is executed from its top to its bottom in one module, by which tasks are known, so
that a block may use what those above it made. `TASKS` and `OPTIONS` that a block assigns must be
free of problems. Commands are parsed by the program that they start; SQL is executed.
"""

from __future__ import annotations

import configparser
import copy
import doctest
import json
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import django.tasks.signals
import pytest
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.db import connection
from django.dispatch import Signal

import dbtasks.signals
from dbtasks.backend import DatabaseBackend
from dbtasks_supervisor.config import add_arguments as add_runner_arguments
from dbtasks_supervisor.options import SETTINGS
from tests.pages import ROOT, Block, all_blocks, blocks, pages

BACKEND = "dbtasks.backend.DatabaseBackend"
STORY = ("create", "append", "shell", "shell background", "python", "log")
SIGNALS = [
    value
    for module in (dbtasks.signals, django.tasks.signals)
    for value in vars(module).values()
    if isinstance(value, Signal)
]


def label(page: Path) -> str:
    return str(page.relative_to(ROOT))


# What each page is made of


@pytest.mark.once
def test_every_comment_of_ours_stands_before_a_block() -> None:
    for page in pages():
        marks = re.findall(
            r"^ *<!-- (?:test|on|not run): ", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        found = [mark for b in blocks(page) for mark in (b.test, b.on, b.not_run) if mark]
        assert len(found) == len(marks), label(page)


@pytest.mark.once
def test_every_block_has_a_language_that_is_executed_or_a_reason_why_not() -> None:
    found = [
        f"{block.where}: ```{block.language}"
        for block in all_blocks()
        if not (block.not_run or block.test or block.language in READERS)
    ]
    assert found == []


@pytest.mark.once
def test_every_reason_is_one() -> None:
    found = [block.where for block in all_blocks() if block.not_run and len(block.not_run) < 10]
    assert found == []


@pytest.mark.once
def test_the_steps_of_stories_are_known() -> None:
    found = {
        block.test if block.test.startswith("shell") else block.test.partition(" ")[0]
        for block in all_blocks()
        if block.test
    }
    assert found <= set(STORY)


# Reading them


def read_text(block: Block, page: Page) -> None:
    """What a program prints."""


def read_json(block: Block, page: Page) -> None:
    for line in [block.text] if block.text.lstrip()[0] != "{" else documents(block.text):
        json.loads(line)


def documents(text: str) -> list[str]:
    """One document, or one for each line, as logs have it."""
    try:
        json.loads(text)
        return [text]
    except ValueError:
        return text.splitlines()


def read_toml(block: Block, page: Page) -> None:
    tomllib.loads(block.text)


def read_ini(block: Block, page: Page) -> None:
    """Of systemd and PgBouncer: a key may come twice."""
    parser = configparser.ConfigParser(
        strict=False, interpolation=None, allow_no_value=False, delimiters=("=",)
    )
    parser.read_string(block.text)
    assert parser.sections(), block.where


def read_yaml(block: Block, page: Page) -> None:
    import yaml

    assert list(yaml.safe_load_all(block.text)), block.where


def read_dockerfile(block: Block, page: Page) -> None:
    first = next(line for line in block.text.splitlines() if line and line[0] != "#")
    assert first.split()[0].isupper(), block.where


def read_sql(block: Block, page: Page) -> None:
    if block.on and block.on != connection.vendor:
        return
    with connection.cursor() as cursor:
        for statement in filter(str.strip, without_comments(block.text).split(";")):
            cursor.execute(statement)


def without_comments(sql: str) -> str:
    return re.sub(r"--.*", "", sql)


def read_python(block: Block, page: Page) -> None:
    if block.on and block.on != connection.vendor:
        return
    page.execute(block)


def read_doctest(block: Block, page: Page) -> None:
    test = doctest.DocTestParser().get_doctest(
        block.text, vars(page.module), block.where, str(block.page), block.line
    )
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=told.append, clear_globs=False)
    assert not runner.failures, "".join(told)


def read_shell(block: Block, page: Page) -> None:
    for line in commands(block.text, prompted=block.language == "console"):
        try:
            check_command(shlex.split(line, comments=True))
        except AssertionError as error:
            raise AssertionError(f"{block.where}: {line}: {error}") from error


READERS: dict[str, Callable[[Block, Any], None]] = {
    "": read_text,
    "text": read_text,
    "json": read_json,
    "toml": read_toml,
    "ini": read_ini,
    "yaml": read_yaml,
    "dockerfile": read_dockerfile,
    "sql": read_sql,
    "python": read_python,
    "pycon": read_doctest,
    "bash": read_shell,
    "sh": read_shell,
    "console": read_shell,
}


# Shell


def commands(text: str, prompted: bool) -> Iterator[str]:
    """The commands, of one line or more; in a console, those with a prompt."""
    command = ""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if not command and (stripped.startswith("#") or not stripped):
            continue
        if prompted and not command:
            if not stripped.startswith("$ "):
                continue  # what it printed
            stripped = stripped[2:]
        command = f"{command}\n{stripped}" if command else stripped
        if is_complete(command):
            yield command
            command = ""
    assert not command, f"a quote is not closed: {command}"


def is_complete(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True


def check_command(words: list[str]) -> None:
    """Raises AssertionError for a flag that one of our programs does not have.

    Lines for other programs are only split into words.
    """
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        check_variable(words.pop(0).partition("=")[0])
    if not words:
        return
    words = until_the_pipe(words)
    program = Path(words[0]).name
    if program in ("python", "python3") and words[1:2]:
        words, program = words[1:], Path(words[1]).name
        if program == "-m":
            words, program = words[1:], words[1]
    match program:
        case "manage.py":
            check_management_command(words[1:])
        case "dbtasks-supervisor":
            check_runner(words[1:])
        case "make":
            check_target(words[1:])


def until_the_pipe(words: list[str]) -> list[str]:
    ends = [at for at, word in enumerate(words) if word in ("|", "&", "&&", ">", ">>", "2>", ";")]
    return words[: ends[0]] if ends else words


def check_variable(name: str) -> None:
    if name.startswith("DBTASKS_"):
        assert name in known_variables(), f"no such variable: {name}"


def known_variables() -> set[str]:
    ours = {variable for setting in SETTINGS for variable, _ in setting.variables}
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "dbtasks").rglob("*.py")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "supervisor").rglob("*.py")]
    return ours | {name for text in texts for name in re.findall(r"\"(DBTASKS_[A-Z_]+)\"", text)}


def check_management_command(words: list[str]) -> None:
    name, *rest = words
    if name in ("startproject", "startapp", "runserver", "collectstatic", "createsuperuser"):
        return
    app = get_commands()[name]
    command = app if not isinstance(app, str) else load_command_class(app, name)
    parse(command.create_parser("manage.py", name), rest)


def check_runner(words: list[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser(prog="dbtasks-supervisor")
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    parser.add_argument("-v", "--verbosity", type=int)
    add_runner_arguments(parser)
    parse(parser, words)


def parse(parser: Any, words: list[str]) -> None:
    try:
        parser.parse_args(words)
    except SystemExit as error:
        if error.code:
            raise AssertionError(f"{parser.prog} does not take {' '.join(words)}") from error
    except Exception as error:  # Django's parser raises CommandError
        raise AssertionError(str(error)) from error


def check_target(words: list[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets, f"no such target of make: {word}"


# Python


class Page:
    """A module that grows with each block of one page."""

    def __init__(self, page: Path) -> None:
        name = re.sub(r"\W", "_", label(page).removesuffix(".md"))
        self.module = types.ModuleType(f"page_{name}")
        sys.modules[self.module.__name__] = self.module
        self.receivers = {signal: list(signal.receivers) for signal in SIGNALS}
        # What a settings file has already, as far as blocks add to it.
        vars(self.module).update(
            INSTALLED_APPS=list(settings.INSTALLED_APPS),
            DATABASES=copy.deepcopy(settings.DATABASES),
            MIDDLEWARE=[],
            LOGGING={},
        )

    def close(self) -> None:
        del sys.modules[self.module.__name__]
        # What it connected goes with it. Without a GIL Python 3.13 never frees a function, which
        # would hear signals for the rest of the tests.
        for signal, receivers in self.receivers.items():
            signal.receivers = receivers
            signal.sender_receivers_cache.clear()

    def execute(self, block: Block) -> None:
        # Lines as they are in the page, so that a traceback leads there.
        source = "\n" * block.line + block.text
        exec(compile(source, str(block.page), "exec"), vars(self.module))
        for name in ("TASKS", "OPTIONS"):
            if name in vars(self.module):
                self.check(block, name, vars(self.module).pop(name))

    def check(self, block: Block, name: str, value: Any) -> None:
        backends = {"default": {"OPTIONS": value}} if name == "OPTIONS" else value
        for alias, configured in backends.items():
            if configured.get("BACKEND", BACKEND) == BACKEND:
                backend = DatabaseBackend(alias, {"QUEUES": [], "OPTIONS": {}, **configured})
                assert list(map(str, backend.all_problems())) == [], block.where


@pytest.mark.parametrize("page", pages(), ids=label)
def test_every_block_works(page: Path, db: None) -> None:
    module = Page(page)
    try:
        for block in blocks(page):
            if not (block.test or block.not_run):
                READERS[block.language](block, module)
    finally:
        module.close()


@pytest.mark.once
def test_pages_link_to_what_exists() -> None:
    found = []
    for page in pages():
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                found.append(f"{label(page)}: {target}")
            elif anchor and file.suffix == ".md" and anchor not in anchors(file):
                found.append(f"{label(page)}: {target} (no such heading)")
    assert found == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}
