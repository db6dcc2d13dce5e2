"""deploy/container and deploy/kubernetes fit the program: flags, times, the example project.

No image is built here. What a container asks of the node is tested as process 1 of a namespace, in
test_pid1.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtasks_supervisor.config import RunConfig, add_arguments, resolve
from dbtasks_supervisor.parent import JANITOR_GRACE
from dbtasks_supervisor.status import MAX_AGE
from tests.test_deploy_docs import after_the_grace_period

pytestmark = pytest.mark.once

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
EXAMPLE = DEPLOY / "example"
DOCKERFILE = DEPLOY / "container" / "Dockerfile"
COMPOSE = DEPLOY / "container" / "compose.yaml"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
NODE = "dbtasks-supervisor"


def objects() -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in KUBERNETES]
    return [found for text in texts for found in yaml.safe_load_all(text)]


def the(kind: str, name: str) -> dict[str, Any]:
    (found,) = (o for o in objects() if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def pods() -> Iterator[dict[str, Any]]:
    for found in objects():
        if "template" in found.get("spec", {}):
            yield found["spec"]["template"]["spec"]


def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    return found


def parsed(words: list[str], environ: dict[str, str] | None = None) -> RunConfig:
    """What the node makes of its command line."""
    assert words[0] == NODE
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return resolve(parser.parse_args(words[1:]), environ or {}, {})


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


# The image


def instructions() -> list[tuple[str, str]]:
    text = DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_commands_are_in_the_exec_form() -> None:
    commands = [rest for word, rest in instructions() if word in ("CMD", "ENTRYPOINT", "RUN")]
    assert len(commands) >= 3
    assert all(isinstance(json.loads(command), list) for command in commands)


def test_the_image_runs_the_node_as_somebody_without_rights() -> None:
    last = dict(instructions())
    assert parsed(json.loads(last["CMD"]))
    user, _, group = last["USER"].partition(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) > 0
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert [word for word, _ in instructions()].count("FROM") == 2


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    root = DEPLOY.parent
    allowed = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            for source in sources:
                assert (root / source).exists(), source
                assert f"!{source}" in allowed


# Compose


def test_compose_gives_the_workers_the_time_that_a_stop_takes() -> None:
    workers = services()["workers"]
    config = parsed(workers["command"])
    assert seconds(workers["stop_grace_period"]) >= config.grace + after_the_grace_period()


def test_compose_asks_the_node_for_its_health() -> None:
    check = services()["workers"]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert parsed(check["test"][1:], image_environment()).healthcheck


def test_compose_waits_for_the_database_and_the_tables() -> None:
    web, workers = services()["web"], services()["workers"]
    assert web["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert workers["depends_on"] == {"database": {"condition": "service_healthy"}}


def test_no_password_is_written_down() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    found = re.findall(r"(?:POSTGRES_PASSWORD: |://\w+:)(\S+)", text)
    assert found
    assert all(value.startswith("${POSTGRES_PASSWORD:?") for value in found)
    assert not any("data" in found for found in objects() if found["kind"] == "Secret")


# Kubernetes


def test_every_object_has_what_kubernetes_asks_for() -> None:
    assert len(objects()) >= 7
    for found in objects():
        assert {"apiVersion", "kind", "metadata"} <= found.keys()
        assert re.fullmatch("[a-z0-9-]+", found["metadata"]["name"])


@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_the_schemas_of_kubernetes_know_every_word(which: int) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    version = kubernetes.utils.all_versions()[which]
    for found in objects():
        kubernetes.validate(found, version, strict=True)


def test_selectors_find_the_pods() -> None:
    for found in objects():
        if found["kind"] == "Deployment":
            labels = found["spec"]["template"]["metadata"]["labels"]
            assert found["spec"]["selector"]["matchLabels"] == labels
    labels = the("Deployment", "example-workers")["spec"]["selector"]["matchLabels"]
    assert (
        the("PodDisruptionBudget", "example-workers")["spec"]["selector"]["matchLabels"] == labels
    )
    target = the("HorizontalPodAutoscaler", "example-workers")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "example-workers")


def test_no_container_has_privileges() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert all(
                reference.keys() <= {"configMapRef", "secretRef"}
                for reference in container["envFrom"]
            )


def workers_pod() -> tuple[dict[str, Any], dict[str, Any], RunConfig]:
    pod = the("Deployment", "example-workers")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container, parsed([*container["command"], *container["args"]])


def test_kubernetes_waits_as_long_as_a_stop_takes() -> None:
    pod, container, config = workers_pod()
    assert "lifecycle" not in container  # a preStop hook would take its time from the same period
    assert pod["terminationGracePeriodSeconds"] >= config.grace + after_the_grace_period()


def test_probes_ask_the_node_and_are_patient() -> None:
    _, container, _ = workers_pod()
    environ = {each["name"]: each["value"] for each in container["env"]}
    for name in ("startupProbe", "livenessProbe"):
        probe = container[name]
        assert parsed(probe["exec"]["command"], environ).healthcheck
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 2 * MAX_AGE
        assert probe["timeoutSeconds"] >= JANITOR_GRACE


def test_the_memory_limit_leaves_room_for_all_workers() -> None:
    _, container, config = workers_pod()
    limit = container["resources"]["limits"]["memory"]
    assert config.max_memory
    assert limit == "2Gi"
    assert 1.5 * config.workers * config.max_memory <= 2 * 1024**3


def test_the_autoscaler_follows_the_age_of_the_queue() -> None:
    spec = the("HorizontalPodAutoscaler", "example-workers")["spec"]
    (metric,) = spec["metrics"]
    assert metric["external"]["metric"]["name"] == "dbtasks_queue_oldest_age_seconds"
    assert metric["external"]["target"]["type"] == "Value"
    assert 1 <= spec["minReplicas"] < spec["maxReplicas"]
    assert "replicas" not in the("Deployment", "example-workers")["spec"]


# The example project inside


def image_environment() -> dict[str, str]:
    (text,) = (rest for word, rest in instructions() if word == "ENV" and "SETTINGS" in rest)
    return dict(pair.split("=", 1) for pair in text.split())


def test_the_environment_of_the_image_boots_the_example(tmp_path: Path) -> None:
    """As the image has it, but for its paths; `--check` loads all there is."""
    environ = {
        k: v for k, v in image_environment().items() if k not in ("PATH", "DBTASKS_STATUS_FILE")
    }
    config = the("ConfigMap", "example")["data"]
    database = {"EXAMPLE_DATABASE_URL": f"sqlite:///{tmp_path / 'db.sqlite3'}"}
    ended = subprocess.run(
        [sys.executable, "-m", "dbtasks_supervisor.cli", "--check"],
        cwd=EXAMPLE,
        env=os.environ | environ | config | database,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    wsgi = "from django.core.wsgi import get_wsgi_application as get; assert callable(get())"
    served = subprocess.run(
        [sys.executable, "-c", wsgi],
        cwd=EXAMPLE,
        env=os.environ | environ | config | database,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert served.returncode == 0, served.stderr
