"""The configuration of a run: where a value comes from, and what is said about a wrong one."""

import argparse
import dataclasses
import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtasks_supervisor import options
from dbtasks_supervisor.config import (
    ConfigError,
    RunConfig,
    add_arguments,
    backend_alias,
    resolve,
)
from dbtasks_supervisor.options import SETTINGS

pytestmark = pytest.mark.once

NOTHING: Mapping[str, object] = {}


def parse(*arguments: str) -> argparse.Namespace:
    """Parse a command line."""
    parser = argparse.ArgumentParser(prog="dbtasks-supervisor")
    add_arguments(parser)
    return parser.parse_args(arguments)


def config(
    *arguments: str, env: Mapping[str, str] | None = None, opts: Mapping[str, object] = NOTHING
) -> RunConfig:
    """Resolve a command line with this environment and these OPTIONS."""
    return resolve(parse(*arguments), env or {}, opts)


def test_the_defaults() -> None:
    assert config() == RunConfig(
        workers=options._default_workers(),
        worker_id=socket.gethostname()[:64],
        backend="default",
        delay=None,
        periodic=True,
        queues=("*",),
        exclude_queues=(),
        mode="process",
        grace=30.0,
        max_tasks=None,
        max_memory=None,
        burst=False,
        reload=None,
        pidfile=None,
        status_file=None,
        metrics_port=None,
        check=False,
        healthcheck=False,
        log_format="text",
    )
    assert not any(config().is_explicit(setting.name) for setting in SETTINGS)


def test_the_table_and_the_configuration_have_the_same_fields() -> None:
    fields = [field.name for field in dataclasses.fields(RunConfig) if field.name != "sources"]
    assert [setting.name for setting in SETTINGS] == fields


def test_an_absent_flag_is_none_in_the_namespace() -> None:
    assert set(vars(parse()).values()) == {None}


FLAGS: list[tuple[list[str], str, object]] = [
    (["-w", "8"], "workers", 8),
    (["--workers", "1024"], "workers", 1024),
    (["-i", "web1"], "worker_id", "web1"),
    (["--worker-id=wäb.1:2"], "worker_id", "wäb.1:2"),
    (["--backend", "other"], "backend", "other"),
    (["--delay", "0.01"], "delay", 0.01),
    (["--delay", "3600"], "delay", 3600.0),
    (["--no-periodic"], "periodic", False),
    (["--queues", "a, email*,a,"], "queues", ("a", "email*")),
    (["--queues", "*"], "queues", ("*",)),
    (["--exclude-queues", "slow"], "exclude_queues", ("slow",)),
    (["--exclude-queues", ""], "exclude_queues", ()),
    (["--mode", "thread"], "mode", "thread"),
    (["--grace", "0"], "grace", 0.0),
    (["--max-tasks", "100"], "max_tasks", 100),
    (["--max-tasks", "0"], "max_tasks", None),
    (["--max-memory", "512M"], "max_memory", 512 * 1024**2),
    (["--max-memory", "1.5g"], "max_memory", 3 * 512 * 1024**2),
    (["--max-memory", "65536K"], "max_memory", 64 * 1024**2),
    (["--max-memory", "512 MiB"], "max_memory", 512 * 1024**2),
    (["--max-memory", "536870912"], "max_memory", 512 * 1024**2),
    (["--max-memory", "0"], "max_memory", None),
    (["--burst"], "burst", True),
    (["--reload"], "reload", True),
    (["--no-reload"], "reload", False),
    (["--pidfile", "/run/d.pid"], "pidfile", Path("/run/d.pid")),
    (["--status-file", "d.json"], "status_file", Path.cwd() / "d.json"),
    (["--check"], "check", True),
    (["--log-format", "json"], "log_format", "json"),
]


@pytest.mark.parametrize(("arguments", "name", "value"), FLAGS)
def test_a_flag_sets_its_value(arguments: list[str], name: str, value: object) -> None:
    resolved = config(*arguments)
    assert getattr(resolved, name) == value
    assert resolved.is_explicit(name)
    long = arguments[0].split("=")[0]
    assert resolved.sources[name] == {"-w": "--workers", "-i": "--worker-id"}.get(long, long)


ENVIRONMENT: list[tuple[str, str, str, object]] = [
    ("DBTASKS_WORKERS", "8", "workers", 8),
    ("DBTASKS_WORKER_ID", "web1", "worker_id", "web1"),
    ("DBTASKS_BACKEND", "other", "backend", "other"),
    ("DBTASKS_DELAY", "2.5", "delay", 2.5),
    ("DBTASKS_NO_PERIODIC", "yes", "periodic", False),
    ("DBTASKS_NO_PERIODIC", "off", "periodic", True),
    ("DBTASKS_QUEUES", "a,b", "queues", ("a", "b")),
    ("DBTASKS_EXCLUDE_QUEUES", "a", "exclude_queues", ("a",)),
    ("DBTASKS_MODE", "thread", "mode", "thread"),
    ("DBTASKS_GRACE", "5", "grace", 5.0),
    ("DBTASKS_MAX_TASKS", "7", "max_tasks", 7),
    ("DBTASKS_MAX_MEMORY", "1G", "max_memory", 1024**3),
    ("DBTASKS_BURST", "TRUE", "burst", True),
    ("DBTASKS_RELOAD", "1", "reload", True),
    ("DBTASKS_RELOAD", "no", "reload", False),
    ("DBTASKS_NO_RELOAD", "on", "reload", False),
    ("DBTASKS_PIDFILE", "/run/d.pid", "pidfile", Path("/run/d.pid")),
    ("DBTASKS_STATUS_FILE", "/run/d.json", "status_file", Path("/run/d.json")),
    ("DBTASKS_CHECK", "1", "check", True),
    ("DBTASKS_LOG_FORMAT", "json", "log_format", "json"),
]


@pytest.mark.parametrize(("variable", "text", "name", "value"), ENVIRONMENT)
def test_a_variable_sets_its_value(variable: str, text: str, name: str, value: object) -> None:
    resolved = config(env={variable: text})
    assert getattr(resolved, name) == value
    assert resolved.sources[name] == variable


def test_every_flag_has_its_variable_and_is_in_the_help() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    shown = parser.format_help()
    variables = {variable for setting in SETTINGS for variable, _ in setting.variables}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--") and flag != "--help":
                assert "DBTASKS_" + flag[2:].upper().replace("-", "_") in variables
                assert flag in shown
    assert all(variable in shown for variable in variables - {"DBTASKS_NO_RELOAD"})


def test_a_flag_beats_the_environment_beats_options_beats_the_default() -> None:
    opts: dict[str, object] = {"workers": 3, "queues": ["c"], "grace": 7, "retain": "7d"}
    env = {"DBTASKS_WORKERS": "2", "DBTASKS_QUEUES": "b"}
    resolved = config("-w", "1", env=env, opts=opts)
    assert (resolved.workers, resolved.queues, resolved.grace) == (1, ("b",), 7.0)
    assert resolved.delay is None
    assert dict(resolved.sources) | {
        "workers": "--workers",
        "queues": "DBTASKS_QUEUES",
        "grace": "OPTIONS['grace']",
        "delay": "default",
    } == dict(resolved.sources)


def test_options_take_python_values() -> None:
    resolved = config(
        opts={
            "workers": 2,
            "queues": ["a", "b"],
            "exclude_queues": (),
            "delay": timedelta(seconds=1.5),
            "grace": 10,
            "max_tasks": None,
            "max_memory": 1024**3,
        }
    )
    assert (resolved.workers, resolved.queues, resolved.exclude_queues) == (2, ("a", "b"), ())
    assert (resolved.delay, resolved.grace) == (1.5, 10.0)
    assert (resolved.max_tasks, resolved.max_memory) == (None, 1024**3)


def test_only_some_settings_come_from_options() -> None:
    opts = {"worker_id": "x", "burst": True, "pidfile": "/x", "mode": "thread", "database": "d"}
    assert config(opts=opts) == config()
    in_options = {setting.name for setting in SETTINGS if setting.in_options}
    assert in_options == {
        "workers",
        "queues",
        "exclude_queues",
        "delay",
        "grace",
        "max_tasks",
        "max_memory",
    }


def test_an_empty_variable_is_not_set() -> None:
    assert config(env={"DBTASKS_WORKERS": "", "DBTASKS_BURST": " "}) == config()


def test_call_command_passes_python_values() -> None:
    namespace = argparse.Namespace(workers=3, no_periodic=True, reload=False, queues=["a"])
    resolved = resolve(namespace, {}, {})
    assert (resolved.workers, resolved.periodic, resolved.reload) == (3, False, False)
    assert resolved.queues == ("a",)
    relaxed = resolve(argparse.Namespace(no_periodic=False), {"DBTASKS_NO_PERIODIC": "1"}, {})
    assert relaxed.periodic is False


WRONG: list[tuple[str, str, str]] = [
    ("--workers", "0", "a whole number from 1 to 1024"),
    ("--workers", "1025", "a whole number from 1 to 1024"),
    ("--workers", "two", "a whole number from 1 to 1024"),
    ("--workers", "2.0", "a whole number from 1 to 1024"),
    ("--workers", "9" * 5000, "a whole number from 1 to 1024"),
    ("--workers", "", "a whole number from 1 to 1024"),
    ("--worker-id", "", "1 to 64 printable characters without spaces and slashes"),
    ("--worker-id", "a b", "1 to 64 printable characters"),
    ("--worker-id", "a/b", "1 to 64 printable characters"),
    ("--worker-id", "a\x1bb", "1 to 64 printable characters"),
    ("--worker-id", "x" * 65, "1 to 64 printable characters"),
    ("--backend", " ", "a key of the setting TASKS"),
    ("--delay", "0", "a number of seconds from 0.01 to 3600"),
    ("--delay", "3601", "a number of seconds from 0.01 to 3600"),
    ("--delay", "nan", "a number of seconds from 0.01 to 3600"),
    ("--delay", "soon", "a number of seconds from 0.01 to 3600"),
    ("--queues", "", "queue names separated by commas"),
    ("--queues", ",", "queue names separated by commas"),
    ("--queues", "a b", "queue names separated by commas"),
    ("--queues", "*a", "queue names separated by commas"),
    ("--queues", "a**", "queue names separated by commas"),
    ("--exclude-queues", "a*b", "queue names separated by commas"),
    ("--mode", "fibre", "process or thread"),
    ("--grace", "inf", "a number of seconds of at least 0"),
    ("--max-tasks", "1.5", "a whole number of at least 1, or 0 for off"),
    ("--max-memory", "512", "a size of at least 16M, such as 512M or 2G, or 0 for off"),
    ("--max-memory", "lots", "a size of at least 16M"),
    ("--max-memory", "1T", "a size of at least 16M"),
    ("--pidfile", "", "a path of a file"),
    ("--log-format", "xml", "text or json"),
]


@pytest.mark.parametrize(("flag", "text", "allowed"), WRONG)
def test_a_wrong_value_is_named_with_its_source_and_what_is_allowed(
    flag: str, text: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(f"{flag}={text}")
    assert str(caught.value).startswith(f"{flag}: {text!r} is not allowed; use {allowed}")
    if text.strip():
        variable = "DBTASKS_" + flag[2:].upper().replace("-", "_")
        with pytest.raises(ConfigError) as caught:
            config(env={variable: text})
        assert str(caught.value).startswith(f"{variable}: {text!r} is not allowed; use {allowed}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workers", True),
        ("workers", 2.5),
        ("workers", [1]),
        ("queues", []),
        ("queues", {"a"}),
        ("queues", ["a", 1]),
        ("queues", ["a,b"]),
        ("delay", True),
        ("grace", timedelta(seconds=-1)),
        ("grace", 10**400),
        ("max_tasks", -1),
        ("max_tasks", False),
        ("max_memory", True),
        ("max_memory", -5),
    ],
)
def test_a_wrong_option_is_named_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        config(opts={key: value})
    assert str(caught.value).startswith(f"OPTIONS[{key!r}]: ")


@pytest.mark.parametrize("text", ["2", "ja", "truee", "yes please"])
def test_a_wrong_boolean_is_named_with_its_variable(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(env={"DBTASKS_NO_PERIODIC": text})
    assert str(caught.value) == (
        f"DBTASKS_NO_PERIODIC: {text!r} is not allowed; "
        "use 1, true, yes or on; or 0, false, no or off"
    )


def test_variables_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="contradict each other"):
        config(env={"DBTASKS_RELOAD": "1", "DBTASKS_NO_RELOAD": "1"})
    assert config(env={"DBTASKS_RELOAD": "1", "DBTASKS_NO_RELOAD": "0"}).reload is True


@pytest.mark.parametrize(
    ("queues", "excluded", "left"),
    [
        ("a", "a", False),
        ("email-a,email-b*", "email*", False),
        ("a,b", "*", False),
        ("*", "*", False),
        ("a,b", "a", True),
        ("*", "email*", True),
        ("email*", "email-a", True),
    ],
)
def test_excluding_every_queue_is_refused(queues: str, excluded: str, left: bool) -> None:
    arguments = ("--queues", queues, "--exclude-queues", excluded)
    if left:
        assert config(*arguments).exclude_queues == (excluded,)
    else:
        with pytest.raises(ConfigError, match=r"--exclude-queues: .* leaves nothing of .*--queues"):
            config(*arguments)


def test_a_health_check_needs_the_file_to_read() -> None:
    with pytest.raises(ConfigError, match="--status-file"):
        config("--healthcheck")
    assert config("--healthcheck", env={"DBTASKS_STATUS_FILE": "/run/d.json"}).healthcheck


def test_the_backend_is_known_before_its_options() -> None:
    assert backend_alias(parse(), {}) == "default"
    assert backend_alias(parse(), {"DBTASKS_BACKEND": "b"}) == "b"
    assert backend_alias(parse("--backend", "a"), {"DBTASKS_BACKEND": "b"}) == "a"


@pytest.mark.parametrize(
    ("host", "name"),
    [("web1", "web1"), ("x" * 100, "x" * 64), ("a b/c", "abc"), ("", "localhost")],
)
def test_a_hosts_name_that_is_no_workers_name_is_made_one(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert config().worker_id == name


def test_without_fork_the_workers_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    assert config().mode == "thread"


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(st.sampled_from([setting.name for setting in SETTINGS]), JUNK)
def test_whatever_is_given_is_a_configuration_or_a_configuration_error(
    name: str, value: Any
) -> None:
    for namespace, opts in (({name: value}, {}), ({}, {name: value})):
        try:
            resolved = resolve(argparse.Namespace(**namespace), {}, opts)
        except ConfigError as error:
            assert "use " in str(error) or "exclude fewer" in str(error) or "give" in str(error)  # noqa: PT017
        else:
            assert 1 <= resolved.workers <= 1024
            assert resolved.queues
            assert resolved.grace >= 0
