"""Arguments of calls as JSON text, and which argument it was that JSON cannot hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from django.tasks.base import Task as DjangoTask
from django.utils.json import normalize_json

from .fields import dump_json, explain_not_json, is_plain_json


def json_argument(task: DjangoTask, where: str, value: Any) -> str:
    """`value`, the call's `where` ("args" or "kwargs"), as text.

    Raises TypeError that names the argument which JSON cannot hold.
    """
    if not value:
        return "[]" if where == "args" else "{}"
    try:
        if is_plain_json(value):
            return dump_json(value)
        normalized = normalize_json(value)
        if explain_not_json(normalized, where) is None:
            return dump_json(normalized)
    except (TypeError, ValueError, RecursionError):
        pass
    raise _named_refusal(task, where, value)


def _named_refusal(task: DjangoTask, where: str, value: Any) -> TypeError:
    """An error that says which argument JSON cannot hold."""
    items: Iterable[tuple[str, Any]] = (
        _positions(task.func, value, task.takes_context) if where == "args" else value.items()
    )
    for name, item in items:
        if problem := _why_not_json(item, f"argument {name!r}"):
            return TypeError(
                f"{task.module_path}: {problem}. Arguments of tasks are stored as JSON; pass "
                "strings, numbers, booleans, None, lists and dictionaries of these."
            )
    return TypeError(f"{task.module_path}: {where} cannot be stored as JSON.")


def _why_not_json(item: Any, where: str) -> str | None:
    try:
        normalized = normalize_json(item)
    except (TypeError, ValueError):
        return explain_not_json(item, where)
    except RecursionError:
        return f"{where} is nested too deeply or contains itself"
    if problem := explain_not_json(normalized, where):
        return problem
    try:
        dump_json(normalized)
    except ValueError as error:  # a number with more digits than Python converts
        return f"{where} cannot be written: {error}"
    return None


def _positions(
    func: Callable[..., Any], args: Sequence[Any], takes_context: bool
) -> list[tuple[str, Any]]:
    try:
        names = list(inspect.signature(func).parameters)[1 if takes_context else 0 :]
    except (TypeError, ValueError):
        names = []
    names += [f"#{index + 1}" for index in range(len(names), len(args))]
    return list(zip(names, args, strict=False))
