"""The numbers in docs/deploys.md are those of the code."""

import argparse
from pathlib import Path

import pytest

from dbtasks.options import Options
from dbtasks_supervisor import parent, report, vigil
from dbtasks_supervisor.config import add_arguments, resolve
from dbtasks_supervisor.worker import hard_limit

ROOT = Path(__file__).resolve().parent.parent
TEXT = " ".join((ROOT / "docs" / "deploys.md").read_text(encoding="utf-8").split())
pytestmark = pytest.mark.once

# What the others allow, as their manuals say: systemd-system.conf(5), the Pod's API, docker-stop(1)
SYSTEMD, KUBERNETES, DOCKER = 90, 30, 10


def default_grace() -> float:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return resolve(parser.parse_args([]), {}, {}).grace


def after_the_grace_period() -> float:
    """What a stop takes at most, beyond the grace period."""
    return parent.INTERRUPT_GRACE + 2 * parent.JANITOR_GRACE


def stated() -> list[str]:
    grace, rest = default_grace(), after_the_grace_period()
    whole = grace + rest
    return [
        f"(`worker_timeout`, {Options.worker_timeout:g} s)",
        f"| `--grace`, {grace:g} |",
        f"`dbtasks.TaskInterrupted` in what still runs | {parent.INTERRUPT_GRACE:g} |",
        f"the rows of what was killed go back | {parent.JANITOR_GRACE:g} |",
        f"the scheduler leaves | {parent.JANITOR_GRACE:g} |",
        f"**`--grace` + {rest:g} seconds**, {whole:g} with the default",
        f"those {rest:g} seconds more",
        f"| {SYSTEMD} s | nothing for a `--grace` up to {SYSTEMD - rest:g};",
        f"`TimeoutStopSec=` grace + {rest:g}",
        f"| {KUBERNETES} s | `terminationGracePeriodSeconds: {whole:g}` for the default, "
        f"or `--grace {KUBERNETES - rest:g}`",
        f"| {DOCKER} s | `docker stop -t {whole:g}`, `stop_grace_period: {whole:g}s`",
        f"a hook of 5 seconds needs `terminationGracePeriodSeconds: {whole + 5:g}`",
        f"asks every {report.EXTEND_EVERY:g} seconds for {report.EXTEND_BY:g} seconds more",
        f"killed {hard_limit(1) - 1:g} s later (or a tenth of the timeout, if that is more)",
        f"killed at {vigil.FAR_BEYOND:g} times the limit",
        f"killed after {vigil.STOPPED:g} s, unless continued",
        f"killed {parent.INTERRUPT_GRACE:g} s later",
    ]


@pytest.mark.parametrize("sentence", stated())
def test_a_number_in_the_docs_is_the_codes(sentence: str) -> None:
    assert sentence in TEXT


def test_an_extension_outlasts_the_interval_until_the_next_one() -> None:
    assert report.EXTEND_BY > 2 * report.EXTEND_EVERY


def test_the_hard_limit_is_a_second_or_a_tenth_later() -> None:
    assert [hard_limit(seconds) for seconds in (1, 10, 100)] == [2.0, 11.0, 110.0]
