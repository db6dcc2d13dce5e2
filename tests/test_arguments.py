"""Which values are written as JSON without being looked at twice, and that this loses nothing."""

import enum
import json
from typing import Any

import pytest
from django.tasks import task_backends
from django.utils.json import normalize_json
from hypothesis import given
from hypothesis import strategies as st

from dbtasks import task
from dbtasks.fields import dump_json, explain_not_json, is_plain_json
from tests.app import tasks

pytestmark = pytest.mark.once


class Text(str):
    pass


class Colour(enum.IntEnum):
    RED = 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STRANGE = st.binary() | st.just(Text("x")) | st.just(Colour.RED) | st.complex_numbers()
KEYS = st.text() | st.integers() | st.just(Text("key"))
VALUES = st.recursive(
    SCALARS | STRANGE,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.frozensets(st.integers())
        | st.dictionaries(KEYS, inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_plain_is_what_normalizing_and_checking_let_through(value: Any) -> None:
    if not is_plain_json(value):
        return
    normalized = normalize_json(value)
    if explain_not_json(normalized, "it") is None:
        assert dump_json(value) == dump_json(normalized)
        assert json.loads(dump_json(value)) == normalized
    else:
        with pytest.raises(ValueError):
            dump_json(value)


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "x", [], {}, (1, "x"), [{"a": [None, {"b": (1, 2)}]}]]
)
def test_plain_values(value: Any) -> None:
    assert is_plain_json(value)


@pytest.mark.parametrize(
    "value", [b"x", {1}, Text("x"), Colour.RED, {1: 2}, {Text("x"): 1}, [[b"x"]], {"a": object()}]
)
def test_values_that_need_a_closer_look(value: Any) -> None:
    assert not is_plain_json(value)


@task
def other(number: int) -> int:
    return number


def test_a_task_is_validated_once_and_not_taken_for_another() -> None:
    backend: Any = task_backends["default"]
    shape = backend.shape_of(other)
    assert backend.shape_of(other) is shape
    assert backend.shape_of(tasks.noop).path == tasks.noop.module_path
    for number in range(2500):  # each is gone when the next one comes, perhaps to its address
        assert backend.shape_of(other.using(priority=number % 100)).priority == number % 100
    assert backend.shape_of(other) == shape
