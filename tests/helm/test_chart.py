"""The Helm chart: its values always, what it renders where `helm` is installed."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_readme import cli_help
from jsonschema import Draft7Validator, ValidationError

from stream import settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "burnfuse"
CHART_FILE: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
TEMPLATES = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())


def changed(path: str, value: object) -> dict[str, Any]:
    """The default values with one of them changed."""
    values = copy.deepcopy(VALUES)
    *way, last = path.split(".")
    section = values
    for key in way:
        section = section[key]
    section[last] = value
    return values


def test_the_chart_is_of_the_same_version_as_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CHART_FILE["appVersion"] == project["version"]


def test_the_default_values_are_valid() -> None:
    Draft7Validator.check_schema(SCHEMA)
    Draft7Validator(SCHEMA).validate(VALUES)
    assert set(VALUES) | {"global"} == set(SCHEMA["properties"])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replica", 1),
        ("replicas", "1"),
        ("replicas", -1),
        ("image.repository", ""),
        ("image.tag", "latest"),
        ("image.pullPolicy", "Sometimes"),
        ("config.kafka.bootstrap_servers", "kafka:9092"),
        ("config.kafka.bootstrap_servers", []),
        ("config.kafka.bootstrap_servers", ["kafka"]),
        ("topics.enabled", "yes"),
        ("terminationGracePeriodSeconds", 0),
        ("metrics.port", 0),
        ("metrics.port", "8081"),
        ("metrics.serviceMonitor.interval", "often"),
        ("metrics.serviceMonitor.enabled", "yes"),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Draft7Validator(SCHEMA).validate(changed(path, value))


def test_templates_use_all_values_and_no_others() -> None:
    used = set(re.findall(r"\.Values\.(\w+)", TEMPLATES))
    assert used == set(VALUES)


def test_the_default_configuration_is_one_that_burnfuse_takes() -> None:
    assert settings.parse(yaml.safe_dump(VALUES["config"])).kafka.bootstrap_servers == ["kafka:9092"]


def test_probes_and_prometheus_ask_where_the_worker_listens() -> None:
    listen = settings.parse(yaml.safe_dump(VALUES["config"])).metrics.listen
    assert listen == f"0.0.0.0:{VALUES['metrics']['port']}"
    asked = re.findall(r"httpGet: \{path: (\S+), port: (\w+)\}", TEMPLATES)
    assert asked == [("/healthz", "metrics"), ("/healthz", "metrics"), ("/readyz", "metrics")]


def test_nothing_in_the_default_values_falls_short_of_the_restricted_standard() -> None:
    pod, container = VALUES["podSecurityContext"], VALUES["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("command", sorted(set(re.findall(r'"command" "(\w+)"', TEMPLATES))))
def test_the_commands_exist(command: str) -> None:
    page = cli_help((command,))
    assert page is not None, f"there is no command `burnfuse {command}`"
    assert "--config" in page


needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not on PATH: the chart is not rendered")


def helm(tmp_path: Path, values: dict[str, Any], release: str = "prod") -> subprocess.CompletedProcess[str]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = ["helm", "template", release, str(CHART), "--kube-version", "1.31.0", "--values", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rendered(tmp_path: Path, values: dict[str, Any], release: str = "prod") -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes of the values, by kind and name."""
    done = helm(tmp_path, values, release)
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pod_of(resource: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = resource["spec"]["template"]["spec"]
    return pod


@needs_helm
def test_helm_finds_nothing_to_complain_of() -> None:
    done = subprocess.run(
        ["helm", "lint", "--strict", "--kube-version", "1.31.0", str(CHART)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@needs_helm
@pytest.mark.parametrize(("release", "name"), [("prod", "prod-burnfuse"), ("my-burnfuse", "my-burnfuse")])
def test_names_follow_the_release(tmp_path: Path, release: str, name: str) -> None:
    assert set(rendered(tmp_path, VALUES, release)) == {
        ("ServiceAccount", name),
        ("ConfigMap", name),
        ("Deployment", name),
        ("ConfigMap", f"{name}-topics"),
        ("Job", f"{name}-topics"),
    }


@needs_helm
def test_pods_are_confined_and_run_the_commands(tmp_path: Path) -> None:
    found = rendered(tmp_path, VALUES)
    for kind, name, command in [("Deployment", "prod-burnfuse", "worker"), ("Job", "prod-burnfuse-topics", "topics")]:
        pod = pod_of(found[kind, name])
        (container,) = pod["containers"]
        assert container["args"] == [command, "--config", "/etc/burnfuse/burnfuse.yaml"]
        assert container["image"] == f"burnfuse:{CHART_FILE['appVersion']}"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"] == VALUES["podSecurityContext"]
        assert container["securityContext"] == VALUES["securityContext"]
        (config,) = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
        assert yaml.safe_load(found["ConfigMap", config]["data"]["burnfuse.yaml"]) == VALUES["config"]


@needs_helm
def test_the_deployment_selects_its_own_pods_only(tmp_path: Path) -> None:
    found = rendered(tmp_path, VALUES)
    selector = found["Deployment", "prod-burnfuse"]["spec"]["selector"]["matchLabels"].items()
    labels = {kind: one["spec"]["template"]["metadata"]["labels"] for (kind, _), one in found.items() if "spec" in one}
    assert selector <= labels["Deployment"].items()
    assert not selector <= labels["Job"].items()


@needs_helm
def test_a_changed_configuration_replaces_the_pods(tmp_path: Path) -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = rendered(tmp_path, values)["Deployment", "prod-burnfuse"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    assert checksum(VALUES) == checksum(changed("replicas", 2))
    assert checksum(VALUES) != checksum(changed("config.kafka.replication", 1))


@needs_helm
def test_the_slack_token_is_only_ever_referred_to(tmp_path: Path) -> None:
    bare = pod_of(rendered(tmp_path, VALUES)["Deployment", "prod-burnfuse"])
    assert "env" not in bare["containers"][0]
    pod = pod_of(rendered(tmp_path, changed("existingSecret", "slack"))["Deployment", "prod-burnfuse"])
    variables = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in pod["containers"][0]["env"]}
    assert variables == {
        "BURNFUSE_SLACK_TOKEN": {"name": "slack", "key": "slack-token"},
        "BURNFUSE_HASH_KEY": {"name": "slack", "key": "hash-key", "optional": True},
    }


@needs_helm
def test_optional_parts_appear_where_they_belong(tmp_path: Path) -> None:
    values = VALUES | {
        "topics": {"enabled": False},
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"team": "platform"},
        "podLabels": {"tier": "backend"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "batch", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
    }
    found = rendered(tmp_path, values)
    assert "Job" not in {kind for kind, _ in found}
    template = found["Deployment", "prod-burnfuse"]["spec"]["template"]
    assert template["metadata"]["annotations"]["team"] == "platform"
    assert template["metadata"]["labels"]["tier"] == "backend"
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity"):
        assert template["spec"][key] == values[key]


@needs_helm
def test_a_service_monitor_comes_when_asked_for(tmp_path: Path) -> None:
    values = changed("metrics.serviceMonitor", {"enabled": True, "interval": "15s", "labels": {"release": "prom"}})
    found = rendered(tmp_path, values)
    monitor, service = found["ServiceMonitor", "prod-burnfuse"], found["Service", "prod-burnfuse-metrics"]
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["endpoints"] == [{"port": "metrics", "path": "/metrics", "interval": "15s"}]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    pods = found["Deployment", "prod-burnfuse"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    assert pods["metadata"]["annotations"]["prometheus.io/port"] == "8081"


@needs_helm
def test_helm_refuses_wrong_values_with_their_path(tmp_path: Path) -> None:
    done = helm(tmp_path, changed("config.kafka.bootstrap_servers", "kafka:9092"))
    assert done.returncode != 0
    assert "bootstrap_servers" in done.stderr
