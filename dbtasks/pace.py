"""How many rows a worker claims at once: what it will run in a few milliseconds.

More would make a claim cheaper still, but let a task of a higher priority wait, and a result stay
unwritten. So the number grows while all goes as foreseen, and falls back when it does not.
"""

from __future__ import annotations

# Seconds of work in one claim. A task of a higher priority waits for the rest of it, so it stays
# below 50 ms; with less, tasks of 10 ms would be claimed one by one.
WORTH = 0.043
MOST = 400  # rows, whatever the database
NEWEST = 0.25  # the share of the newest run in the moving mean of its task
MOST_PATHS = 4096


class Pace:
    """The moving mean of each task's run time, in seconds, and what follows from it.

    `most`: the greatest number of rows to be claimed at once; None lets us choose.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most or MOST
        self._means: dict[str, float] = {}
        self._limit = 1

    @property
    def limit(self) -> int:
        """How many rows to claim."""
        return self._limit

    def foresees(self, path: str) -> float:
        """The seconds that a run of this task takes; infinite for one that we do not know."""
        return self._means.get(path, float("inf"))

    def ran(self, path: str, seconds: float) -> None:
        mean = self._means.get(path)
        if mean is None:
            if len(self._means) >= MOST_PATHS:
                self._means.clear()
            self._means[path] = seconds
        else:
            self._means[path] = mean + NEWEST * (seconds - mean)

    def over(self, claimed: int, ran: int, seconds: float) -> None:
        """So many rows were claimed, and so many of them run, which took `seconds` in all."""
        if ran < claimed:
            self._limit = max(1, ran)
            return
        affordable = int(WORTH * ran / seconds) if seconds > 0.0 else self.most
        if claimed >= self._limit:
            self._limit = max(1, min(2 * self._limit, affordable, self.most))
        else:
            self._limit = max(1, min(self._limit, affordable))
