"""Names of queues that could not be asked for, or not be told apart, are refused."""

import pytest
from django.tasks.exceptions import InvalidTask

from tests.app import tasks

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", ["", " ", "email*", "*", " email", "email ", "a,b", "q" * 129])
def test_an_impossible_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidTask, match="queue_name"):
        tasks.noop.using(queue_name=name or "\t")


@pytest.mark.parametrize("name", ["email", "two words", "ünïcode", "a*b", "q" * 128])
def test_any_other_name_is_fine(name: str) -> None:
    assert tasks.noop.using(queue_name=name).queue_name == name
