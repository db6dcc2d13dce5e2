"""Which queues a runner serves, and in which order of preference."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class QueueSelection:
    """Patterns in order of preference: a name, a prefix (`email*`) or `*`; minus `excluded` ones.

    Within one pattern, priority and then age decide across all the queues that it matches.
    """

    patterns: tuple[str, ...] = ("*",)
    excluded: tuple[str, ...] = ()

    @property
    def only(self) -> str | None:
        """The one queue that this selection can match, if it is just one exact name."""
        if len(self.patterns) == 1 and not self.excluded and not is_prefix(self.patterns[0]):
            return self.patterns[0]
        return None

    @property
    def everything(self) -> bool:
        return self.patterns == ("*",) and not self.excluded

    def preference(self, queue: str) -> int | None:
        """The index of the first pattern that matches `queue`, or None if none does."""
        if any(_matches(pattern, queue) for pattern in self.excluded):
            return None
        for index, pattern in enumerate(self.patterns):
            if _matches(pattern, queue):
                return index
        return None

    def without(self, names: Iterable[str]) -> QueueSelection:
        """The same but for these queues; itself if it has none of them."""
        ours = tuple(sorted(name for name in names if self.preference(name) is not None))
        return dataclasses.replace(self, excluded=self.excluded + ours) if ours else self

    def sql(self, column: str) -> tuple[str, list[str]]:
        """An SQL expression for `preference` (NULL: not served), with its parameters."""
        if self.everything:
            return "0", []
        cases, parameters = [], []
        for pattern in self.excluded:
            condition, values = _condition(pattern, column)
            cases.append(f"WHEN {condition} THEN NULL")
            parameters += values
        for index, pattern in enumerate(self.patterns):
            condition, values = _condition(pattern, column)
            cases.append(f"WHEN {condition} THEN {index}")
            parameters += values
        return f"CASE {' '.join(cases)} END", parameters

    def unusable(self, queues: Iterable[str]) -> list[str]:
        """The patterns that match none of `queues` (a backend's QUEUES; empty accepts any name)."""
        known = list(queues)
        if not known:
            return []
        return [
            pattern
            for pattern in (*self.patterns, *self.excluded)
            if not any(_matches(pattern, queue) for queue in known)
        ]

    def __str__(self) -> str:
        text = ",".join(self.patterns)
        return f"{text} except {','.join(self.excluded)}" if self.excluded else text


def select_queues(patterns: Sequence[str] = (), excluded: Sequence[str] = ()) -> QueueSelection:
    """A selection from what a user typed; nothing means all queues."""
    return QueueSelection(tuple(patterns) or ("*",), tuple(excluded))


def is_prefix(pattern: str) -> bool:
    return pattern.endswith("*")


def _matches(pattern: str, queue: str) -> bool:
    return queue.startswith(pattern[:-1]) if is_prefix(pattern) else queue == pattern


def _condition(pattern: str, column: str) -> tuple[str, list[str]]:
    if pattern == "*":
        return "1 = 1", []
    if is_prefix(pattern):
        # substr and not LIKE: LIKE ignores case on SQLite.
        return f"substr({column}, 1, {len(pattern) - 1}) = %s", [pattern[:-1]]
    return f"{column} = %s", [pattern]
