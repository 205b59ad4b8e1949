"""What docker/ holds, without an engine: linters are content, variables documented, manifests keep to schemas."""

import copy
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tilecov.storage.lease import LIFETIME

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = [DOCKER / "Dockerfile", ROOT / "tests" / "servers" / "ceph" / "Dockerfile"]
SCRIPTS = [*sorted(DOCKER.glob("*.sh")), ROOT / "tests" / "servers" / "ceph" / "start.sh", ROOT / ".ci" / "run"]
CLUSTER_SCHEMA = json.loads(Path(__file__).with_name("daskcluster.schema.json").read_text())
COMPOSE = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
DEFAULTS = dict(re.findall(r"^([A-Z_]+)=(.*)$", (DOCKER / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
MANIFESTS = [
    pytest.param(document, id=f"{path.stem}-{document['kind']}")
    for path in sorted((DOCKER / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def said_by(tool: str, path: Path) -> str:
    """Return what a linter, installed beside this Python, says of a file."""
    done = subprocess.run([Path(sys.executable).with_name(tool), path], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint(path: Path) -> None:
    assert said_by("hadolint", path) == ""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    assert said_by("shellcheck", path) == ""


def test_the_linters_find_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo ls\n")
    (tmp_path / "a.sh").write_text("#!/bin/bash\nrm $1\n")
    assert "DL3004" in said_by("hadolint", tmp_path / "Dockerfile")
    assert "SC2086" in said_by("shellcheck", tmp_path / "a.sh")


def test_the_engine_says_how_it_is_used_and_why_it_cannot_run() -> None:
    done = subprocess.run([DOCKER / "engine.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, "engine.sh start DIR" in done.stderr) == (2, True)


def test_every_variable_is_documented_with_its_default() -> None:
    used = re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", COMPOSE)
    assert {name for name, _ in used} == set(DEFAULTS)
    assert len(used) == COMPOSE.count("${") - COMPOSE.count("${VARIABLE}")
    assert {(name, value) for name, value in used if name not in {"SHARDS", "RUN"}} == {
        (name, value) for name, value in DEFAULTS.items() if name not in {"SHARDS", "RUN"}
    }


def test_no_secret_is_in_the_environment() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    names = {name for service in services.values() for name in service.get("environment", {})}
    assert "AWS_SHARED_CREDENTIALS_FILE" in names
    assert [name for name in names if re.search(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY", name)] == []


def test_secrets_and_settings_are_ignored_by_git() -> None:
    names = [f"docker/{name}" for name in (".env", "credentials", "token")]
    command = ["git", "-C", ROOT, "check-ignore", "--no-index", *names]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout.split() == names


def test_one_service_builds_an_image_and_none_pulls_one() -> None:
    services = yaml.safe_load(COMPOSE)["services"].values()
    assert {service["pull_policy"] for service in services} == {"never"}
    built = [service["image"] for service in services if "build" in service]
    assert sorted(built) == sorted({service["image"] for service in services})


def test_versions_agree() -> None:
    """Labels name the project's version, and torch is the one that is tested."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"ARG VERSION={version}\n" in DOCKERFILES[0].read_text()
    assert DEFAULTS["VERSION"] == version
    torch = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert re.findall(r"torch==(\S+)\+cpu", (DOCKER / "README.md").read_text(encoding="utf-8")) == torch
    assert f"ARG TORCH_INDEX={DEFAULTS['TORCH_INDEX']}\n" in DOCKERFILES[0].read_text()


# --- the check of health


class Answer(BaseHTTPRequestHandler):
    """Answers with the status that its path names."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def health(url: str | None) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **({"HEALTH_URL": url} if url else {})}
    command = [sys.executable, DOCKER / "health.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_check_asks_and_says_what_was_answered() -> None:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert health(f"{url}/200").returncode == 0
        refused = health(f"{url}/503")
        server.shutdown()
    assert (refused.returncode, "503" in refused.stderr) == (1, True)
    gone = health(f"{url}/200")
    assert (gone.returncode, "refused" in gone.stderr) == (1, True)


def test_a_job_has_no_check_and_that_is_said() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    asked = {name for name, service in services.items() if "HEALTH_URL" in service["environment"]}
    assert asked == {"scheduler", "worker", "worker-gpu", "service"}
    assert services["job"]["healthcheck"] == {"disable": True}
    said = health(None)
    assert (said.returncode, "nothing was asked" in said.stdout) == (0, True)


def test_the_build_sees_what_it_needs_and_no_more() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    seen = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?:--chmod=\d+ )?(?!--from)(.+) \S+$", DOCKERFILES[0].read_text(), re.MULTILINE)
    assert lines[1] == "*"
    assert {name for line in copied for name in line.split()} | {"docker/wheels"} == seen


# --- Kubernetes


def strict(schema: Any) -> Any:
    """Return a schema that refuses fields which it does not name."""
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if "properties" in schema else {}
    return {**closed, **{name: strict(value) for name, value in schema.items()}}


def check(document: dict[str, Any]) -> None:
    """Hold a manifest against Kubernetes' schemas, and a DaskCluster against its operator's."""
    if document["kind"] != "DaskCluster":
        kubernetes_validate.validate(document, "1.37", strict=True)
        return
    assert document["apiVersion"] == "kubernetes.dask.org/v1"
    jsonschema.validate({"spec": document["spec"]}, strict(CLUSTER_SCHEMA))
    for part in ("worker", "scheduler"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": part}, "spec": document["spec"][part]["spec"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "scheduler"}}
    kubernetes_validate.validate(service | {"spec": document["spec"]["scheduler"]["service"]}, "1.37", strict=True)


@pytest.mark.parametrize("document", MANIFESTS)
def test_a_manifest_keeps_to_its_schema(document: dict[str, Any]) -> None:
    check(document)


DOCUMENTS = [parameter.values[0] for parameter in MANIFESTS]
JOBS = [document for document in DOCUMENTS if document["kind"] == "Job"]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = document["spec"]
    return (
        [spec["template"]["spec"]] if "template" in spec else [spec[part]["spec"] for part in ("worker", "scheduler")]
    )


def test_no_two_manifests_have_one_name() -> None:
    named = [(document["kind"], document["metadata"]["name"]) for document in DOCUMENTS]
    assert len(named) == len(set(named)) == 3


def test_pods_have_no_rights() -> None:
    for pod in (pod for document in DOCUMENTS for pod in pods(document)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("document", JOBS, ids=lambda document: document["metadata"]["name"])
def test_a_job_outlasts_the_leases_of_lost_pods(document: dict[str, Any]) -> None:
    """Kubernetes tries after 10 s, 20 s, 40 s and so on: those tries that a lease meets fail, and count."""
    failing, after = 1, 10.0  # the lost pod itself
    while after < LIFETIME:
        failing, after = failing + 1, after + 10.0 * 2**failing
    assert document["spec"]["backoffLimit"] >= 5 * failing
    rules = document["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    assert pods(document)[0]["restartPolicy"] == "Never"  # else the rules do not hold


@pytest.mark.parametrize("document", MANIFESTS)
def test_a_wrong_manifest_is_found(document: dict[str, Any]) -> None:
    document = copy.deepcopy(document)
    for field in ("template", "worker"):
        if field in document["spec"]:
            inner = document["spec"][field]["spec"]
            inner["containers"][0]["imagee"] = inner["containers"][0].pop("image")
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(document)
