"""OPTIONS: every key takes its good values, and refuses the others by name."""

import datetime
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.tasks import default_task_backend, task_backends
from django.test import override_settings

from dbtasks import Duration, Periodic
from dbtasks.options import KNOWN_KEYS, RUNNER_KEYS, Options, Problem, parse_options
from tests.app import tasks

pytestmark = pytest.mark.once
BACKEND = "dbtasks.backend.DatabaseBackend"


def configured(queues: tuple[str, ...] = (), **options: Any) -> override_settings:
    """For the time of a `with`: these OPTIONS on the default backend."""
    backend = {"BACKEND": BACKEND, "QUEUES": list(queues), "OPTIONS": options}
    return override_settings(TASKS={"default": backend})


def parse(**options: Any) -> Options:
    parsed, problems = parse_options("default", options)
    assert problems == []
    return parsed


def problems_of(options: object) -> list[Problem]:
    return parse_options("default", options)[1]


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("immediate", True, True),
        ("signals", False, False),
        ("notify", False, False),
        ("database", "default", "default"),
        ("heartbeat", "5s", 5.0),
        ("worker_timeout", datetime.timedelta(minutes=1), 60.0),
        ("prefetch", "auto", None),
        ("prefetch", 8, 8),
        ("catch_up", "all", "all"),
        ("catch_up_window", "2d", datetime.timedelta(days=2)),
        ("retry_for", ValueError, (ValueError,)),
        ("retry_for", ["builtins.OSError", KeyError], ("builtins.OSError", KeyError)),
    ],
)
def test_an_option_is_read(key: str, value: object, parsed: object) -> None:
    assert getattr(parse(**{key: value}), key) == parsed


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("max_attempts", 5, 5),
        ("backoff", "exponential", "exponential"),
        ("backoff", "30s", 30.0),
        ("backoff", [1, "1m", datetime.timedelta(hours=1)], (1.0, 60.0, 3600.0)),
        ("timeout", 2.5, 2.5),
        ("max_crashes", 0, 0),
        ("retain", Duration("1w"), 604_800.0),
        ("retain_failed", "30d", 2_592_000.0),
        ("ack", "immediate", "immediate"),
    ],
)
def test_a_default_for_tasks_is_read(key: str, value: object, parsed: object) -> None:
    assert getattr(parse(**{key: value}).policy, key) == parsed


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("immediate", "yes", "True or False"),
        ("signals", 1, "True or False"),
        ("notify", None, "True or False"),
        ("database", "nowhere", "no alias in DATABASES; there are: 'default'"),
        ("database", ["default"], "no alias in DATABASES; there are: 'default'"),
        ("heartbeat", "often", '"15m"'),
        ("heartbeat", 0, "at least 0.05 seconds"),
        ("worker_timeout", None, 'a Duration such as "10s"'),
        ("worker_timeout", -1, "negative"),
        ("prefetch", 0, '"auto" or a number from 1 to 1000'),
        ("prefetch", True, '"auto" or a number from 1 to 1000'),
        ("catch_up", "some", "'latest', 'all', 'skip'"),
        ("retry_for", int, "no exception class"),
        ("max_attempts", 0, "a whole number from 1 to 10000"),
        ("max_attempts", "5", "a whole number from 1 to 10000"),
        ("backoff", [], "the list is empty"),
        ("backoff", "slowly", '"exponential", a Duration or a list of Durations'),
        ("timeout", 0, "at least 0.001 seconds"),
        ("max_crashes", -1, "a whole number from 0 to 10000"),
        ("retain", "forever", '"1w2d3h4m5s"'),
        ("retain", {"app.task": "x"}, "'app.task'"),
        ("retain", {3: "1d"}, "not the dotted path of a task"),
        ("retain_failed", [], '"15m"'),
        ("ack", "later", '"batched" or "immediate"'),
        ("periodic", ["a.b"], "must map task paths to schedules"),
        ("periodic", {"a.b": "* * *"}, "'a.b'"),
        ("periodic", {3: "@daily"}, "not the dotted path of a task"),
        ("periodic", {"a.b": None}, "expected a crontab string"),
        ("periodic", {"a.b": Periodic("@daily", args="ab")}, "args must be a list"),
        ("periodic", {"a.b": Periodic("@daily", kwargs=["x"])}, "kwargs must be a mapping"),
        ("periodic", {"a.b": Periodic("@daily", timezone="Mars/Base")}, "'Mars/Base'"),
        ("periodic", {"a.b": Periodic("@daily", catch_up="some")}, "latest, all, skip"),
        ("periodic", {"a.b": Periodic("@daily", retain="x")}, "retain"),
        ("periodic", {"a.b": ["@daily", "@hourly"]}, "two entries are called 'a.b'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(key: str, value: object, allowed: str) -> None:
    (problem,) = problems_of({key: value})
    assert problem.key == key
    assert problem.message.startswith(f"TASKS['default']['OPTIONS'][{key!r}]: ")
    assert allowed in problem.message


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("builtins.Nothing", "cannot be imported"),
        ("tests.app.broken.Error", "cannot be imported"),
        ("builtins.len", "'builtins.len' is no exception class"),
    ],
)
def test_an_exception_that_cannot_be_had_is_refused_by_its_key(path: str, told: str) -> None:
    with configured(retry_for=[OSError, path]), pytest.raises(ImproperlyConfigured) as raised:
        _ = default_task_backend.settings
    assert str(raised.value).startswith("TASKS['default']['OPTIONS']['retry_for']: ")
    assert told in str(raised.value)


def test_every_key_is_covered_here() -> None:
    tested = {"immediate", "signals", "notify", "database", "heartbeat", "worker_timeout"}
    tested |= {
        "prefetch",
        "catch_up",
        "catch_up_window",
        "retry_for",
        "max_attempts",
        "backoff",
        "timeout",
    }
    tested |= {"max_crashes", "retain", "retain_failed", "ack", "periodic"}
    assert tested | set(RUNNER_KEYS) == KNOWN_KEYS


def test_flags_of_the_runners_are_handed_on_to_them() -> None:
    assert parse(workers=3, queues=["a"]).runner == {"workers": 3, "queues": ["a"]}


def test_an_unknown_key_suggests_the_close_one() -> None:
    (problem,) = problems_of({"retian": "1d"})
    assert problem.message.startswith("TASKS['default']['OPTIONS']['retian']: unknown option.")
    assert "retain_failed" in problem.message
    assert problem.hint == "Did you mean 'retain'?"


def test_an_unknown_key_that_resembles_none_lists_them_all() -> None:
    (problem,) = problems_of({"zzz": 1})
    assert problem.hint == ""
    assert all(key in problem.message for key in KNOWN_KEYS)


@pytest.mark.parametrize("options", [None, [], "retain"])
def test_options_that_are_no_dictionary_are_refused(options: object) -> None:
    (problem,) = problems_of(options)
    assert str(problem).startswith("TASKS['default']['OPTIONS'] must be a dictionary")


@pytest.mark.parametrize(
    "options",
    [{"worker_timeout": "19s"}, {"heartbeat": "16s"}, {"heartbeat": 4, "worker_timeout": 7}],
)
def test_a_lease_shorter_than_two_heartbeats_is_refused(options: dict[str, Any]) -> None:
    (problem,) = problems_of(options)
    assert problem.key in options
    assert "worker_timeout must be at least twice the heartbeat" in problem.message


def test_a_lease_of_two_heartbeats_is_accepted() -> None:
    assert parse(heartbeat=15, worker_timeout=30).worker_timeout == 30


def test_several_wrong_keys_are_all_named() -> None:
    keys = {problem.key for problem in problems_of({"immediate": 1, "zzz": 1, "ack": 1})}
    assert keys == {"immediate", "zzz", "ack"}


def test_retain_by_path_takes_the_star_for_all_others() -> None:
    options = parse(retain={"*": "1d", "a.b": None, "a.c": "1h"})
    assert options.policy.retain == 86_400.0
    assert options.retain_by_path == {"a.b": None, "a.c": 3600.0}


def test_entries_of_one_task_have_names_of_their_own() -> None:
    entries = [Periodic("@daily", name="day"), Periodic("@hourly", name="hour"), "5m"]
    names = [entry.name for entry in parse(periodic={"a.b": entries}).periodic]
    assert names == ["day", "hour", "a.b"]


def test_an_entry_cannot_take_the_name_of_another_task() -> None:
    table = {"a.b": "@daily", "a.c": Periodic("@hourly", name="a.b")}
    (problem,) = problems_of({"periodic": table})
    assert "'a.c': two entries are called 'a.b'" in problem.message


def test_wrong_options_are_an_error_at_enqueue_and_not_at_import() -> None:
    with configured(immediate="yes", zzz=1):
        task = tasks.add.using(priority=5)  # as a decorator in a module would
        with pytest.raises(ImproperlyConfigured) as raised:
            task.enqueue(1)
    assert "['immediate']" in str(raised.value)
    assert "['zzz']" in str(raised.value)


def test_the_backend_of_a_wrong_configuration_can_still_be_made() -> None:
    with configured(periodic={"a.b": "never"}):
        assert default_task_backend.supports_defer
        with pytest.raises(ImproperlyConfigured, match="never"):
            _ = default_task_backend.settings


def test_an_alias_that_its_column_cannot_hold_is_refused() -> None:
    alias = "x" * 65
    refused = pytest.raises(ImproperlyConfigured, match="at most 64 characters")
    with override_settings(TASKS={alias: {"BACKEND": BACKEND}}), refused:
        _ = task_backends[alias].settings
