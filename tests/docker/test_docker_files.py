"""The container files, checked without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_readme import cli_help

from stream import settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ["topics", "worker"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its arguments in one line."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def final_stage() -> list[tuple[str, str]]:
    lines = instructions()
    last = max(index for index, (word, _) in enumerate(lines) if word == "FROM")
    return lines[last:]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(hadolint), "--no-color", str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_burnfuse_as_a_numeric_user_who_is_not_root() -> None:
    stage = dict(final_stage())
    assert stage["USER"] == "10001:10001"
    assert stage["ENTRYPOINT"] == '["burnfuse"]'


def test_the_image_is_installed_from_the_lock_and_takes_no_build_tools_along() -> None:
    (install,) = [rest for word, rest in instructions() if word == "RUN" and " pip install " in rest]
    assert "-c requirements.lock" in install
    assert install.endswith("'.[server]'")
    assert not [rest for _, rest in final_stage() if re.search(r"\b(pip|apt-get|gcc)\b", rest)]


def test_the_build_context_has_all_that_is_copied_and_nothing_more() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert "*" in ignore
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)


def test_every_image_has_a_tag_that_does_not_move() -> None:
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    images += [service["image"] for service in SERVICES.values()]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), image
        assert not image.endswith(":latest"), image


def test_trials_and_tests_use_the_same_kafka() -> None:
    version = re.search(r"<kafka\.version>(.*)</", (DOCKER / "kafka" / "pom.xml").read_text())
    assert version is not None
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version[1]}"


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_gain_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("privileged")


@pytest.mark.parametrize("name", OURS)
def test_our_services_write_only_where_they_must(name: str) -> None:
    service = SERVICES[name]
    workdir = dict(final_stage())["WORKDIR"]
    assert service["read_only"] is True
    assert [volume for volume in service["volumes"] if not volume.endswith(":ro")] == [f"state:{workdir}"]


def test_ports_are_open_to_this_machine_only() -> None:
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_each_service_waits_until_the_one_before_is_usable() -> None:
    assert "healthcheck" in SERVICES["kafka"]
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {"topics": {"condition": "service_completed_successfully"}}
    assert "healthcheck" in SERVICES["worker"]


@pytest.mark.parametrize("name", OURS)
def test_all_secrets_come_from_the_environment(name: str) -> None:
    assert SERVICES[name]["environment"] == {f"BURNFUSE_{secret.upper()}": None for secret in settings.SECRETS}


@pytest.mark.parametrize("name", OURS)
def test_the_commands_exist(name: str) -> None:
    command, *rest = SERVICES[name]["command"]
    page = cli_help((command,))
    assert page is not None, f"there is no command `burnfuse {command}`"
    for option in rest:
        assert not option.startswith("--") or option in page


def test_the_health_check_asks_where_the_worker_listens() -> None:
    listen = settings.load(DOCKER / "burnfuse.yaml").metrics.listen
    assert listen is not None
    _, _, port = listen.rpartition(":")
    assert f"http://127.0.0.1:{port}/readyz" in SERVICES["worker"]["healthcheck"]["test"][-1]
    assert SERVICES["worker"]["ports"] == [f"127.0.0.1:{port}:{port}"]


def test_the_configuration_is_valid_and_names_the_broker_as_containers_see_it() -> None:
    kafka = settings.load(DOCKER / "burnfuse.yaml").kafka
    assert SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].startswith(
        f"INSIDE://{kafka.bootstrap_servers[0]},"
    )
    mounted = [volume.split(":")[1] for volume in SERVICES["worker"]["volumes"]]
    assert SERVICES["worker"]["command"][-1] in mounted
