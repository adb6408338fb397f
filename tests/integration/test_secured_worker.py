"""The pipe on a Kafka that encrypts, asks who one is, and allows no more than it must."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from deployment import Deployment
from kafka import KafkaConsumer, TopicPartition
from secured_kafka import SecuredKafka, unsigned_token

from burnfuse.security import Security
from burnfuse.tokens import ClientCredentials
from burnfuse.track import Tracker
from stream.acls import AGENT, OPERATOR, PRODUCER, WORKER, rules
from stream.errors import BrokerError
from stream.settings import SECRETS, Settings, parse
from stream.topics import layout

DEADLINE_S = 120
PASSWORDS = {role: f"password-of-{role}" for role in (WORKER, PRODUCER, AGENT, OPERATOR)}


class House(Deployment):
    """A deployment on the secured broker: a user per role with the rights listed for it."""

    def __init__(self, kafka: SecuredKafka, name: str, folder: Path) -> None:
        super().__init__(kafka.admin, name, folder)
        self.kafka = kafka
        self.settings = self.parsed()

    def parsed(self, **kafka: Any) -> Settings:
        return parse(yaml.safe_dump({"kafka": self.names() | kafka}))

    def user(self, role: str) -> str:
        return f"{self.name}-{role}"

    def admit(self, *roles: str) -> None:
        for role in roles:
            self.kafka.user(self.user(role), PASSWORDS[role])
            self.kafka.grant(self.user(role), [rule for rule in rules(self.settings) if rule.role == role])

    def config(self, role: str, **sasl: Any) -> Path:
        sasl = sasl or {"mechanism": "SCRAM-SHA-512", "username": self.user(role)}
        return self.write(role, kafka=self.kafka.settings(**sasl))

    def do(self, role: str, *args: str | Path, password: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command as a role."""
        password = password or PASSWORDS[role]
        return self.run(*args, "--config", self.config(role), BURNFUSE_KAFKA_PASSWORD=password)

    def open_up(self, *roles: str) -> None:
        """Admits an operator, who creates the topics, and others."""
        self.admit(OPERATOR, *roles)
        self.topics(self.config(OPERATOR), BURNFUSE_KAFKA_PASSWORD=PASSWORDS[OPERATOR])

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


def test_each_role_does_its_work_with_the_rights_listed_for_it(house: House) -> None:
    house.open_up(WORKER, PRODUCER, AGENT)
    house.send(loop("a"), more="{\n")
    with house.worker(house.config(WORKER), BURNFUSE_KAFKA_PASSWORD=PASSWORDS[WORKER]) as process:
        house.wait_for("incidents", lambda: bool(house.read(f"{house.name}.incidents")), process)
        house.wait_for("dead letters", lambda: bool(house.read(f"{house.name}.dead")), process)
        listed = house.do(OPERATOR, "dlq", "list")
        assert "1 truncated" in listed.stdout, listed.stderr
        done = house.do(OPERATOR, "dlq", "replay")
        assert done.stdout == "1 records sent again, for 1 letters\n", done.stderr
    assert not any(password in (house.folder / "worker.log").read_text() for password in PASSWORDS.values())
    kinds = {json.loads(r.value)["type"] for r in house.read(f"{house.name}.findings")}
    assert "finding" in kinds

    agent = Security(tls=True, ca_file=str(house.kafka.ca_file), mechanism="SCRAM-SHA-256", username=house.user(AGENT),
                     password=PASSWORDS[AGENT])  # fmt: skip
    consumer = KafkaConsumer(bootstrap_servers=house.kafka.secured, **agent.kafka_python())
    partition = TopicPartition(f"{house.name}.kill.state", 0)
    consumer.assign([partition])
    assert consumer.end_offsets([partition]) == {partition: 0}
    consumer.close()


def test_a_tracker_sends_encrypted_and_by_name(house: House) -> None:
    house.open_up(PRODUCER)
    security = Security(tls=True, ca_file=str(house.kafka.ca_file), mechanism="SCRAM-SHA-512",
                        username=house.user(PRODUCER), password=PASSWORDS[PRODUCER])  # fmt: skip
    topic = f"{house.name}-usage"
    with Tracker(house.kafka.secured, topic, security=security, raise_errors=True, agent_id="a") as tracker:
        tracker.event(model="m")
        assert tracker.flush(30)
        assert tracker.sent == 1
    assert len(house.read(topic)) == 1


# ---------------------------------------------------------------------------------------- refusals


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", [["worker"], ["topics", "--check"]])
def test_a_wrong_password_is_said_in_one_line(house: House, command: list[str]) -> None:
    house.admit(WORKER)
    line = one_line(house.do(WORKER, *command, password="planted-secret"))
    assert line == (
        f"burnfuse: Kafka at {house.kafka.secured} does not let {house.user(WORKER)} in: "
        "check kafka.sasl.username and BURNFUSE_KAFKA_PASSWORD"
    )


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

    subject: ClassVar[str] = ""
    given: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        good = self.headers["Authorization"] == "Basic YnVybmZ1c2U6dGhlLXNlY3JldA=="  # burnfuse:the-secret
        if good and "grant_type=client_credentials" in form:
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
    TokenEndpoint.subject, TokenEndpoint.given = house.user(WORKER), []
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
    done = house.run("worker", "--config", config, **environment)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert says in line


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


def test_secrets_are_in_no_output(house: House, endpoint: str) -> None:
    planted = {f"BURNFUSE_{name.upper()}": f"planted-{name}" for name in SECRETS}
    scram, oauth = (
        house.config(WORKER),
        house.config("oauth", mechanism="OAUTHBEARER", token_url=endpoint, client_id="burnfuse"),
    )
    events = house.folder / "events.jsonl"
    events.write_text(json.dumps(loop("a")[0]))
    said = ""
    for config in (scram, oauth):
        for command in (["config", "show"], ["config", "check"], ["worker", "--verbose"], ["topics", "--json"],
                        ["topics", "--acls", "--json"], ["dlq", "list", "--json"], ["replay", events]):  # fmt: skip
            done = house.run(*command, *([config] if "check" in command else ["--config", config]), **planted)
            assert "Traceback" not in done.stderr
            said += done.stdout + done.stderr
    assert "does not let" in said
    assert "answers 401" in said
    assert "planted-" not in said
