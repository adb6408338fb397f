"""The Helm chart: its values always, what it renders where `helm` is installed."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from check_readme import cli_help
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from jsonschema import Draft7Validator, ValidationError

from burnfuse.security import Security
from stream import connection, settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "burnfuse"
CHART_FILE: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
EXAMPLE: dict[str, Any] = yaml.safe_load((CHART / "examples" / "secured.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
TEMPLATES = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())


def changed(path: str, value: object) -> dict[str, Any]:
    """The default values with one of them changed."""
    values = copy.deepcopy(VALUES)
    *way, last = path.split(".")
    section = values
    for key in way:
        section = section.setdefault(key, {})
    section[last] = value
    return values


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Values with others laid over them, as Helm does it."""
    both = copy.deepcopy(values)
    for key, value in over.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


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
        ("existingSecret", "No Name"),
        ("existingSecret", ["burnfuse"]),
        ("tls.existingSecret", 1),
        ("tls.secretName", "certificates"),
        ("token.existingSecret", "-"),
        ("topics.existingSecrets", "operator"),
        ("topics.tls.existingSecret", "Certificates"),
        ("topics.config.kafka", {"bootstrap_servers": "kafka:9092"}),
        ("config.kafka.instance_id", "one-for-all"),
        ("config.kafka.tls", True),
        ("extraEnv", [{"name": "BURNFUSE_KAFKA_PASSWORD", "value": "in the open"}]),
        ("extraEnv", [{"value": "of nothing"}]),
        ("extraVolumes", [{"secret": {"secretName": "a"}}]),
        ("extraVolumeMounts", [{"name": "a"}]),
    ],
)
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Draft7Validator(SCHEMA).validate(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config.state", {"standby": True, "checkpoint_s": 1.0}),
        ("extraEnv", [{"name": "BURNFUSE_KAFKA_PASSWORD_FILE", "value": "/vault/kafka-password"}]),
        ("extraEnv", [{"name": "BURNFUSE_HASH_KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]),
        ("tls.existingSecret", "kafka.certificates-2"),
    ],
)
def test_a_right_value_is_taken(path: str, value: object) -> None:
    values = changed(path, value)
    Draft7Validator(SCHEMA).validate(values)
    settings.parse(yaml.safe_dump(values["config"]))


def test_templates_use_all_values_and_no_others() -> None:
    used = set(re.findall(r"\.Values\.(\w+)", TEMPLATES))
    assert used == set(VALUES)


def test_the_example_is_valid_and_its_configurations_too() -> None:
    values = merged(VALUES, EXAMPLE)
    Draft7Validator(SCHEMA).validate(values)
    assert settings.parse(yaml.safe_dump(values["config"])).kafka.sasl.username == "burnfuse-worker"
    operator = merged(values["config"], values["topics"]["config"])
    assert settings.parse(yaml.safe_dump(operator)).kafka.sasl.username == "burnfuse-operator"


def test_every_secret_has_a_key_that_is_told_of() -> None:
    text = (CHART / "values.yaml").read_text()
    lists = [re.findall(r'"([\w-]+)"', found) for found in re.findall(r'"secrets" \(list ([^)]*)\)', TEMPLATES)]
    keys = [name.replace("_", "-") for name in settings.SECRETS]
    assert sorted(lists, key=len) == [[key for key in keys if key.startswith("kafka-")], keys]
    assert [key for key in keys if not re.search(rf"\b{key}\b", text)] == []


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


needs_helm = pytest.mark.skipif(
    shutil.which("helm") is None and os.environ.get("REQUIRE_HELM") != "1",
    reason="helm is not on PATH: the chart is not rendered (make chart)",
)


def helm(
    tmp_path: Path, values: dict[str, Any], release: str = "prod", chart: Path = CHART
) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    command = ["helm", "template", release, str(chart), "--kube-version", "1.31.0", "--values", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def rendered(
    tmp_path: Path, values: dict[str, Any], release: str = "prod", chart: Path = CHART
) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes of the values, by kind and name."""
    done = helm(tmp_path, values, release, chart)
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


# ------------------------------------------------------------------------------- secrets and files

PODS = {"worker": ("Deployment", "prod-burnfuse"), "topics": ("Job", "prod-burnfuse-topics")}
CA = trustme.CA()
CLIENT = CA.issue_cert("client.invalid")


@pytest.fixture(scope="module")
def cluster() -> dict[str, dict[str, bytes]]:
    """Secrets by name, as the example wants them and some more; values by key."""
    key = load_pem_private_key(CLIENT.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"of-the-key"))
    certificate = {"tls.crt": CLIENT.cert_chain_pems[0].bytes(), "tls.key": encrypted, "ca.crt": CA.cert_pem.bytes()}
    return {
        "burnfuse": {"slack-token": b"xoxb-1", "hash-key": b"key", "kafka-password": b"of-the-worker"},
        "burnfuse-operator": {"kafka-password": b"of-the-operator"},
        "kafka-ca": {"ca.crt": CA.cert_pem.bytes()},
        "certificates": certificate,
        "key-password": {"kafka-key-password": b"of-the-key"},
        "kafka-token": {"token": b"a.b.c"},
    }


@dataclass(frozen=True)
class Started:
    """A pod as a process in it would find it: its settings, with paths below a folder, and its environment."""

    settings: settings.Settings
    environment: dict[str, str]

    def secrets(self) -> dict[str, str]:
        found = {name: settings.secret(name, self.environment) for name in settings.SECRETS}
        return {name: value for name, value in found.items() if value is not None}

    def security(self, monkeypatch: pytest.MonkeyPatch) -> Security:
        with monkeypatch.context() as patch:
            for name in settings.SECRETS:
                patch.delenv(f"BURNFUSE_{name.upper()}", raising=False)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return connection.security(self.settings.kafka)


def start(
    found: dict[tuple[str, str], dict[str, Any]], command: str, secrets: dict[str, dict[str, bytes]], root: Path
) -> Started:
    """Does what Kubernetes does for a pod, in a folder: mounts, variables."""
    pod = pod_of(found[PODS[command]])
    (container,) = pod["containers"]
    assert pod["securityContext"] == VALUES["podSecurityContext"]
    assert container["securityContext"] == VALUES["securityContext"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        volume, folder = volumes[mount["name"]], root / command / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True)
        if "configMap" in volume:
            content = {name: text.encode() for name, text in
                       found["ConfigMap", volume["configMap"]["name"]]["data"].items()}  # fmt: skip
        elif "secret" in volume:
            # The group may read: Kubernetes gives files to fsGroup, and root's they stay.
            assert (mount["readOnly"], volume["secret"]["defaultMode"]) == (True, 0o440)
            content = secrets[volume["secret"]["secretName"]]
        else:
            assert volume["emptyDir"] == {}
            content = {}
        for name, value in content.items():
            (folder / name).write_bytes(value)
    environment = {}
    for variable in container.get("env", []):
        ref = variable["valueFrom"]["secretKeyRef"]
        assert ref["optional"] is True
        if ref["key"] in secrets[ref["name"]]:
            environment[variable["name"]] = secrets[ref["name"]][ref["key"]].decode()
    path = root / command / container["args"][-1].lstrip("/")
    text = path.read_text()
    return Started(settings.parse(text.replace("/run/secrets", f"{root}/{command}/run/secrets")), environment)


@needs_helm
def test_the_example_has_each_secret_and_file_where_its_configuration_says(
    tmp_path: Path, cluster: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rendered(tmp_path, EXAMPLE)
    worker, topics = (start(found, command, cluster, tmp_path) for command in ("worker", "topics"))
    assert worker.secrets() == {"slack_token": "xoxb-1", "hash_key": "key", "kafka_password": "of-the-worker"}
    assert topics.secrets() == {"kafka_password": "of-the-operator"}
    for pod, user, password in [
        (worker, "burnfuse-worker", "of-the-worker"),
        (topics, "burnfuse-operator", "of-the-operator"),
    ]:
        security = pod.security(monkeypatch)
        assert (security.protocol, security.username, security.password) == ("SASL_SSL", user, password)
        context = security.context()
        assert context is not None
        assert len(context.get_ca_certs()) == 1
    assert "of-the" not in yaml.safe_dump_all(found.values())


TLS = "/run/secrets/burnfuse/tls"
BY_CERTIFICATE = {
    "config": {"kafka": {"tls": {"enabled": True, "ca_file": f"{TLS}/ca.crt", "certificate_file": f"{TLS}/tls.crt",
                                 "key_file": f"{TLS}/tls.key"}}},
    "existingSecret": "key-password",
    "tls": {"existingSecret": "certificates"},
}  # fmt: skip
BY_TOKEN = {
    "config": {"kafka": {"tls": {"enabled": True},
                         "sasl": {"mechanism": "OAUTHBEARER", "token_file": "/run/secrets/burnfuse/token/token"}}},
    "token": {"existingSecret": "kafka-token"},
}  # fmt: skip


@needs_helm
def test_a_certificate_and_a_token_are_where_the_configuration_says(
    tmp_path: Path, cluster: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in PODS:
        pod = start(rendered(tmp_path, BY_CERTIFICATE), command, cluster, tmp_path / "certificate")
        security = pod.security(monkeypatch)
        assert security.protocol == "SSL"
        assert security.context() is not None  # the key could be read, with its password
        pod = start(rendered(tmp_path, BY_TOKEN), command, cluster, tmp_path / "token")
        tokens = pod.security(monkeypatch).tokens
        assert tokens is not None
        assert tokens.token() == "a.b.c"


@needs_helm
def test_without_a_secret_pods_have_none(tmp_path: Path) -> None:
    found = rendered(tmp_path, VALUES)
    for kind_and_name in PODS.values():
        pod = pod_of(found[kind_and_name])
        assert "env" not in pod["containers"][0]
        assert not [volume for volume in pod["volumes"] if "secret" in volume]


@needs_helm
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"config": {"kafka": {"sasl": {"mechanism": "PLAIN", "username": "a"}}}},
         "config.kafka.sasl.username needs a password: set existingSecret to a Secret with the key kafka-password"),
        ({"config": {"kafka": {"sasl": {"mechanism": "OAUTHBEARER", "token_url": "https://a", "client_id": "a"}}}},
         "config.kafka.sasl.client_id needs its secret: set existingSecret to a Secret with the key "
         "kafka-client-secret"),
        ({"topics": {"config": {"kafka": {"sasl": {"mechanism": "PLAIN", "username": "a"}}}}},
         "config.kafka.sasl.username needs a password: set topics.existingSecret to a Secret with the key "
         "kafka-password"),
        ({"config": {"actions": {"slack": {"enabled": True}}}},
         "config.actions.slack.enabled needs a bot token: set existingSecret to a Secret with the key slack-token"),
        (BY_CERTIFICATE | {"tls": {"existingSecret": ""}},
         ".crt: set tls.existingSecret to the Secret that holds it"),
        (BY_TOKEN | {"token": {"existingSecret": ""}},
         "config.kafka.sasl.token_file is /run/secrets/burnfuse/token/token: set token.existingSecret to the Secret "
         "that holds it"),
    ],
)  # fmt: skip
def test_a_configuration_that_wants_for_a_secret_is_refused(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    done = helm(tmp_path, values)
    assert done.returncode != 0
    assert says in done.stderr


@needs_helm
def test_what_else_is_needed_reaches_both_pods(tmp_path: Path) -> None:
    more = {
        "extraEnv": [{"name": "BURNFUSE_KAFKA_PASSWORD_FILE", "value": "/vault/password"}],
        "extraVolumes": [{"name": "vault", "emptyDir": {"medium": "Memory"}}],
        "extraVolumeMounts": [{"name": "vault", "mountPath": "/vault", "readOnly": True}],
        "config": {"kafka": {"sasl": {"mechanism": "PLAIN", "username": "a"}}},
    }
    found = rendered(tmp_path, more)
    for kind_and_name in PODS.values():
        pod = pod_of(found[kind_and_name])
        assert pod["containers"][0]["env"] == more["extraEnv"]
        assert pod["volumes"][-1:] == more["extraVolumes"]
        assert pod["containers"][0]["volumeMounts"][-1:] == more["extraVolumeMounts"]


@needs_helm
def test_the_notes_say_what_is_so(tmp_path: Path) -> None:
    # `helm template` leaves them out, and all else wants a cluster: a copy of the chart renders them as a resource.
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "notes.txt")
    resource = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "notes"}, "data": {"text": "TEXT"}}
    text = yaml.safe_dump(resource).replace("TEXT", '{{ tpl (.Files.Get "notes.txt") . | quote }}')
    (chart / "templates" / "notes.yaml").write_text(text)

    def notes(values: dict[str, Any]) -> str:
        return str(rendered(tmp_path, values, chart=chart)["ConfigMap", "notes"]["data"]["text"])

    plain = notes({})
    assert 'watches topic "usage" on kafka:9092, unencrypted.' in plain
    assert "Nothing is sent to Slack yet" in plain
    assert "rollout restart" not in plain
    secured = notes(EXAMPLE)
    assert "kafka-3:9093, by SCRAM-SHA-512 as burnfuse-worker, encrypted." in secured
    assert "Slack" not in secured
    assert "rollout restart deployment/prod-burnfuse" in secured


@needs_helm
def test_optional_parts_appear_where_they_belong(tmp_path: Path) -> None:
    values = VALUES | {
        "topics": VALUES["topics"] | {"enabled": False},
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
