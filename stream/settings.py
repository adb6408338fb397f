"""Configuration: one strict YAML file; secrets from the environment or from files, never printed.

The only place that reads the environment.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

import detectors
from burnfuse.security import Mechanism
from burnfuse.tokens import check_url
from detectors.base import DetectorConfig, setting
from stream.errors import ConfigError, UsageError
from stream.ingest import formats

HASH_KEY_BYTES = 64
SECRETS = {
    "slack_token": "Slack bot token (xoxb-...) with the scope chat:write.",
    "hash_key": "Key of the hashes of arguments and results, at most 64 bytes; the same for all workers.",
    "kafka_password": "Password of `kafka.sasl.username`, for PLAIN and SCRAM.",
    "kafka_client_secret": "Secret of `kafka.sasl.client_id`, for tokens from an endpoint.",
    "kafka_key_password": "Password of the private key in `kafka.tls.key_file`, if it has one.",
}
"""Secrets, by name. `slack_token` is read from BURNFUSE_SLACK_TOKEN, or from the file named by
BURNFUSE_SLACK_TOKEN_FILE; the others likewise."""

GroupField = Literal["tenant", "team", "provider", "model"]
"""Fields of an event that may tell groups of agents apart; never a person."""

_MOST = 1_000_000.0
"""Largest weight or price: with it, the sums of any event the contract allows stay finite."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class VolatileFields(Section):
    """Fields of one tool that change from call to call without meaning anything.

    A name fits at any depth, whatever its case and separators; `parent.name` fits only under that parent.
    """

    args: list[str] = Field(default=[], description="Fields of arguments.")
    result: list[str] = Field(default=[], description="Fields of results.")


ToolKindName = Literal["unknown", "read", "mutate", "poll", "shell"]


class InputSettings(Section):
    """What is read."""

    format: str = Field(default="auto", description="Format of the records; auto looks at each.")
    max_record_bytes: int = setting(
        1 << 20,
        unit="bytes",
        why="Larger records are rejected.",
        source="Kafka's own default for the largest message (message.max.bytes, 1 MiB)",
        ge=1024,
    )
    future_s: float = setting(
        366 * 86400.0,
        unit="s",
        why="Events later than this after now are rejected: they would stop their agent's clock.",
        source="a year: catches broken clocks, lets simulated streams pass",
        gt=0,
    )
    max_rejected_share: float = setting(
        0.5,
        unit="share of events",
        why="A worker stops where more than this is turned away; 1: never. Duplicates and late events do not count.",
        source="more is lost than kept; single faulty producers among several stay below",
        gt=0,
        le=1,
    )
    max_rejected_of: int = setting(
        1000,
        unit="events",
        why="Over how many of the latest events that share is taken, at least.",
        source="a share of a half is then known within 3 % (binomial, 95 %)",
        ge=1,
    )
    keyed_by: Literal["any", "agent_id"] = Field(
        default="any",
        description="What the records of the input topic are keyed by. agent_id: all events of an agent come on one "
        "partition (the SDK's do), so they are judged where they are read, without a shuffle.",
    )
    group_by: list[GroupField] = Field(
        default=["tenant", "model"],
        description="Fields that make a group: agents of one group share learned thresholds.",
    )
    volatile: dict[str, VolatileFields] = Field(
        default={},
        description="Fields left out before contents are hashed, by pattern of the tool's name (or `tool:action`); "
        "a tool that fits one follows it instead of the built-in ones.",
    )
    tool_kinds: dict[str, ToolKindName] = Field(
        default={},
        description="What tools do, by pattern of the name, where the name does not tell: read, mutate, poll, shell.",
    )

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in formats.names():
            raise ValueError(f"there is no format {name!r}; known: {', '.join(formats.names())}")
        return name


class EffectiveTokens(Section):
    """Weights that make tokens of all kinds comparable without a price table."""

    input: float = setting(1.0, unit="tokens", why="An uncached input token.", source="the unit", ge=0, le=_MOST)
    cached_input: float = setting(
        0.1, unit="tokens", why="A token read from the cache.", source="list prices: a tenth of input", ge=0, le=_MOST
    )
    cache_write: float = setting(
        1.0,
        unit="tokens",
        why="A token written to the cache.",
        source="list prices: about that of input",
        ge=0,
        le=_MOST,
    )
    output: float = setting(
        4.0,
        unit="tokens",
        why="An output token, reasoning included.",
        source="list prices: 4 to 5 times input",
        ge=0,
        le=_MOST,
    )


class ModelPrice(Section):
    """Price of a model, for negotiated rates and own models."""

    input: float = setting(
        ..., unit="$ per million tokens", why="Uncached input.", source="the operator", ge=0, le=_MOST
    )
    output: float = setting(..., unit="$ per million tokens", why="Output.", source="the operator", ge=0, le=_MOST)
    cached_input: float | None = setting(
        None,
        unit="$ per million tokens",
        why="Input from the cache; as input if not given.",
        source="the operator",
        ge=0,
        le=_MOST,
    )
    cache_write: float | None = setting(
        None,
        unit="$ per million tokens",
        why="Cache writes; as input if not given.",
        source="the operator",
        ge=0,
        le=_MOST,
    )


class EngineSettings(Section):
    """How events are put in order and how long entities live."""

    lateness_s: float = setting(
        900.0,
        unit="s",
        why="An event older than its run's newest by more than this is rejected.",
        source="covers producers that send in batches of minutes",
        gt=0,
    )
    run_ttl_s: float = setting(
        3600.0,
        unit="s",
        why="A run silent for so long begins anew.",
        source="twice the 30 minutes after which published loop detectors forget",
        gt=0,
    )
    root_ttl_s: float = setting(
        6 * 3600.0, unit="s", why="A tree silent for so long begins anew.", source="overnight jobs wait for hours", gt=0
    )
    agent_ttl_s: float = setting(
        30 * 86400.0,
        unit="s",
        why="An agent silent for so long loses its baseline.",
        source="a monthly job keeps what was learned",
        gt=0,
    )
    duplicate_ids: int = setting(
        262_144,
        unit="ids",
        why="Event ids remembered per partition to recognise duplicates, at least.",
        source="minutes of traffic at thousands of events per second per partition",
        ge=1,
    )
    tick_s: float = setting(
        600.0,
        unit="s",
        why="Event time between sweeps of dead entities and fresh fleet figures.",
        source="well below every time to live",
        gt=0,
    )


class CalibrationSettings(Section):
    """Figures of the whole fleet."""

    file: str | None = Field(
        default=None, description="Fixed fleet figures (burnfuse watch --save-calibration); none: learned live."
    )
    publish_s: float = setting(
        60.0, unit="s", why="How often a worker publishes its part of the figures.", source="they move slowly", gt=0
    )


class IncidentSettings(Section):
    """How findings become incidents."""

    quiet_s: float = setting(
        300.0,
        unit="s",
        why="So long without a finding until an incident is resolved.",
        source="five times the pause between reports of a lasting loop",
        gt=0,
    )
    max_findings: int = setting(
        200, unit="findings", why="Finding ids kept per incident.", source="three hours of a lasting loop", ge=1
    )


class TlsSettings(Section):
    """Encryption of the connections to Kafka."""

    enabled: bool = Field(default=False, description="Encrypt the connections.")
    ca_file: str | None = Field(
        default=None, description="Certificates (PEM) of who may vouch for brokers; none: the system's."
    )
    certificate_file: str | None = Field(
        default=None, description="Own certificate (PEM), for brokers that ask for one."
    )
    key_file: str | None = Field(default=None, description="Private key (PEM) of that certificate.")
    check_hostname: bool = Field(
        default=True, description="A broker's certificate must be for the name it is reached by."
    )

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file are set together")
        if not self.enabled and (self.ca_file or self.certificate_file or not self.check_hostname):
            raise ValueError("these settings need enabled: true")
        return self


class SaslSettings(Section):
    """Who connects to Kafka. Passwords and secrets are not set here: see the variables above."""

    mechanism: Mechanism | None = Field(default=None, description="How to prove it; none: not at all, or by TLS.")
    username: str | None = Field(default=None, min_length=1, description="For PLAIN and SCRAM.")
    token_file: str | None = Field(
        default=None, description="For OAUTHBEARER: file with a token that somebody else renews; read each time."
    )
    token_url: str | None = Field(
        default=None, description="For OAUTHBEARER: endpoint that gives tokens (OAuth 2.0, client credentials)."
    )
    client_id: str | None = Field(default=None, min_length=1, description="Who asks that endpoint.")
    scope: str = Field(default="", description="What for; empty: the endpoint's default.")
    token_ca_file: str | None = Field(
        default=None, description="Certificates (PEM) of who may vouch for the endpoint; none: the system's."
    )
    token_timeout_s: float = setting(
        10.0,
        unit="s",
        why="How long the endpoint may take.",
        source="as long as a client looks for a broker",
        gt=0,
    )

    @model_validator(mode="after")
    def _whole(self) -> SaslSettings:
        token = {"token_file": self.token_file, "token_url": self.token_url}
        given = [name for name, value in token.items() if value is not None]
        if self.mechanism == "OAUTHBEARER":
            if len(given) != 1:
                raise ValueError("either token_file or token_url is needed for OAUTHBEARER")
            if (self.token_url is None) != (self.client_id is None):
                raise ValueError("token_url and client_id are set together")
            if self.username is not None:
                raise ValueError("username is not for OAUTHBEARER: the token says who it is")
        elif given or self.client_id is not None:
            raise ValueError("tokens need mechanism: OAUTHBEARER")
        elif (self.mechanism is None) != (self.username is None):
            raise ValueError("mechanism and username are set together")
        if self.token_url is not None:
            check_url(self.token_url)
        return self


class KafkaSettings(Section):
    """Where Kafka is, and how the topics are laid out."""

    bootstrap_servers: list[str] = Field(default=["localhost:9092"], description="Brokers, host:port.")
    app_id: str = Field(default="burnfuse", description="Consumer group and Faust application id.")
    input_topic: str = Field(default="usage", description="Topic of usage events, any format, any key.")
    prefix: str = Field(default="bf", description="Prefix of burnfuse's own topics.")
    input_partitions: int = setting(
        8, unit="partitions", why="Of the input topic, where `burnfuse topics` creates it.", source="room to grow", ge=1
    )
    partitions: int = setting(
        4,
        unit="partitions",
        why="Of the keyed inner topics: the most workers that can share the load. Fixed once state exists.",
        source="four workers take some 100,000 events/s; twice as many partitions make findings of one worker half "
        "again as late under load, as each takes steps of its own (benchmarks.latency)",
        ge=1,
    )
    replication: int = setting(
        1, unit="replicas", why="Replication factor of created topics.", source="one broker; use 3 in production", ge=1
    )
    min_insync_replicas: int | None = setting(
        None,
        unit="replicas",
        why="Replicas that must have a record before it counts as taken, of created topics. None: 2 where replication "
        "is 3 or more, else what the brokers are set to.",
        source="a record then outlives any one broker, and one broker that is away stops nobody",
        ge=1,
    )
    batch_records: int = setting(
        32_000,
        unit="records",
        why="Most records processed at once.",
        source="the stages take half the time per event that they take in batches of 2,000 (benchmarks.stages)",
        ge=1,
    )
    hold_s: float = setting(
        0.5,
        unit="s",
        why="How long an input partition that has been read to its end may hold back the others.",
        source="covers a producer's linger and a broker's append",
        gt=0,
    )
    session_timeout_s: float = setting(
        10.0,
        unit="s",
        why="A worker not heard of for so long is taken for dead, and its partitions go to others.",
        source="Kafka's own default until 3.0: on-call waits seconds, not the 45 s of today's default",
        ge=1,
        le=60,
    )
    heartbeat_s: float = setting(
        3.0,
        unit="s",
        why="How often a worker says that it lives; at most a third of session_timeout_s.",
        source="Kafka's own default",
        gt=0,
    )
    instance_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=249,
        description="Name of this worker, the same after every restart and no other worker's: a restart within "
        "session_timeout_s then moves no partitions. None: a worker that stops gives its partitions up at once.",
    )
    tls: TlsSettings = Field(default=TlsSettings(), description="Encryption, below.")
    sasl: SaslSettings = Field(default=SaslSettings(), description="Who connects, below.")

    @model_validator(mode="after")
    def _enough_replicas(self) -> KafkaSettings:
        if self.min_insync_replicas is not None and self.min_insync_replicas > self.replication:
            raise ValueError(
                f"min_insync_replicas ({self.min_insync_replicas}) must be at most replication ({self.replication}): "
                "no record could be written"
            )
        return self

    @model_validator(mode="after")
    def _beats_in_time(self) -> KafkaSettings:
        if self.heartbeat_s * 3 > self.session_timeout_s:
            raise ValueError(
                f"heartbeat_s ({self.heartbeat_s:g} s) must be at most a third of session_timeout_s "
                f"({self.session_timeout_s:g} s): a lost heartbeat would cost a worker its partitions"
            )
        return self


class StateSettings(Section):
    """How the worker's state is saved on Kafka."""

    checkpoint_s: float = setting(
        3.0,
        unit="s",
        why="How often the state of a partition is saved; so much is done again after a crash, and what a save takes.",
        source="with two seconds for saving and for the broker, a crash costs at most 5 s of replay",
        gt=0,
    )
    standby: bool = Field(
        default=False,
        description="Follow the state of partitions that other workers have, to take them over within a moment; "
        "takes memory for all of it.",
    )
    revoke_s: float = setting(
        5.0,
        unit="s",
        why="Longest wait for states to be saved before partitions move; what could not be saved is done again.",
        source="well within kafka.session_timeout_s, after which the group gives a silent worker up",
        gt=0,
    )


class MetricsSettings(Section):
    """Health and metrics of the worker: /healthz, /readyz and /metrics (docs/metrics.md)."""

    listen: str | None = Field(
        default="127.0.0.1:8081",
        pattern=r"^\S+:[0-9]{1,5}$",
        description="Address of the server, host:port; 0.0.0.0:8081 in containers; null: no server.",
    )
    hang_s: float = setting(
        30.0,
        unit="s",
        why="/healthz fails when the worker's event loop has not turned for longer.",
        source="ten times the longest batch of 8,000 records on a slow machine",
        gt=0,
    )
    silence_s: float = setting(
        30.0,
        unit="s",
        why="/readyz fails when no Kafka broker has answered for longer.",
        source="covers the restart of one broker of several",
        gt=0,
    )


class OverloadSettings(Section):
    """What happens when more comes than the worker can take (docs/reliability.md)."""

    begin_lag_s: float = setting(
        30.0,
        unit="s",
        why="So far behind on any partition the worker counts as overloaded.",
        source="findings within seconds are what burnfuse is for; well above a rebalance",
        gt=0,
    )
    end_lag_s: float = setting(
        5.0, unit="s", why="Below it the worker has caught up.", source="far from where it begins", gt=0
    )
    shed: bool = Field(
        default=True,
        description="Leave out the second stage (detectors that find nothing within minutes) while overloaded.",
    )

    @model_validator(mode="after")
    def _the_end_comes_below(self) -> Self:
        if self.end_lag_s >= self.begin_lag_s:
            raise ValueError(f"end_lag_s ({self.end_lag_s}) must be below begin_lag_s ({self.begin_lag_s})")
        return self


def _detector_settings() -> type[Section]:
    fields: dict[str, Any] = {
        name: (cls.Config, Field(default=cls.Config(), description=(cls.__doc__ or "").strip().split("\n\n")[0]))
        for name, cls in detectors.registered().items()
    }
    return create_model("DetectorSettings", __base__=Section, **fields)


def _action_settings() -> type[Section]:
    from stream.actions.base import registered

    fields: dict[str, Any] = {
        name: (cls.Config, Field(default=cls.Config(), description=(cls.__doc__ or "").strip().split("\n\n")[0]))
        for name, cls in registered().items()
    }
    return create_model("ActionSettings", __base__=Section, **fields)


class Settings(Section):
    """The whole configuration."""

    kafka: KafkaSettings = KafkaSettings()
    metrics: MetricsSettings = MetricsSettings()
    overload: OverloadSettings = OverloadSettings()
    state: StateSettings = StateSettings()
    input: InputSettings = InputSettings()
    effective_tokens: EffectiveTokens = EffectiveTokens()
    prices: dict[str, ModelPrice] = Field(default={}, description="Own prices by model name.")
    engine: EngineSettings = EngineSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    incidents: IncidentSettings = IncidentSettings()
    # Filled by `settings_type` with what is registered.
    detectors: Any = None
    actions: Any = None


def settings_type() -> type[Settings]:
    """The model of the configuration, with a section for every detector and action there is."""
    found, acts = _detector_settings(), _action_settings()
    return create_model(
        "BurnfuseConfiguration",
        __base__=Settings,
        detectors=(found, found()),
        actions=(acts, acts()),
    )


def default_settings() -> Settings:
    """All defaults."""
    return settings_type()()


def load(path: str | Path | None) -> Settings:
    """The configuration from a YAML file, or the defaults.

    Raises:
        ConfigError: the file is wrong; every problem is told, with its path.
        UsageError: the file cannot be read.
    """
    if path is None:
        return default_settings()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the configuration {path}: {_why(error)}") from error
    return parse(text, str(path))


def parse(text: str, name: str = "configuration") -> Settings:
    """The configuration from YAML text; see `load`."""
    try:
        # The loader is a SafeLoader that also refuses repeated keys.
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the 31st of February
        raise ConfigError(f"{name} is not YAML: {_yaml_problem(error)}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{name} must hold sections such as `kafka:` and `detectors:`")
    model = settings_type()
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_problem(model, e["loc"], e["type"], e["msg"]) for e in error.errors()]
        many = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
        raise ConfigError("\n".join([f"{name} has {many}:", *(f"  {p}" for p in problems)])) from error


class _StrictLoader(yaml.SafeLoader):
    """Refuses repeated keys; takes `null` as a key for a name, for a detector is called so."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            problem = None
            if key_node.value == "null":
                key_node.tag = "tag:yaml.org,2002:str"
            if not isinstance(key_node, yaml.ScalarNode):
                problem = "a key must be a name"
            elif key_node.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys (<<) are not understood"  # a few lines of them can fill the memory
            elif key_node.value in seen:
                problem = f"{key_node.value!r} is set twice"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = str(error.problem)
        # PyYAML repeats what follows, which may be a password that was put here.
        if "constructor for the tag" in problem:
            problem = "tags are not understood: put a text that begins with ! into quotes"
        elif "undefined alias" in problem:
            problem = "there is no such alias: put a text that begins with * into quotes"
        return f"line {error.problem_mark.line + 1}: {problem}"
    return str(error).splitlines()[0] if str(error) else "it is nested too deeply"


def _problem(model: type[BaseModel], loc: Sequence[str | int], kind: str, message: str) -> str:
    path = ".".join(map(str, loc))
    if kind == "extra_forbidden":
        known = _keys_at(model, loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), known, n=1)
        return f"{path}: unknown key" + (f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}")
    message = message.removeprefix("Value error, ").split(" or instance of ")[0]
    return f"{path}: {message[:1].lower()}{message[1:]}"


def _keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    for part in loc:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if isinstance(field, FieldInfo) else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return sorted(ModelPrice.model_fields)
        model = annotation
    return sorted(model.model_fields)


def detector_config(settings: Settings, name: str) -> DetectorConfig:
    """The settings of one detector."""
    config: DetectorConfig = getattr(settings.detectors, name)
    return config


def needed_secret(name: str) -> str:
    """A secret's value.

    Raises:
        ConfigError: it is not set, or cannot be read.
    """
    value = secret(name)
    if value is None:
        raise ConfigError(f"the secret {name} is not set: set BURNFUSE_{name.upper()} or BURNFUSE_{name.upper()}_FILE")
    return value


def secret(name: str, environment: Mapping[str, str] | None = None) -> str | None:
    """A secret's value, or None if it is not set.

    Raises:
        ConfigError: the file that should hold it cannot be read, or it is too long.
    """
    env = os.environ if environment is None else environment
    variable = f"BURNFUSE_{name.upper()}"
    # A line's end is part of no secret: it comes along where a file is made a variable.
    value, path = env.get(variable, "").rstrip("\r\n"), env.get(f"{variable}_FILE")
    if not value and path:
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the secret {name} from {variable}_FILE: {_why(error)}") from error
    if name == "hash_key" and len((value or "").encode()) > HASH_KEY_BYTES:
        raise ConfigError(f"the secret hash_key is longer than {HASH_KEY_BYTES} bytes")
    return value or None


def _why(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
