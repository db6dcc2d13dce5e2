"""A node does not grow: the small version of `make soak`."""

import pytest

from tests.soak.growth import Sample, growth, soak


@pytest.mark.once
def test_a_node_holds_no_more_after_thousands_of_tasks_and_ten_deaths(db: None) -> None:
    assert soak(2000, 10) == []


@pytest.mark.once
def test_what_has_grown_is_told() -> None:
    small, large = Sample(10, 1, 20 << 20), Sample(11, 2, 30 << 20)
    assert growth({"worker": small}, {"worker": small}) == []
    assert growth({"worker": small}, {"worker": large}) == [
        "worker: 10 descriptors became 11",
        "worker: 1 threads became 2",
        "worker: 20480 KiB became 30720 KiB",
    ]
