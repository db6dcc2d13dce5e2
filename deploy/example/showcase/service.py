"""The supervisor as a child process of the demo."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANAGE = Path(__file__).resolve().parent.parent / "manage.py"
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_LINES = 20
DRAIN_SECONDS = 40  # the supervisor itself gives running tasks 30
QUIT_SECONDS = 5


class Supervisor:
    """`manage.py taskrunner` with its log in a file."""

    def __init__(self, workers: int, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            # A process group of its own: Ctrl-C is for the demo, which then asks for a drain.
            self.process = subprocess.Popen(
                [sys.executable, str(MANAGE), "taskrunner", "-w", str(workers), "-i", "demo"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self.process.poll()

    def drain(self) -> int:
        """SIGTERM: no new tasks, the running ones end. Returns the exit code.

        A Ctrl-C while it drains, or a drain that takes too long, ends it at once.
        """
        try:
            self.process.terminate()
            self.process.wait(DRAIN_SECONDS)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            self._quit()
        return self.process.wait()

    def _quit(self) -> None:
        """SIGQUIT: the tasks go back to the queue. What does not listen is killed."""
        self.process.send_signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(QUIT_SECONDS)
            return
        # Its workers notice that they lost their parent, and leave.
        self.process.kill()

    def last_lines(self) -> str:
        """The end of its log, to be shown when something went wrong."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LAST_LINES:]) or "(it wrote nothing)"


@contextmanager
def supervised(workers: int, log: Path) -> Iterator[Supervisor]:
    """A running supervisor; drained when the block is left, whatever the reason."""
    with interruption_held() as held:
        supervisor = Supervisor(workers, log)
    try:
        if held:
            raise KeyboardInterrupt
        yield supervisor
    finally:
        supervisor.drain()


@contextmanager
def interruption_held() -> Iterator[list[int]]:
    """Notes a Ctrl-C instead of raising it: between fork and return nobody else has the pid."""
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in ENDING_SIGNALS
    }
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
