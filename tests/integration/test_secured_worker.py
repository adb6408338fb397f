"""The pipe on a Kafka that encrypts, asks who one is, and allows no more than it must."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from deployment import Deployment
from kafka import KafkaConsumer, TopicPartition
from kafka_broker import free_port
from secured_kafka import PASSWORDS, SecuredKafka, unsigned_token
from slack_server import Answer, slack_server_in_a_thread

from burnfuse.security import Security
from burnfuse.tokens import ClientCredentials
from burnfuse.track import Tracker
from stream.acls import AGENT, OPERATOR, PRODUCER, WORKER, rules
from stream.errors import BrokerError
from stream.settings import SECRETS, Settings, parse
from stream.topics import layout

DEADLINE_S = 120
SCRAM, PLAIN, CERTIFICATE = "SCRAM-SHA-512", "PLAIN", "certificate"


class House(Deployment):
    """A deployment on the secured broker: a user per role with the rights listed for it.

    Args:
        by: How users prove who they are: SCRAM, PLAIN, or CERTIFICATE, whose key has a password.
    """

    def __init__(self, kafka: SecuredKafka, name: str, folder: Path, by: str = SCRAM) -> None:
        super().__init__(kafka.admin, name, folder)
        self.kafka, self.by = kafka, by
        self.settings = self.parsed()

    def parsed(self, **kafka: Any) -> Settings:
        return parse(yaml.safe_dump({"kafka": self.names() | kafka}))

    def user(self, role: str) -> str:
        return f"plain-{role}" if self.by == PLAIN else f"{self.name}-{role}"

    def admit(self, *roles: str) -> None:
        for role in roles:
            if self.by == SCRAM:
                self.kafka.user(self.user(role), PASSWORDS[role])
            self.kafka.grant(self.user(role), [rule for rule in rules(self.settings) if rule.role == role])

    def login(self, role: str) -> dict[str, Any]:
        """The part of a configuration that says how a role connects."""
        if self.by == CERTIFICATE:
            files = self.kafka.certificate(self.user(role), self.folder, password=PASSWORDS[role])
            return self.kafka.certified_settings(**files)
        return self.kafka.settings(mechanism=self.by, username=self.user(role))

    def secrets(self, role: str, password: str | None = None) -> dict[str, str]:
        """What a role has in its environment."""
        name = "BURNFUSE_KAFKA_KEY_PASSWORD" if self.by == CERTIFICATE else "BURNFUSE_KAFKA_PASSWORD"
        return {name: password or PASSWORDS[role]}

    def security(self, role: str) -> tuple[str, Security]:
        """Where an agent's own process connects to, and how."""
        kafka = self.login(role)
        (server,) = kafka["bootstrap_servers"]
        files = {key: value for key, value in kafka["tls"].items() if key != "enabled"}
        if self.by == CERTIFICATE:
            return server, Security(tls=True, **files, key_password=PASSWORDS[role])
        return server, Security(tls=True, **files, **kafka["sasl"], password=PASSWORDS[role])

    def config(self, role: str, **sasl: Any) -> Path:
        return self.write(role, kafka=self.kafka.settings(**sasl) if sasl else self.login(role))

    def do(self, role: str, *args: str | Path, password: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command as a role."""
        return self.run(*args, "--config", self.config(role), **self.secrets(role, password))

    def open_up(self, *roles: str) -> None:
        """Admits an operator, who creates the topics, and others."""
        self.admit(OPERATOR, *roles)
        self.topics(self.config(OPERATOR), **self.secrets(OPERATOR))

    def send(self, events: list[dict[str, Any]], more: str = "") -> None:
        path = self.folder / "events.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in events) + more)
        done = self.do(PRODUCER, "replay", path)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def house(secured: SecuredKafka, topic_prefix: str, tmp_path: Path) -> House:
    return House(secured, topic_prefix.rstrip("."), tmp_path)


def loop(agent: str) -> list[dict[str, Any]]:
    """An agent that does the same thing over and over."""
    return [
        {"event_id": f"{agent}-{n}", "agent_id": agent, "run_id": "r", "ts": 1_790_000_000.0 + n, "kind": "tool",
         "tool": "t", "args": {"q": "planted-contents"}, "result": "same"}
        for n in range(8)
    ]  # fmt: skip


@pytest.mark.parametrize("by", [SCRAM, PLAIN, CERTIFICATE])
def test_each_role_does_its_work_with_the_rights_listed_for_it(house: House, by: str) -> None:
    house.by = by
    house.open_up(WORKER, PRODUCER, AGENT)
    house.send(loop("a"), more="{\n")
    server, security = house.security(PRODUCER)
    with Tracker(server, f"{house.name}-usage", security=security, raise_errors=True, agent_id="b") as tracker:
        tracker.event(model="m")
        assert tracker.flush(30)
        assert tracker.sent == 1

    with house.worker(house.config(WORKER), **house.secrets(WORKER)) as process:
        house.wait_for("incidents", lambda: bool(house.read(f"{house.name}.incidents")), process)
        house.wait_for("dead letters", lambda: bool(house.read(f"{house.name}.dead")), process)
        listed = house.do(OPERATOR, "dlq", "list")
        assert "1 truncated" in listed.stdout, listed.stderr
        done = house.do(OPERATOR, "dlq", "replay")
        assert done.stdout == "1 records sent again, for 1 letters\n", done.stderr
        saved = house.do(WORKER, "state", "show", "--json")
        assert saved.returncode == 0, saved.stderr
    assert not any(password in (house.folder / "worker.log").read_text() for password in PASSWORDS.values())
    kinds = {json.loads(r.value)["type"] for r in house.read(f"{house.name}.findings")}
    assert "finding" in kinds

    server, security = house.security(AGENT)
    consumer = KafkaConsumer(bootstrap_servers=server, **security.kafka_python())
    partition = TopicPartition(f"{house.name}.kill.state", 0)
    consumer.assign([partition])
    assert consumer.end_offsets([partition]) == {partition: 0}
    consumer.close()


# ---------------------------------------------------------------------------------------- refusals


def one_line(done: subprocess.CompletedProcess[str], codes: tuple[int, ...] = (1,)) -> str:
    assert done.returncode in codes, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(("by", "command"), [(SCRAM, ["worker"]), (PLAIN, ["topics", "--check"])])
def test_a_wrong_password_is_said_in_one_line(house: House, by: str, command: list[str]) -> None:
    house.by = by
    house.admit(WORKER)
    line = one_line(house.do(WORKER, *command, password="planted-secret"))
    assert line == (
        f"burnfuse: Kafka at {house.kafka.secured} does not let {house.user(WORKER)} in: "
        "check kafka.sasl.username and BURNFUSE_KAFKA_PASSWORD"
    )


def test_a_certificate_that_does_not_do_is_said_in_one_line(house: House) -> None:
    kafka, right = house.kafka, "planted-secret"
    own = kafka.certificate("own", house.folder, password=right)
    strange = kafka.certificate("strange", house.folder, password=right, by=kafka.strangers)
    gone = own | {"certificate_file": str(house.folder / "gone.pem")}
    cases: list[tuple[str, dict[str, str], str, str]] = [
        ("worker", {}, right,
         f"Kafka at {kafka.certified} asks for a certificate: set kafka.tls.certificate_file and kafka.tls.key_file"),
        ("dlq list", strange, right,
         f"Kafka at {kafka.certified} does not take the certificate in {strange['certificate_file']} "
         "(certificate unknown): check kafka.tls.certificate_file, and whom brokers trust"),
        ("worker", own, "planted-other",
         f"the key in {own['key_file']} has a password, another one than given: check BURNFUSE_KAFKA_KEY_PASSWORD"),
        ("topics", gone, right,
         f"cannot read {gone['certificate_file']}: No such file or directory: check kafka.tls"),
    ]  # fmt: skip
    for command, certificate, password, says in cases:
        config = house.write(kafka=kafka.certified_settings(**certificate))
        done = house.run(*command.split(), "--config", config, BURNFUSE_KAFKA_KEY_PASSWORD=password)
        assert (done.returncode in (1, 2), done.stdout, done.stderr) == (True, "", f"burnfuse: {says}\n")


@pytest.mark.parametrize("by", [PLAIN, CERTIFICATE])
def test_a_tracker_that_is_not_let_in_says_so_and_holds_nobody_up(
    house: House, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if by == PLAIN:
        server, security = house.kafka.secured, Security(
            tls=True, ca_file=str(house.kafka.ca_file), mechanism="PLAIN", username="plain-producer",
            password="planted-secret")  # fmt: skip
    else:
        files = house.kafka.certificate("strange", house.folder, password="planted-secret", by=house.kafka.strangers)
        server, security = house.kafka.certified, Security(
            tls=True, ca_file=str(house.kafka.ca_file), **files, key_password="planted-secret")  # fmt: skip
    short = {"bootstrap_timeout_ms": 1000}
    with Tracker(server, f"{house.name}-usage", security=security, kafka=short, agent_id="a") as tracker:
        assert tracker.event(model="m")
        deadline = time.monotonic() + DEADLINE_S
        while not (told := [r.getMessage() for r in caplog.records if r.name == "burnfuse.track"]):
            assert time.monotonic() < deadline
            assert not tracker.flush(0.2)
        tracker.close(0.0)
        assert (tracker.sent, tracker.lost) == (0, 1)
    assert told[0].startswith("Kafka cannot be reached or does not let us in, events are waiting: ")
    assert "planted-" not in caplog.text


def test_whoever_vouches_for_others_does_not_vouch_for_this_broker(house: House) -> None:
    config = house.config(WORKER)
    config.write_text(config.read_text().replace(str(house.kafka.ca_file), str(house.kafka.other_ca_file)))
    line = one_line(house.run("worker", "--config", config, BURNFUSE_KAFKA_PASSWORD="p"))
    assert "does not hold (unable to get local issuer certificate): check kafka.tls.ca_file" in line


def test_each_missing_right_is_named(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.open_up()
    needed = [rule for rule in rules(house.settings) if rule.role == WORKER and not rule.prefixed]
    for n, rule in enumerate(needed):
        user = f"{house.name}-lacks-{n}"
        house.kafka.user(user, "p")
        house.kafka.grant(user, [other for other in needed if other != rule])
        monkeypatch.setenv("BURNFUSE_KAFKA_PASSWORD", "p")
        sasl = house.kafka.settings(mechanism="SCRAM-SHA-256", username=user)
        with pytest.raises(BrokerError) as refused:
            layout(house.parsed(**sasl))
        told = str(refused.value)
        lacks = ", ".join(f"{operation} on {rule.resource} {rule.name}" for operation in rule.operations)
        assert told == f"Kafka does not allow this worker: {lacks}; grant what `burnfuse topics --acls` lists"


# ------------------------------------------------------------------------------------------ tokens


class TokenEndpoint(BaseHTTPRequestHandler):
    """Gives tokens that live for a few seconds to whoever knows the secret."""

    secret: ClassVar[str] = ""
    subject: ClassVar[str] = ""
    given: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        who = base64.b64encode(f"burnfuse:{self.secret}".encode()).decode()
        if self.headers["Authorization"] == f"Basic {who}" and "grant_type=client_credentials" in form:
            token = unsigned_token(self.subject, 5.0)
            type(self).given.append(token)
            self.answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": 5})
        else:
            self.answer(401, {"error": "invalid_client"})

    def answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(house: House) -> Iterator[str]:
    TokenEndpoint.secret, TokenEndpoint.subject, TokenEndpoint.given = "the-secret", house.user(WORKER), []
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()
        thread.join()


def test_a_worker_lives_on_tokens_that_end(house: House, endpoint: str) -> None:
    house.open_up(WORKER, PRODUCER)
    config = house.config(WORKER, mechanism="OAUTHBEARER", token_url=endpoint, client_id="burnfuse")
    with house.worker(config, BURNFUSE_KAFKA_CLIENT_SECRET="the-secret") as process:
        for agent in ("a", "b"):
            house.send(loop(agent))
            mark = f'"agent_id":"{agent}"'.encode()
            topic = f"{house.name}.findings"
            house.wait_for("findings", lambda m=mark, t=topic: any(m in r.value for r in house.read(t)), process)
            # The broker ends connections with their tokens: the next agent comes when others were asked for.
            seen = len(TokenEndpoint.given)
            house.wait_for("another token", lambda s=seen: len(TokenEndpoint.given) > s + 1, process)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            {"BURNFUSE_KAFKA_CLIENT_SECRET": "wrong"},
            "answers 401 for client burnfuse: check the client id and its secret",
        ),
        ({}, "the secret kafka_client_secret is not set"),
    ],
)
def test_a_token_that_is_not_given_is_said_in_one_line(
    house: House, endpoint: str, environment: dict[str, str], says: str
) -> None:
    config = house.config(WORKER, mechanism="OAUTHBEARER", token_url=endpoint, client_id="burnfuse")
    assert says in one_line(house.run("worker", "--config", config, **environment), codes=(1, 2))


def test_a_token_that_brokers_refuse_is_said_in_one_line(house: House) -> None:
    token = house.folder / "token"
    token.write_text(unsigned_token("somebody", life_s=-60.0))
    config = house.config(WORKER, mechanism="OAUTHBEARER", token_file=str(token))
    assert "does not let this token in: check kafka.sasl" in one_line(house.run("worker", "--config", config))


def test_agents_get_tokens_from_the_endpoint_too(house: House, endpoint: str) -> None:
    house.open_up(PRODUCER)
    TokenEndpoint.subject = house.user(PRODUCER)
    tokens = ClientCredentials(endpoint, "burnfuse", lambda: "the-secret")
    security = Security(tls=True, ca_file=str(house.kafka.ca_file), mechanism="OAUTHBEARER", tokens=tokens)
    topic = f"{house.name}-usage"
    with Tracker(house.kafka.secured, topic, security=security, agent_id="a") as tracker:
        tracker.event(model="m")
        assert tracker.flush(30)
    assert len(house.read(topic)) == 1


# ----------------------------------------------------------------------------------------- secrets


def planted() -> dict[str, str]:
    """All secrets, as variables."""
    return {f"BURNFUSE_{name.upper()}": f"planted-{name}" for name in SECRETS}


def test_secrets_that_are_refused_are_in_no_output(house: House, endpoint: str) -> None:
    scram, oauth = (
        house.config(WORKER),
        house.config("oauth", mechanism="OAUTHBEARER", token_url=endpoint, client_id="burnfuse"),
    )
    events = house.folder / "events.jsonl"
    events.write_text(json.dumps(loop("a")[0]))
    said = ""
    for config, command in [
        (scram, ["worker", "--verbose"]),
        (scram, ["topics", "--json"]),
        (oauth, ["worker", "--verbose"]),
        (oauth, ["replay", events]),
    ]:
        done = house.run(*command, "--config", config, **planted())
        assert "Traceback" not in done.stderr
        said += done.stdout + done.stderr
    assert "does not let" in said
    assert "answers 401" in said
    assert "planted-" not in said


def page(port: int, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as answer:
        return str(answer.read().decode())
    except OSError:
        return ""


def test_secrets_in_use_are_in_no_output(house: House, endpoint: str) -> None:
    """A worker with a key that has a password, tokens, a hash key and Slack; commands with a password."""
    environment, port = planted(), free_port()
    TokenEndpoint.secret = environment["BURNFUSE_KAFKA_CLIENT_SECRET"]
    house.kafka.user(house.user(OPERATOR), environment["BURNFUSE_KAFKA_PASSWORD"])
    for role, user in [(OPERATOR, OPERATOR), (PRODUCER, OPERATOR), (WORKER, WORKER)]:
        house.kafka.grant(house.user(user), [rule for rule in rules(house.settings) if rule.role == role])
    key = house.kafka.certificate("own", house.folder, password=environment["BURNFUSE_KAFKA_KEY_PASSWORD"])
    by_token = house.kafka.settings(mechanism="OAUTHBEARER", token_url=endpoint, client_id="burnfuse")
    by_token["tls"] |= key
    said: list[str] = []

    def tell(config: Path, *command: str | Path) -> None:
        done = house.run(*command, *(["--config"] if command[-1] != "check" else []), config, **environment)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        said.append(done.stdout + done.stderr)

    with slack_server_in_a_thread() as slack:
        slack.answers += [Answer(drop=True), *[Answer(error="invalid_auth")] * 9]
        own = house.write("own", kafka=by_token, metrics={"listen": f"127.0.0.1:{port}"},
                          actions={"slack": {"enabled": True, "base_url": slack.url, "pause_s": 0.0}})  # fmt: skip
        operator = house.config(OPERATOR)
        events = house.folder / "events.jsonl"
        events.write_text("".join(json.dumps(event) + "\n" for event in loop("a")) + "{\n")
        for config, *command in [
            (own, "config", "check"),
            (own, "config", "show"),
            (operator, "topics"),
            (own, "topics", "--acls", "--format", "kafka-acls"),
            (operator, "replay", events),
        ]:
            tell(config, *command)
        with house.worker(own, **environment) as process:
            log = house.folder / "worker.log"
            house.wait_for("an action given up", lambda: "action slack gave up" in log.read_text(), process)
            house.wait_for("dead letters", lambda: bool(house.read(f"{house.name}.dead")), process)
            house.wait_for("readiness", lambda: '"ok": true' in page(port, "/readyz"), process)
            process.send_signal(signal.SIGUSR1)
            house.wait_for("tasks", lambda: '"message": "task ' in log.read_text(), process)
            said += [page(port, path) for path in ("/readyz", "/healthz", "/metrics")]
            tell(operator, "dlq", "list")
            tell(own, "state", "show")
        assert {call.authorization for call in slack.calls} == {f"Bearer {environment['BURNFUSE_SLACK_TOKEN']}"}

    script = Path(__file__).with_name("crashing_worker.py")
    tell(operator, "replay", events)
    crashed = subprocess.run([sys.executable, str(script), str(own)], env=os.environ | environment,
                             capture_output=True, text=True, timeout=DEADLINE_S, check=False)  # fmt: skip
    assert "planted failure" in crashed.stderr
    assert "Traceback" in crashed.stderr
    said += [log.read_text(), crashed.stdout + crashed.stderr.replace("planted failure", "")]

    told = "\n".join(said)
    for shown in ("burnfuse_lag_seconds", "action slack gave up", "1 truncated", "kafka-acls.sh", "token_url"):
        assert shown in told
    who = base64.b64encode(f"burnfuse:{TokenEndpoint.secret}".encode()).decode()
    secrets = [*environment.values(), *TokenEndpoint.given, who, *Path(key["key_file"]).read_text().splitlines()[1:-1]]
    assert len(TokenEndpoint.given) >= 2
    assert [secret for secret in secrets if secret in told] == []
    assert "planted-" not in told
