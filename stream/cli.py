"""The command line."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from stream import logs
from stream.acls import Layout, show
from stream.clock import SystemClock
from stream.errors import UsageError
from stream.ingest import formats
from stream.ingest.reject import Reason
from stream.report import JsonReporter, PlainReporter, Reporter
from stream.settings import Settings, load, settings_type
from stream.view import LiveReporter

app = typer.Typer(
    help="Notices within seconds when AI agents burn money: retry loops, runaways, spirals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Checks, explains and shows the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
state_app = typer.Typer(help="Shows what the workers have saved on Kafka, or gives it up.", no_args_is_help=True)
app.add_typer(state_app, name="state")
dlq_app = typer.Typer(help="Lists dead letters, and sends their records again.", no_args_is_help=True)
app.add_typer(dlq_app, name="dlq")

Format = StrEnum("Format", {name: name for name in formats.names()})  # type: ignore[misc]

_AUTO = Format("auto")


class FailOn(StrEnum):
    """Severities for --fail-on."""

    WARNING = "warning"
    CRITICAL = "critical"


ConfigOption = Annotated[
    str | None, typer.Option("--config", help="Configuration file (YAML); defaults otherwise.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the records.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")]


def _settings(config: str | None, format_: Format | None = None) -> Settings:
    settings = load(config)
    if format_ is not None and format_.value != "auto":
        settings = settings.model_copy(update={"input": settings.input.model_copy(update={"format": format_.value})})
    return settings


def _reporter(json: bool, title: str) -> Reporter:
    if json:
        return JsonReporter()
    console = Console()
    return LiveReporter(console, SystemClock(), title) if console.is_terminal else PlainReporter()


@app.command(
    epilog="Example: burnfuse demo --json | jq 'select(.type == \"incident\")'",
)
def demo(
    json: JsonOption = False,
    seed: Annotated[int, typer.Option(help="Seed of the simulated company.")] = 7,
    save: Annotated[
        str | None, typer.Option(help="Only write the simulated events to this file.", show_default=False)
    ] = None,
    verbose: VerboseOption = False,
) -> None:
    """Shows the main job on a simulated company's agents with three injected faults."""
    from stream.demo import run, write

    logs.set_up(verbose)
    if save is not None:
        write(seed, save)
        return
    run(seed, _reporter(json, "burnfuse demo: a simulated company's agents"), SystemClock(), quiet=json)


@app.command(epilog="Example: burnfuse watch --json --fail-on critical events.jsonl.gz")
def watch(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files (also .gz), folders, or - .")],
    json: JsonOption = False,
    config: ConfigOption = None,
    format_: FormatOption = _AUTO,
    follow: Annotated[bool, typer.Option("--follow", help="Keep reading what is added to the files.")] = False,
    fail_on: Annotated[
        FailOn | None, typer.Option("--fail-on", help="Exit with 1 if such an incident opened.", show_default=False)
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="Fixed figures of the fleet; learned otherwise.", show_default=False)
    ] = None,
    save_calibration: Annotated[
        str | None, typer.Option(help="Write the figures learned to this file.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Take no actions, whatever is configured.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Runs the pipeline on recorded events."""
    from stream.watch import watch as run

    logs.set_up(verbose)
    outcome = run(
        _settings(config, format_),
        paths,
        _reporter(json, "burnfuse watch"),
        SystemClock(),
        calibration_file=calibration,
        save_calibration=save_calibration,
        follow=follow,
        act=not dry_run,
    )
    if outcome.unreadable:
        raise typer.Exit(3)
    if outcome.fails_on(fail_on.value if fail_on else None):
        raise typer.Exit(1)


@app.command(epilog="Example: burnfuse normalize session.jsonl | head -3")
def normalize(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files (also .gz), folders, or - .")],
    format_: FormatOption = _AUTO,
    config: ConfigOption = None,
) -> None:
    """Prints what burnfuse understands of a file: native events, one JSON object per line."""
    from stream.normalize import normalize as run

    logs.set_up(False)
    if not run(_settings(config, format_), paths, SystemClock()):
        raise typer.Exit(3)


@app.command(epilog="Example: burnfuse worker --config burnfuse.yaml")
def worker(config: ConfigOption = None, verbose: VerboseOption = False) -> None:
    """Runs the Faust worker on Kafka until it is stopped."""
    from stream.app import run

    logs.set_up(verbose)
    run(_settings(config))


@app.command(epilog="Example: burnfuse topics --config burnfuse.yaml --check")
def topics(
    config: ConfigOption = None,
    check: Annotated[bool, typer.Option("--check", help="Only tell what is missing or different.")] = False,
    acls: Annotated[bool, typer.Option("--acls", help="Only print the rights on Kafka that each role needs.")] = False,
    layout: Annotated[
        Layout, typer.Option("--format", help="Of --acls: a table, or commands for kafka-acls.sh.")
    ] = Layout.TABLE,
    json: JsonOption = False,
) -> None:
    """Creates the topics with their settings, or checks them."""
    from stream.topics import run

    logs.set_up(False)
    if acls:
        show(_settings(config), layout, json=json)
        return
    if not run(_settings(config), check=check, json=json):
        raise typer.Exit(1)


@app.command(epilog="Example: burnfuse replay events.jsonl.gz --broker localhost:9092 --speed 10")
def replay(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files (also .gz), folders, or - .")],
    broker: Annotated[
        str | None, typer.Option(help="Kafka broker, host:port; that of --config otherwise.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    topic: Annotated[
        str | None, typer.Option(help="Topic to send to; that of --config otherwise.", show_default=False)
    ] = None,
    speed: Annotated[float, typer.Option(help="Times the recorded pace; 0 is as fast as possible.", min=0)] = 0.0,
    key: Annotated[str, typer.Option(help="Key of the records: agent_id, root_run_id or none.")] = "agent_id",
) -> None:
    """Sends a recorded stream to Kafka."""
    from stream.replay import KEYS, run

    logs.set_up(False)
    if key not in KEYS:
        raise UsageError(f"--key must be one of {', '.join(KEYS)}")
    if broker is None and config is None:
        raise UsageError("where is Kafka? Give --broker host:port, or --config")
    kafka = _settings(config).kafka
    if broker is not None:
        kafka = kafka.model_copy(update={"bootstrap_servers": [broker]})
    if not run(paths, kafka, topic or kafka.input_topic, speed, key, SystemClock()):
        raise typer.Exit(3)


@app.command(epilog="Example: burnfuse evaluate labelled/ --data loops --data spiral --plots pictures/")
def evaluate(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of labelled data.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind of data; may be given again. All that DIR holds otherwise.", metavar="KIND"),
    ] = None,
    config: ConfigOption = None,
    plots: Annotated[
        str | None, typer.Option(help="Draw pictures into this folder (PNG).", metavar="FOLDER", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measures the detectors, and naive rules beside them, on labelled data: one table."""
    from stream.evaluate.run import run

    logs.set_up(False)
    run(folder, data or [], _settings(config), plots, json=json)


@config_app.command("check", epilog="Example: burnfuse config check burnfuse.yaml")
def config_check(path: Annotated[str, typer.Argument(help="Configuration file.")]) -> None:
    """Tells every problem of a configuration file at once."""
    load(path)
    print(f"{path} is fine")


@config_app.command("schema", epilog="Example: burnfuse config schema > burnfuse.schema.json")
def config_schema() -> None:
    """Prints the JSON schema of the configuration."""
    print(_pretty(settings_type().model_json_schema()))


@config_app.command("show", epilog="Example: burnfuse config show --config burnfuse.yaml")
def config_show(config: ConfigOption = None) -> None:
    """Prints the configuration in force, defaults included, as YAML; secrets are not part of it."""
    import yaml

    sys.stdout.write(yaml.safe_dump(load(config).model_dump(), sort_keys=False, allow_unicode=True))


@state_app.command("show", epilog="Example: burnfuse state show --config burnfuse.yaml --json")
def state_show(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Tells what is saved of every partition: when, up to where, how much."""
    from stream.saved import show

    logs.set_up(False)
    if not show(_settings(config), SystemClock(), json=json):
        raise typer.Exit(1)


@state_app.command("reset", epilog="Example: burnfuse state reset --config burnfuse.yaml --yes")
def state_reset(
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Yes, all of it is to be lost.")] = False,
) -> None:
    """Gives all saved state up, where it cannot be used: baselines, streaks, trees, open incidents."""
    from stream.saved import reset

    logs.set_up(False)
    reset(_settings(config), SystemClock(), sure=yes)


_REASONS = StrEnum("Reasons", {reason.name: reason.value for reason in Reason})  # type: ignore[misc]
ReasonOption = Annotated[
    _REASONS | None, typer.Option("--reason", help="Only letters with this reason.", show_default=False)
]
SinceOption = Annotated[
    str | None,
    typer.Option(help="Only letters since then: a time, or how long ago (30min, 2h, 7d).", show_default=False),
]


def _choice(reason: Any, since: str | None, ids: list[str] | None, limit: int | None) -> Any:
    from stream.dlq import Choice, moment

    return Choice(
        Reason(reason.value) if reason is not None else None,
        moment(since, SystemClock()) if since is not None else None,
        frozenset(ids or ()),
        limit,
    )


@dlq_app.command("list", epilog="Example: burnfuse dlq list --config burnfuse.yaml --reason invalid --since 2h")
def dlq_list(
    config: ConfigOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    limit: Annotated[int, typer.Option(help="Most letters listed, the newest ones.", min=1)] = 50,
    json: JsonOption = False,
) -> None:
    """Lists events that were turned away, and counts them by reason."""
    from stream.dlq import show

    logs.set_up(False)
    show(_settings(config), _choice(reason, since, None, limit), json=json)


@dlq_app.command("replay", epilog="Example: burnfuse dlq replay --config burnfuse.yaml --reason bad_time --dry-run")
def dlq_replay(
    config: ConfigOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(help="Only the letter with this source, as `list` shows it; may be given again.", metavar="ID"),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Most letters, the oldest ones.", min=1, show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what could be sent.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also letters that were replayed before.")] = False,
    json: JsonOption = False,
) -> None:
    """Sends records that were turned away to the input topic again; ends with 3 if some are no longer there."""
    from stream.dlq import replay as run
    from stream.dlq import tell

    logs.set_up(False)
    outcome = run(_settings(config), _choice(reason, since, ids, limit), dry_run=dry_run, again=again)
    tell(outcome, dry_run=dry_run, json=json)
    if outcome.gone:
        raise typer.Exit(3)


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def command_names() -> list[str]:
    """Names of all commands, for the check of the documentation."""
    return [c.name or c.callback.__name__ for c in app.registered_commands if c.callback] + ["config", "dlq", "state"]
