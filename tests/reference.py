"""`make reference`: docs/reference/ as the code says it, and the index docs/README.md.

What a value may be and what it means is in dbtasks/declared.py, or beside the code that reads it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
GENERATED = "<!-- Written by `make reference`. Change the code, not this page. -->"
LANGUAGES = ("dbtasks", "supervisor")


def page(title: str, intro: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", GENERATED, " ".join(intro.split()), *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def options() -> str:
    from dbtasks.declared import OPTIONS, UNDECLARED
    from dbtasks.options import KNOWN_KEYS, POLICY_KEYS, RUNNER_KEYS
    from dbtasks.tasks import OWN_OPTIONS

    def rows(keys: Iterable[str]) -> list[list[str]]:
        return [
            [f"`{key}`", known.takes, known.default, known.meaning]
            for key in sorted(keys)
            for known in [OPTIONS.get(key, UNDECLARED)]
        ]

    head = ("key", "takes", "default", "meaning")
    of_tasks = set(OWN_OPTIONS) | set(POLICY_KEYS)
    return page(
        "Options",
        """The keys of `TASKS["default"]["OPTIONS"]`. A Duration is `"1w2d3h4m5s"`, seconds, or a
        `timedelta`. What is unknown or wrong is refused by `manage.py check` and at the start,
        with the name of the key and what it may be.""",
        "## Of the backend",
        table(head, rows(KNOWN_KEYS - of_tasks - set(RUNNER_KEYS))),
        "## Of tasks",
        "Defaults for all tasks. All but `retain_failed` are options of the decorator, too: "
        "`@task(max_attempts=5)`, or `.using(max_attempts=5)`.",
        table(head, rows(KNOWN_KEYS & of_tasks)),
        "## Of the runners",
        "Defaults of the [flags](flags.md) of the same name.",
        table(head, rows(RUNNER_KEYS)),
    )


def flags() -> str:
    from dbtasks_supervisor.options import SETTINGS

    def rows() -> Iterator[list[str]]:
        for setting in SETTINGS:
            named = ", ".join(f"`{flag}`" for flag in (*setting.flags, *setting.off_flags))
            variables = ", ".join(f"`{variable}`" for variable, _ in setting.variables)
            meaning = setting.help[0].upper() + setting.help[1:] + "."
            meaning = re.sub(r"([\w-]*\*)", r"`\1`", meaning) if "*" in meaning else meaning
            default = setting.shown_default or ("off" if setting.switch else "none")
            key = f"`{setting.name}`" if setting.in_options else ""
            value = f" `{setting.metavar}`" if setting.metavar else ""
            if not (setting.switch or value):
                value = " `N`"
            yield [named + value, variables, key, default.replace("*", "`*`"), meaning]

    return page(
        "Flags",
        """Of `manage.py taskrunner` and `dbtasks-supervisor`. A flag wins over its variable in the
        environment, and both win over the key in `OPTIONS`, where there is one. A switch is on in
        the environment with `1`, `true`, `yes` or `on`.""",
        table(("flag", "variable", "key in OPTIONS", "default", "meaning"), rows()),
        "`dbtasks-supervisor` also takes `--settings MODULE` (or `DJANGO_SETTINGS_MODULE`), "
        "`--pythonpath DIR` and `-v`: `0` logs warnings, `1` the day's story, `2` every task. "
        "`manage.py taskrunner` takes Django's own.",
        "`manage.py migrate` reads `DBTASKS_MIGRATE_PATIENCE`, a Duration (default `10m`): for how "
        "long it tries to lock a table that others use.",
    )


def checks() -> str:
    return page(
        "System checks",
        """What `manage.py check` says about a backend, and every runner before it starts. Errors
        keep it from starting. The ids are stable: name them in `SILENCED_SYSTEM_CHECKS`. Those
        that ask the database need `manage.py check --database default`.""",
        table(("id", "what is wrong", "what to write"), check_rows()),
    )


def check_rows() -> list[list[str]]:
    """From the module's docstring, and with the message and hint of the call where there is one."""
    tree = ast.parse((ROOT / "dbtasks" / "checks.py").read_text(encoding="utf-8"))
    said = {
        match[1]: " ".join(match[2].split()).rstrip(" .")
        for match in re.finditer(
            r"([EW]\d{3}) (.*?)(?= ·|\Z|\n\n)", ast.get_docstring(tree) or "", re.DOTALL
        )
    }
    hints: dict[str, str] = {}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        words = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        id = words.get("id")
        if isinstance(id, ast.Constant) and str(id.value).startswith("dbtasks."):
            hints[str(id.value).removeprefix("dbtasks.")] = text_of(words.get("hint"))
    return [[f"`dbtasks.{id}`", said[id] + ".", hints.get(id, "")] for id in sorted(said)]


def text_of(node: ast.expr | None) -> str:
    """A string as it is written; what is filled in becomes …, or its usual value."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.FormattedValue(value=ast.Name(id="where")):
            return 'DATABASES["default"]'
        case ast.FormattedValue(value=ast.Call()):
            return "manage.py migrate"
        case ast.FormattedValue():
            return "…"
    return ""


def signals() -> str:
    from dbtasks.declared import SIGNALS
    from dbtasks_supervisor import signals as ours

    constants = {
        value: name
        for name, value in vars(ours).items()
        if isinstance(value, signal.Signals) and not name.startswith("WORKER_")
    }
    rows = [
        [f"{signum.name.removeprefix('SIG')}", SIGNALS[constants[signum]]]
        for signum in ours.PARENT_SIGNALS
        if constants.get(signum) in SIGNALS
    ]
    parts = [table(("signal", "meaning"), rows)]
    if sent := python_signals():
        parts += ["## Python signals", table(("signal", "meaning"), sent)]
    return page(
        "Signals",
        """To the supervisor, the process whose pid is in the `--pidfile`; its workers are told by
        it. What a drain may take, and who must wait for it: [deploys](../deploys.md).""",
        *parts,
    )


def python_signals() -> list[list[str]]:
    """Django's Signal objects in dbtasks.signals, with the docstring or comment beside them."""
    if importlib.util.find_spec("dbtasks.signals") is None:
        return []
    from django.dispatch import Signal

    module = importlib.import_module("dbtasks.signals")
    names = [name for name, value in vars(module).items() if isinstance(value, Signal)]
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    return [[f"`dbtasks.signals.{name}`", comment_on(name, lines)] for name in names]


def comment_on(name: str, lines: list[str]) -> str:
    """What stands above or below the assignment of a name: comments, or a string."""
    at = next(index for index, line in enumerate(lines) if re.match(rf"{name}\b.*=", line))
    above: list[str] = []
    for line in reversed(lines[:at]):
        if not line.startswith("#"):
            break
        above.insert(0, line.lstrip("# "))
    if above:
        return " ".join(above)
    text = "\n".join(lines[at + 1 :])
    below = re.match(r'\s*"""(.*?)"""', text, re.DOTALL)
    return " ".join(below[1].split()) if below else ""


def exit_codes() -> str:
    from dbtasks.declared import EXIT_CODES
    from dbtasks_supervisor import cli

    codes = sorted((value, name) for name, value in vars(cli).items() if name.startswith("EXIT_"))
    return page(
        "Exit codes",
        "Of `manage.py taskrunner` and `dbtasks-supervisor`.",
        table(
            ("code", "meaning"), ([str(value), EXIT_CODES.get(name, "")] for value, name in codes)
        ),
    )


def logging() -> str:
    from dbtasks.declared import LOG_FIELDS
    from dbtasks_supervisor.logs import EXTRA_FIELDS

    return page(
        "Logging",
        """All is logged by `dbtasks` and loggers below it. Arguments of tasks are never logged.
        Each record about a task has these extra fields, as far as they are known; with
        `--log-format json` they are keys of the line.""",
        table(
            ("field", "meaning"), ([f"`{key}`", LOG_FIELDS.get(key, "")] for key in EXTRA_FIELDS)
        ),
        "## Loggers",
        table(("logger", "in"), loggers()),
    )


def loggers() -> list[list[str]]:
    names: dict[str, set[str]] = {}
    for folder in LANGUAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            package = "dbtasks_supervisor" if folder == "supervisor" else folder
            for name in re.findall(r'getLogger\("(dbtasks[\w.]*)"\)', path.read_text("utf-8")):
                names.setdefault(name, set()).add(f"`{package}`")
    return [[f"`{name}`", ", ".join(sorted(where))] for name, where in sorted(names.items())]


def metrics() -> str | None:
    """From the families that are exposed; None without the module that has them."""
    if importlib.util.find_spec("dbtasks.metrics") is None:
        return None
    families = importlib.import_module("dbtasks.metrics").Families().all()
    rows = [
        [
            f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
            family.type,
            family.documentation,
        ]
        for family in families
    ]
    return page(
        "Metrics",
        "What the view `dbtasks.urls.metrics` shows, in Prometheus' text format.",
        table(("metric", "type", "meaning"), rows),
    )


# In this order; pages that are not named here come after them.
INDEX = {
    "Start": ("tutorial.md",),
    "Guides": (
        *("retries", "time-limits", "periodic", "several-queues", "separate-database"),
        *("pgbouncer", "systemd", "containers", "zero-downtime-deploys", "../deploys"),
        *("operations", "command-line", "admin", "monitoring", "logging", "signals"),
        *("incident-runbook", "upgrading"),
    ),
    "Reference": ("options", "flags", "checks", "signals", "exit-codes", "logging", "metrics"),
    "Explanation": ("guarantees", "queries", "capacity", "../benchmark", "../tested", "security"),
    "Coming from elsewhere": ("django-tasks-db", "dj-queue", "django-q2", "celery"),
}
FOLDERS = {
    "Start": "",
    "Guides": "guides",
    "Reference": "reference",
    "Explanation": "explanation",
    "Coming from elsewhere": "coming-from",
}


def index() -> str:
    """docs/README.md: every page with its title and the first sentence of it."""
    docs = FOLDER.parent
    parts = [
        "# Documentation of django-dbtasks",
        GENERATED,
        "What it is, and a quickstart: the [README](../README.md). What changed: the "
        "[changelog](../CHANGELOG.md).",
    ]
    for heading, first in INDEX.items():
        folder = docs / FOLDERS[heading]
        wanted = [(folder / name).with_suffix(".md").resolve() for name in first]
        found = [path for path in wanted if path.exists()]
        if folder != docs:
            found += [path for path in sorted(folder.glob("*.md")) if path not in wanted]
        lines = [f"* [{title(path)}]({path.relative_to(docs)}): {teaser(path)}" for path in found]
        parts += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").strip()


def teaser(path: Path) -> str:
    """The first sentence below the title, without links."""
    text = re.sub(r"<!--.*?-->|```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    paragraphs = [each for each in text.split("\n\n")[1:] if each.strip()[:1] not in ("", "#", "|")]
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraphs[0].split()))
    return re.split(r"(?<=[.:])\s", plain)[0].rstrip(":") if paragraphs else ""


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    made: dict[str, Any] = {
        "options.md": options(),
        "flags.md": flags(),
        "checks.md": checks(),
        "signals.md": signals(),
        "exit-codes.md": exit_codes(),
        "logging.md": logging(),
        "metrics.md": metrics(),
    }
    return {name: text for name, text in made.items() if text is not None}


def main() -> int:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}")
    (FOLDER.parent / "README.md").write_text(index(), encoding="utf-8")
    print("docs/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
