"""docs/reference/ is what the code says; `make reference` writes it."""

import pytest

from dbtasks.declared import EXIT_CODES, OPTIONS, SIGNALS
from dbtasks.options import KNOWN_KEYS, Options
from dbtasks.policy import Policy
from dbtasks.tasks import OWN_OPTIONS
from dbtasks_supervisor import cli, signals
from tests import reference

pytestmark = pytest.mark.once


def test_the_pages_are_those_of_the_code() -> None:
    written = {
        path.name: path.read_text(encoding="utf-8") for path in reference.FOLDER.glob("*.md")
    }
    assert written == reference.pages(), "run `make reference`"


def test_the_index_has_every_page() -> None:
    written = (reference.FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert written == reference.index(), "run `make reference`"


def test_the_defaults_are_those_of_the_code() -> None:
    options, policy = Options(), Policy()
    assert (options.heartbeat, options.worker_timeout) == (10, 30)
    assert (options.catch_up, options.prefetch, options.database) == ("latest", None, "default")
    assert (options.immediate, options.signals, options.notify) == (False, True, True)
    assert (policy.max_attempts, policy.max_crashes, policy.backoff) == (1, 3, "exponential")
    assert (policy.timeout, policy.retain, policy.ack) == (None, None, "batched")


def test_what_is_declared_exists() -> None:
    assert set(OPTIONS) <= KNOWN_KEYS | set(OWN_OPTIONS)
    assert set(EXIT_CODES) <= set(vars(cli))
    assert set(SIGNALS) <= set(vars(signals))


def test_every_check_of_the_code_is_in_the_list() -> None:
    listed = {row[0].strip("`").removeprefix("dbtasks.") for row in reference.check_rows()}
    source = (reference.ROOT / "dbtasks" / "checks.py").read_text(encoding="utf-8")
    raised = set(reference.re.findall(r'id="dbtasks\.([EW]\d{3})"', source))
    assert raised <= listed
