"""Virtual months of periodic tasks through the real planner and a real database.

Random schedules, zones and policies; nodes that crash at any statement of a tick; deploys, edits,
pauses, outages and a clock that is set back. An independent model says which occurrences there must
be; it knows nothing of the product's code but the words of its documentation.

    DBTASKS_SIMULATION_STEPS=20000 DBTASKS_SIMULATION_SEED=7 make test ARGS="-k simulation"
"""

from __future__ import annotations

import os

import pytest

from tests.simulation import World

STEPS = int(os.environ.get("DBTASKS_SIMULATION_STEPS", "200"))
SEED = int(os.environ.get("DBTASKS_SIMULATION_SEED", "1"))


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_simulated_months_agree_with_the_model(nodes: int) -> None:
    with World.begun(1000 * SEED + nodes, nodes) as world:
        for _ in range(STEPS):
            world.step()
        world.finish()
        print(world.report())
    assert world.checked > 0
    assert world.crashes > 0
    assert world.waits > 0
