"""What is seen of the demo: one line that is redrawn on a terminal, plain lines in a pipe."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

REDRAW_SECONDS = 0.1
PLAIN_SECONDS = 1.0
MAX_BAR = 30
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
BOLD, GREEN, GREY, PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[90m", "\x1b[0m"
CLEAR_REST = "\x1b[K"


class Screen:
    """Text output. Colours: only on a terminal, and not with NO_COLOR (no-color.org)."""

    def __init__(self, output: TextIO) -> None:
        self.output = output
        # An output that cannot encode a bar shows question marks.
        if isinstance(output, TextIOWrapper):
            output.reconfigure(errors="replace", line_buffering=True)
        self.live = output.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self.colours = self.live and not os.environ.get("NO_COLOR")
        self._next_look = 0.0
        self._last_done = 0

    def say(self, text: str = "") -> None:
        self._write(f"{text}\n")

    def heading(self, text: str) -> None:
        self.say(f"\n{self._coloured(text, BOLD)}")

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Hides the cursor while progress is drawn in the block, and leaves the last line there."""
        self._next_look, self._last_done = 0.0, 0
        if not self.live:
            yield
            return
        try:
            self._write(HIDE_CURSOR)
            yield
        finally:
            self._write(f"{SHOW_CURSOR}\n")

    def is_due(self) -> bool:
        """Whether it is time for another look at the progress; then no more for a moment."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + (REDRAW_SECONDS if self.live else PLAIN_SECONDS)
        return True

    def show_progress(self, done: int, total: int, told: str) -> None:
        """Shows `done` of `total` and what is `told` of it. In a pipe: if there is any news."""
        text = f"{done:>{len(str(total))}} of {total}  {told}"
        if not self.live:
            if done != self._last_done:
                self.say(text)
            self._last_done = done
            return
        columns = shutil.get_terminal_size().columns - 1
        width = min(MAX_BAR, columns // 3)
        told_width = max(columns - width - 2, 0)
        # One write, and nothing is erased before it is drawn over: no flicker.
        self._write(f"\r{self._bar(done, total, width)}  {text[:told_width]}{CLEAR_REST}")

    def _bar(self, done: int, total: int, width: int) -> str:
        filled = width * done // max(total, 1)
        rest = "━" if self.colours else "─"
        return self._coloured("━" * filled, GREEN) + self._coloured(rest * (width - filled), GREY)

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{PLAIN}" if self.colours else text

    def _write(self, text: str) -> None:
        self.output.write(text)
        self.output.flush()


def table(rows: Sequence[Mapping[str, str | int]]) -> str:
    """The rows below their keys; numbers on the right, with separators."""
    columns = []
    for key, first in rows[0].items():
        is_number = isinstance(first, int)
        cells = [key, *(f"{row[key]:,}" if is_number else str(row[key]) for row in rows)]
        width = max(map(len, cells))
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in cells])
    return "\n".join("  " + "  ".join(line).rstrip() for line in zip(*columns, strict=True))
