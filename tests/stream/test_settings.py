"""The configuration: strict, every problem at once with its path, secrets kept out, thresholds explained."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from streams import command

import detectors
from stream.actions.base import registered
from stream.errors import BurnfuseError, ConfigError, UsageError
from stream.settings import SECRETS, Settings, default_settings, detector_config, load, parse, secret, settings_type

ROOT = Path(__file__).parents[2]
SECTIONS = set(Settings.model_fields)


def problems(text: str) -> str:
    with pytest.raises(ConfigError) as wrong:
        parse(text, "burnfuse.yaml")
    return str(wrong.value)


# -------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafkaa: {}", "kafkaa: unknown key; did you mean kafka?"),
        ("slack: {}", "slack: unknown key; known: actions, calibration, detectors, effective_tokens, engine,"),
        ("engine: {latenes_s: 3}", "engine.latenes_s: unknown key; did you mean lateness_s?"),
        ("detectors: {runawy: {}}", "detectors.runawy: unknown key; did you mean runaway?"),
        ("detectors: {runaway: {warnin: 1.0}}", "detectors.runaway.warnin: unknown key; did you mean warning?"),
        ("actions: {slack: {chanel: '#x'}}", "actions.slack.chanel: unknown key; did you mean channel?"),
        ("actions: {slack: {token: xoxb-1}}", "actions.slack.token: unknown key"),
        ("prices: {m: {input: 1, inputs: 1, output: 1}}", "prices.m.inputs: unknown key; did you mean input?"),
        ("prices: {m: {input: 1}}", "prices.m.output: field required"),
        ("prices: {m: {input: -1, output: 1}}", "prices.m.input: input should be greater than or equal to 0"),
        ("prices: {m: {input: 1, output: 1, cached_input: -1}}", "prices.m.cached_input: input should be greater"),
        ("prices: []", "prices: input should be a valid dictionary"),
        ("kafka: 3", "kafka: input should be a valid dictionary"),
        ("kafka: {bootstrap_servers: 'localhost:9092'}", "kafka.bootstrap_servers: input should be a valid list"),
        ("kafka: {partitions: 0}", "kafka.partitions: input should be greater than or equal to 1"),
        ("kafka: {partitions: 2.5}", "kafka.partitions: input should be a valid integer"),
        ("kafka: {partitions: '8'}", "kafka.partitions: input should be a valid integer"),
        ("engine: {lateness_s: '900'}", "engine.lateness_s: input should be a valid number"),
        ("engine: {lateness_s: true}", "engine.lateness_s: input should be a valid number"),
        ("engine: {lateness_s: .nan}", "engine.lateness_s: input should be greater than 0"),
        ("engine: {lateness_s: }", "engine.lateness_s: input should be a valid number"),
        ("effective_tokens: {output: .inf}", "effective_tokens.output: input should be less than or equal to"),
        ("detectors: {runaway: {enabled: 'yes'}}", "detectors.runaway.enabled: input should be a valid boolean"),
        ("input: {format: xml}", "input.format: there is no format 'xml'; known: auto, "),
        ("actions: {kill: {mode: enforce}}", "actions.kill.mode: input should be 'dry_run'"),
        ("kafka: {tls: {ca_file: x}}", "kafka.tls: these settings need enabled: true"),
        ("kafka: {tls: {enabled: true, key_file: x}}", "kafka.tls: certificate_file and key_file are set together"),
        ("kafka: {sasl: {mechanism: PLAIN}}", "kafka.sasl: mechanism and username are set together"),
        ("kafka: {sasl: {username: u}}", "kafka.sasl: mechanism and username are set together"),
        ("kafka: {sasl: {mechanism: SCRAM, username: u}}", "kafka.sasl.mechanism: input should be 'PLAIN', "),
        ("kafka: {sasl: {password: x}}", "kafka.sasl.password: unknown key"),
        (
            "kafka: {sasl: {mechanism: OAUTHBEARER}}",
            "kafka.sasl: either token_file or token_url is needed",
        ),
        ("kafka: {sasl: {token_file: x}}", "kafka.sasl: tokens need mechanism: OAUTHBEARER"),
        (
            "kafka: {sasl: {mechanism: OAUTHBEARER, token_url: 'https://x'}}",
            "kafka.sasl: token_url and client_id are set together",
        ),
        (
            "kafka: {sasl: {mechanism: OAUTHBEARER, token_url: 'http://x', client_id: c}}",
            "kafka.sasl: a token endpoint must be https",
        ),
        ("input: {max_rejected_share: 0.0}", "input.max_rejected_share: input should be greater than 0"),
        ("1: 2", "1: keys should be strings"),
    ],
)
def test_a_problem_is_told_with_its_path(text: str, says: str) -> None:
    told = problems(text).splitlines()
    assert told[0] == "burnfuse.yaml has 1 problem:"
    assert told[1].startswith(f"  {says}")
    assert len(told) == 2


def test_all_problems_are_told_at_once() -> None:
    told = problems("kafkaa: {}\nengine: {latenes_s: 3, tick_s: -1}\ndetectors: {spiral: {enabled: 1}}\n")
    assert told.splitlines() == [
        "burnfuse.yaml has 4 problems:",
        "  engine.tick_s: input should be greater than 0",
        "  engine.latenes_s: unknown key; did you mean lateness_s?",
        "  detectors.spiral.enabled: input should be a valid boolean",
        "  kafkaa: unknown key; did you mean kafka?",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafka: {}\nengine: {}\nkafka: {}\n", "is not YAML: line 3: 'kafka' is set twice"),
        ("detectors:\n  runaway:\n    warning: 1\n    warning: 2", "is not YAML: line 4: 'warning' is set twice"),
        ("kafka:\n\tprefix: x", "is not YAML: line 2: found character '\\t' that cannot start any token"),
        ("kafka: {", "is not YAML: line 1:"),
        ("kafka: *nobody", "is not YAML: line 1: there is no such alias"),
        ("kafka: !!python/object/apply:os.system ['true']", "is not YAML: line 1: tags are not understood"),
        ("kafka: &k {}\nengine: {<<: *k}", "is not YAML: line 2: merge keys (<<) are not understood"),
        ("? [a, b]\n: 1", "is not YAML: line 1: a key must be a name"),
        ("kafka: 2025-02-31", "is not YAML: day is out of range for month"),
        ("kafka: 1" + "0" * 5000, "is not YAML: "),
        ("kafka: \0", "is not YAML: unacceptable character"),
        ("[" * 3000, "is not YAML: "),
        ("- kafka", "must hold sections such as `kafka:` and `detectors:`"),
        ("kafka", "must hold sections such as"),
    ],
)
def test_what_is_no_configuration_is_told_in_one_line(text: str, says: str) -> None:
    told = problems(text)
    assert told.startswith(f"burnfuse.yaml {says}")
    assert len(told.splitlines()) == 1
    assert len(told) < 250


def test_aliases_do_not_blow_up() -> None:
    # "Billion laughs": 9 ** 20 items if anybody wrote them out.
    letters = "abcdefghijklmnopqrst"
    lines = ["a: &a [x, x]", *(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise(letters))]
    told = problems("\n".join([*lines, "prices: {m: *t}", "kafka: {app_id: *t, bootstrap_servers: *t}"]))
    assert "prices.m: input should be a valid dictionary" in told
    assert len(told) < 10_000
    assert "kafka.kafka: unknown key" in problems("&a {kafka: *a}")


YAMLISH = st.text("{}[]:,-&*!|>'\"#%@`<? \n\tab1.~é", max_size=40)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SECTIONS, "runaway", "slack", "m", "enabled"]), inner, max_size=4)
    ),
)


@given(YAMLISH | TREES.map(yaml.safe_dump))
def test_any_text_is_a_configuration_or_told(text: str) -> None:
    with contextlib.suppress(BurnfuseError):
        assert isinstance(parse(text), Settings)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"kafka: {prefix: caf\xe9}")
    for name, why in {"gone.yaml": "No such file or directory", "latin1.yaml": "it is not UTF-8 text"}.items():
        with pytest.raises(UsageError, match=f"cannot read the configuration .*{name}: {why}"):
            load(tmp_path / name)


# --------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "{}", "detectors: {}", "engine: {lateness_s: 900}"])
def test_what_is_not_said_has_its_default(text: str) -> None:
    assert parse(text).model_dump() == default_settings().model_dump()


def test_what_is_said_holds() -> None:
    own = "prices: {our/model-1: {input: 1, output: 2}}"
    found = parse(f"detectors: {{runaway: {{warning: 2, critical: 3, enabled: false}}}}\n{own}")
    runaway: Any = detector_config(found, "runaway")
    assert (runaway.warning, runaway.enabled) == (2.0, False)
    assert found.prices["our/model-1"].output == 2.0


def test_a_warning_above_its_critical_and_an_unknown_detector_are_told() -> None:
    with pytest.raises(ConfigError) as error:
        parse("detectors: {retry_loop: {repeat_warning: 9}}\nactions: {kill: {detectors: [runawy]}}")
    assert str(error.value).splitlines()[1:] == [
        "  detectors.retry_loop: repeat_warning (9) must not be above repeat_critical",
        f"  actions.kill.detectors: no such detector: runawy; known: {', '.join(detectors.registered())}",
    ]


def test_the_null_detector_can_be_named() -> None:
    assert detector_config(parse("detectors: {null: {enabled: false}}"), "null").enabled is False


def test_every_detector_and_action_has_its_section() -> None:
    found = default_settings()
    assert set(type(found.detectors).model_fields) == set(detectors.registered())
    assert set(type(found.actions).model_fields) == set(registered())
    assert not [name for name in registered() if getattr(found.actions, name).enabled]


def thresholds(schema: dict[str, Any], defs: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All numbers of the configuration, with their paths."""
    for name, field in schema.get("properties", {}).items():
        place = f"{path}.{name}".lstrip(".")
        options = [field, *field.get("anyOf", []), *field.get("allOf", [])]
        # A port is an address, not a quantity.
        if any(option.get("type") in ("number", "integer") for option in options) and not name.endswith("port"):
            yield place, field
        for option in [*options, field.get("additionalProperties", {})]:
            if isinstance(option, dict) and "$ref" in option:
                yield from thresholds(defs[option["$ref"].split("/")[-1]], defs, place)


SCHEMA = settings_type().model_json_schema()
THRESHOLDS = dict(thresholds(SCHEMA, SCHEMA["$defs"]))


def test_the_schema_has_all_numbers() -> None:
    assert {
        "detectors.retry_loop.repeat_warning",
        "detectors.runaway.critical",
        "detectors.spiral.depth_warning",
        "actions.slack.update_s",
        "engine.lateness_s",
        "incidents.quiet_s",
        "effective_tokens.output",
        "prices.input",
        "kafka.partitions",
        "calibration.publish_s",
    } <= set(THRESHOLDS)


@pytest.mark.parametrize("path", THRESHOLDS)
def test_every_number_says_what_it_means_in_which_unit_and_where_it_comes_from(path: str) -> None:
    field = THRESHOLDS[path]
    assert field["description"].endswith(".")
    assert field["unit"]
    assert field["source"]


def examples() -> Iterator[tuple[str, str]]:
    """The configurations that people are shown: files, and YAML in documents that has our sections."""
    for folder in ("docs", "examples", "docker"):
        for file in sorted((ROOT / folder).rglob("*.y*ml")):
            yield str(file.relative_to(ROOT)), file.read_text()
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```ya?ml\n(.*?)^```", file.read_text(), re.MULTILINE | re.DOTALL):
            yield f"{file.name}: {block[:30]!r}", block


def test_the_examples_pass_the_check() -> None:
    for name, text in examples():
        data = yaml.safe_load(text)
        if isinstance(data, dict) and set(data) & SECTIONS and "apiVersion" not in data and "services" not in data:
            assert parse(text, name)


# ---------------------------------------------------------------------------------- the command line


def test_check_says_that_a_file_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "burnfuse.yaml"
    file.write_text("engine: {lateness_s: 60}\n")
    assert command("config", "check", file) == (0, f"{file} is fine\n", "")


def test_check_tells_the_problems_and_ends_with_2(tmp_path: Path) -> None:
    file = tmp_path / "burnfuse.yaml"
    file.write_text("engine: {latenes_s: 60}\n")
    told = f"burnfuse: {file} has 1 problem:\n  engine.latenes_s: unknown key; did you mean lateness_s?\n"
    assert command("config", "check", file) == (2, "", told)
    assert command("watch", "--config", file, "-") == (2, "", told)
    gone = f"burnfuse: cannot read the configuration {tmp_path}/gone: No such file or directory\n"
    assert command("config", "check", tmp_path / "gone") == (2, "", gone)


def test_show_is_itself_a_configuration(tmp_path: Path) -> None:
    shown = command("config", "show").out
    assert parse(shown).model_dump() == default_settings().model_dump()
    file = tmp_path / "burnfuse.yaml"
    file.write_text("kafka: {prefix: we}\nprices: {m: {input: 1, output: 2}}\n")
    again = parse(command("config", "show", "--config", file).out)
    assert again.kafka.prefix == "we"
    assert again.prices["m"].output == 2.0


# --------------------------------------------------------------------------------------------- secrets


def test_secrets_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("  from-file\n")
    both = {"BURNFUSE_SLACK_TOKEN": "from-variable", "BURNFUSE_SLACK_TOKEN_FILE": str(file)}
    assert secret("slack_token", both) == "from-variable"
    assert secret("slack_token", both | {"BURNFUSE_SLACK_TOKEN": ""}) == "from-file"
    assert secret("slack_token", {"BURNFUSE_SLACK_TOKEN_FILE": ""}) is None
    assert secret("slack_token", {}) is None
    assert secret("slack_token", {"BURNFUSE_SLACK_TOKEN": "made-of-a-file\n"}) == "made-of-a-file"
    assert secret("hash_key", both) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file or directory"), (b"\xff\xfe", "it is not UTF-8 text")],
)
def test_a_secret_that_cannot_be_read_is_told_without_it(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"cannot read the secret slack_token from BURNFUSE_SLACK_TOKEN_FILE: {says}"):
        secret("slack_token", {"BURNFUSE_SLACK_TOKEN_FILE": str(file)})


def test_a_hash_key_is_at_most_64_bytes() -> None:
    assert secret("hash_key", {"BURNFUSE_HASH_KEY": "k" * 64}) == "k" * 64
    for key in ("k" * 65, "é" * 33):
        with pytest.raises(ConfigError, match="the secret hash_key is longer than 64 bytes"):
            secret("hash_key", {"BURNFUSE_HASH_KEY": key})


def test_secrets_are_not_shown() -> None:
    planted = {f"BURNFUSE_{name.upper()}": f"planted-{name}" for name in SECRETS}
    for words in (["config", "show"], ["config", "schema"], ["--help"], ["worker", "--help"]):
        assert "planted" not in "".join(map(str, command(*words, environment=planted)))


@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}: planted" for name in SECRETS),
        "kafka: {sasl: {password: planted}}",
        "kafka: {sasl: {mechanism: planted, username: [planted]}}",
        "kafka: {tls: {key_password: planted, key_file: {planted: planted}}}",
        "kafka: {sasl: {mechanism: OAUTHBEARER, client_id: a, token_url: 'https://a:planted@idp.example/'}}",
        "kafka: {sasl: {mechanism: OAUTHBEARER, client_id: a, token_url: 'http://idp.example/?secret=planted'}}",
        "actions: {slack: {token: planted, base_url: 'https://a:planted@slack.example/'}}",
        "kafka: {sasl: {password: planted\n",
        "kafka: {sasl: {password: !planted}}",
        "kafka: {sasl: {password: *planted}}",
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert "planted" not in str(refused.value)


def test_a_worker_must_be_heard_of_three_times_before_it_is_taken_for_dead() -> None:
    assert parse("kafka: {session_timeout_s: 3.0, heartbeat_s: 1.0}").kafka.heartbeat_s == 1.0
    with pytest.raises(ConfigError, match=r"kafka: heartbeat_s \(3 s\) must be at most a third of session_timeout_s"):
        parse("kafka: {session_timeout_s: 6.0}")
