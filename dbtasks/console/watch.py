"""`status --watch`: the whole screen, again and again; with rich in colours, else as plain text."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseError

from ..runner import database_backend
from .output import Output, aligned, cell
from .status import (
    WORKER_COLUMNS,
    WORKER_SPARE,
    Report,
    Section,
    counts_line,
    lines,
    report,
    sections,
    worker_rows,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

CLEAR = "\x1b[H\x1b[2J"
LONG = 10.0  # seconds; whoever runs a task for longer stands first
ALARMING = {"expired": "bold red", "starting": "yellow", "draining": "yellow", "paused": "yellow"}
Show = Callable[[Report | None, str], None]


def watch(backend: str, out: Output, rest: Callable[[], object]) -> None:
    """Until Ctrl-C. While the database is away it says so, and goes on.

    `rest` is called between two screens, and ends it if it returns something true.
    """
    engine = database_backend(backend).engine
    found: Report | None = None
    with contextlib.suppress(KeyboardInterrupt), screen(out) as show:
        while True:
            why = ""
            try:
                found = report(backend)
            except DatabaseError as error:
                why = engine.unavailable(error) or ""
                if not why:
                    raise
                engine.close()
            show(found, why)
            if rest():
                return


@contextlib.contextmanager
def screen(out: Output) -> Iterator[Show]:
    """What shows a report, and why it is an old one."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        yield lambda found, why: plain(found, why, out)
        return
    console = Console(file=out.stream, force_terminal=True)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield lambda found, why: live.update(colourful(found, why, console.width), refresh=True)


def plain(found: Report | None, why: str, out: Output) -> None:
    out.stream.write(CLEAR)
    out.line(headline(found, why))
    for line in lines(found, out.width) if found else []:
        out.line(line)
    if found and found.seen.workers:
        out.line()
        fitted = workers(found).fitted(out.width)
        for line in aligned(fitted.columns, fitted.rows):
            out.line(line)
    out.flush()


def workers(found: Report) -> Section:
    """Those first that have run one task for long; a screen may end before the idle ones."""
    rows = worker_rows(
        found.seen._replace(
            workers=sorted(
                found.seen.workers,
                key=lambda worker: -max(LONG, worker.task_seconds or 0.0),
            )
        )
    )
    return Section(WORKER_COLUMNS, rows, WORKER_SPARE)


def headline(found: Report | None, why: str) -> str:
    if why:
        since = f", last seen {found.seen.now:%H:%M:%S} UTC" if found else ""
        return f"NO ANSWER{since}: {why}"
    at = found.seen.now if found else datetime.datetime.now(datetime.UTC)
    return f"dbtasks at {at:%H:%M:%S} UTC (q or Ctrl-C ends)"


def colourful(found: Report | None, why: str, width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(headline(found, why), style="bold red" if why else "dim")]
    if found is not None:
        parts.append(Text(counts_line(found.seen), style="bold"))
        for trouble in found.troubles:
            style = "bold red" if trouble.severity == "error" else "yellow"
            parts.append(Text(f"{trouble.severity}: {cell(trouble.what)}", style=style))
            parts.append(Text(f"  {cell(trouble.advice)}", style="dim"))
        if not found.troubles:
            parts.append(Text("All is well.", style="green"))
        shown = [section for section in [*sections(found), workers(found)] if section.rows]
        parts += [table(section.fitted(width)) for section in shown]
    return Group(*parts)


def table(section: Section) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold cyan", padding=(0, 2, 0, 0))
    for at, name in enumerate(section.columns):
        numbers = all(isinstance(row[at], (int, float)) for row in section.rows)
        shown.add_column(name, justify="right" if numbers else "left", no_wrap=True)
    for row in section.rows:
        # As Text: what a task is called is no markup.
        cells = map(cell, row)
        shown.add_row(*(Text(text, ALARMING.get(text, ""), overflow="ellipsis") for text in cells))
    return Group("", shown)
