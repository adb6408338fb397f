"""Connections to Kafka: the one place that turns settings into arguments of each client library.

Faust's own credentials are made of the same `Security` in `stream.app`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiokafka.errors as theirs
import kafka.errors as ours
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import create_conn, get_ip_port_afi
from aiokafka.protocol.admin import ApiVersionRequest

from burnfuse.security import KeyPasswordError, Security, SecurityError
from burnfuse.tokens import ClientCredentials, FileTokens, TokenError, Tokens
from stream.errors import BrokerError, ConfigError
from stream.settings import KafkaSettings, needed_secret, secret

log = logging.getLogger(__name__)

# "Unknown" is what a broker says whose disk is full, while it ends: its indexes are files mapped into memory, and there
# is no room behind them. aiokafka would give up what is being sent; it is tried again like all that is not taken.
theirs.UnknownError.retriable = True

_CLIENT = {"client_id": "burnfuse", "bootstrap_timeout_ms": 10_000}
"""Settings of all kafka-python clients; by default they look for a broker for half a minute."""
_LOOK_S = 5.0
_SAY_S = 2.0
"""A broker that refuses a certificate says so at once; one that takes it says nothing."""
_REACH_MS = 10_000
_GRANT = "`burnfuse topics --acls` lists the rights it needs"


def security(kafka: KafkaSettings) -> Security:
    """What encrypts, and who connects.

    Raises:
        ConfigError: a secret is missing.
    """
    tls, sasl = kafka.tls, kafka.sasl
    tokens: Tokens | None = None
    if sasl.token_file is not None:
        tokens = FileTokens(sasl.token_file)
    elif sasl.token_url is not None and sasl.client_id is not None:
        needed_secret("kafka_client_secret")  # told now, not when the first token is fetched
        tokens = ClientCredentials(
            sasl.token_url,
            sasl.client_id,
            lambda: needed_secret("kafka_client_secret"),
            sasl.scope,
            ca_file=sasl.token_ca_file,
            timeout_s=sasl.token_timeout_s,
        )
    return Security(
        tls=tls.enabled,
        ca_file=tls.ca_file,
        certificate_file=tls.certificate_file,
        key_file=tls.key_file,
        key_password=secret("kafka_key_password"),
        check_hostname=tls.check_hostname,
        mechanism=sasl.mechanism,
        username=sasl.username,
        password=needed_secret("kafka_password") if sasl.username is not None else None,
        tokens=tokens,
    )


def for_kafka_python(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments of any client of kafka-python.

    kafka-python tries for as long as it may, and then only says that nobody answers. So where there is more to
    go wrong than that, one connection is made beforehand.

    Raises:
        BrokerError: Kafka cannot be reached, or does not let this client in.
        ConfigError: a secret is missing, or a certificate cannot be used.
    """
    with explained(kafka):
        how = security(kafka)
        if how.protocol != "PLAINTEXT":
            asyncio.run(_reach(kafka))
        return _CLIENT | {"bootstrap_servers": kafka.bootstrap_servers} | how.kafka_python()


async def _reach(kafka: KafkaSettings) -> None:
    """Connects to the first broker that answers; raises what the first one said if none does."""
    settings = {key: value for key, value in for_aiokafka(kafka).items() if key != "bootstrap_servers"}
    first: Exception | None = None
    for server in kafka.bootstrap_servers:
        host, port, _ = get_ip_port_afi(server)
        try:
            connection = await create_conn(
                host, port, client_id="burnfuse-reach", request_timeout_ms=_REACH_MS, **settings
            )
            try:
                # Of a token that is refused aiokafka only hears when it asks for something.
                answer = await connection.send(ApiVersionRequest())
                if answer.error_code == ours.IllegalSaslStateError.errno:
                    raise theirs.AuthenticationFailedError("the token is refused")
            finally:
                connection.close()
            return
        except (theirs.KafkaError, TokenError, OSError, TimeoutError) as error:
            first = first or error
    if first is not None:
        raise first


def for_aiokafka(kafka: KafkaSettings) -> dict[str, Any]:
    """Arguments of any client of aiokafka.

    Raises:
        ConfigError: a secret is missing, or a certificate cannot be used.
    """
    how = security(kafka)
    with explained(kafka):
        settings: dict[str, Any] = {
            "bootstrap_servers": kafka.bootstrap_servers,
            "security_protocol": how.protocol,
            "ssl_context": how.context(),
        }
    if how.mechanism is not None:
        settings["sasl_mechanism"] = how.mechanism
    if how.tokens is not None:
        settings["sasl_oauth_token_provider"] = TokenProvider(how.tokens)
    elif how.mechanism is not None:
        settings |= {"sasl_plain_username": how.username, "sasl_plain_password": how.password}
    return settings


@asynccontextmanager
async def connected(client: Any) -> AsyncIterator[Any]:
    """Starts a consumer of aiokafka, and closes it however this ends.

    Its own context leaves it open where it is cut off while it connects, as in a worker that stops at once.
    """
    try:
        await client.start()
        yield client
    finally:
        await client.stop()


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Tokens for aiokafka, and so for Faust; fetched beside the event loop."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        return await asyncio.to_thread(self._tokens.token)


def warn_if_in_clear(kafka: KafkaSettings) -> None:
    """Passwords and tokens belong into encrypted connections: somebody must be told."""
    if kafka.sasl.mechanism is not None and not kafka.tls.enabled:
        log.warning(
            "kafka.sasl is used without kafka.tls: %s travels unencrypted",
            "what proves the password" if kafka.sasl.mechanism.startswith("SCRAM") else "the password or token",
        )


# ------------------------------------------------------------------------------------ what goes wrong


@contextmanager
def explained(kafka: KafkaSettings) -> Iterator[None]:
    """What client libraries raise becomes one sentence for the user.

    Raises:
        BrokerError: Kafka cannot be reached, or refuses.
        ConfigError: a certificate cannot be used.
    """
    try:
        yield
    except (ours.KafkaError, theirs.KafkaError, TokenError, SecurityError, OSError) as error:
        raise explanation(error, kafka) from error


def explanation(error: Exception, kafka: KafkaSettings) -> BrokerError | ConfigError:
    """One sentence for what a client library raised, or a token's source."""
    servers, who = ", ".join(kafka.bootstrap_servers), _who(kafka)
    if isinstance(error, KeyPasswordError):
        return ConfigError(f"{error}: check BURNFUSE_KAFKA_KEY_PASSWORD")
    if isinstance(error, SecurityError):
        return ConfigError(f"{error}: check kafka.tls")
    if isinstance(error, TokenError):
        return BrokerError(str(error))
    if isinstance(error, ours.UnsupportedSaslMechanismError | theirs.UnsupportedSaslMechanismError):
        return BrokerError(f"Kafka at {servers} does not offer {kafka.sasl.mechanism}: check kafka.sasl.mechanism")
    if isinstance(error, _NOT_LET_IN):
        return BrokerError(f"Kafka at {servers} does not let {who} in: check {_proof(kafka)}")
    if isinstance(error, _REFUSED):
        return BrokerError(f"Kafka at {servers} refuses {who} ({type(error).__name__}: {error}): {_GRANT}")
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message
        return BrokerError(f"the certificate of Kafka at {servers} does not hold ({why}): check kafka.tls.ca_file")
    if isinstance(error, ssl.SSLError):
        return BrokerError(_not_taken(error, kafka, servers))
    if isinstance(error, ours.KafkaTimeoutError | theirs.KafkaConnectionError | OSError):
        hint = _look(kafka)
        return BrokerError(hint or f"no Kafka broker answers at {servers}: check kafka.bootstrap_servers")
    return BrokerError(f"Kafka at {servers} refuses: {type(error).__name__}: {error}")


_NOT_LET_IN = (
    ours.SaslAuthenticationFailedError,
    theirs.SaslAuthenticationFailed,
    theirs.AuthenticationFailedError,
)
_REFUSED = (
    ours.AuthorizationError,
    theirs.TopicAuthorizationFailedError,
    theirs.GroupAuthorizationFailedError,
    theirs.ClusterAuthorizationFailedError,
    theirs.TransactionalIdAuthorizationFailed,
)


def _who(kafka: KafkaSettings) -> str:
    return kafka.sasl.username or kafka.sasl.client_id or ("this token" if kafka.sasl.token_file else "this client")


def _proof(kafka: KafkaSettings) -> str:
    if kafka.sasl.mechanism == "OAUTHBEARER":
        return "kafka.sasl, and what brokers ask of a token (issuer, audience, time)"
    return "kafka.sasl.username and BURNFUSE_KAFKA_PASSWORD"


def _not_taken(error: ssl.SSLError, kafka: KafkaSettings, servers: str) -> str:
    """Why TLS did not come about, in one sentence."""
    _, _, alert = (error.reason or "").partition("_ALERT_")
    if "CERTIFICATE" not in alert and alert != "UNKNOWN_CA":
        return f"Kafka at {servers} does not speak TLS, or wants another certificate: check kafka.tls"
    if kafka.tls.certificate_file is None:
        return f"Kafka at {servers} asks for a certificate: set kafka.tls.certificate_file and kafka.tls.key_file"
    why = alert.lower().replace("_", " ")
    return (
        f"Kafka at {servers} does not take the certificate in {kafka.tls.certificate_file} ({why}): "
        "check kafka.tls.certificate_file, and whom brokers trust"
    )


def _look(kafka: KafkaSettings) -> str | None:
    """What there is instead of an answer, in one sentence; None: nothing."""
    for server in kafka.bootstrap_servers:
        host, port, _ = get_ip_port_afi(server)
        with suppress(OSError), socket.create_connection((host, port), _LOOK_S) as connection:
            if not kafka.tls.enabled and _speaks_tls(connection):
                return f"Kafka at {server} wants encrypted connections: set kafka.tls.enabled"
            if kafka.tls.enabled and (refusal := _refusal(connection, kafka, host)) is not None:
                return _not_taken(refusal, kafka, server)
            return f"{server} takes connections but does not answer as Kafka does: check kafka.tls and kafka.sasl"
    return None


def _speaks_tls(connection: socket.socket) -> bool:
    """Whether a handshake is answered at all; what is in the answer does not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return error.reason not in (None, "WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING")


def _refusal(connection: socket.socket, kafka: KafkaSettings, host: str) -> ssl.SSLError | None:
    """What the broker says to our certificate, or to having none.

    With TLS 1.3 it says so after the handshake, and clients that have begun to write may not hear it any more.
    """
    with suppress(SecurityError, ConfigError, OSError):
        context = security(kafka).context()
        if context is None:
            return None
        try:
            with context.wrap_socket(connection, server_hostname=host) as encrypted:
                encrypted.settimeout(_SAY_S)
                encrypted.recv(1)
        except ssl.SSLError as error:
            return error
    return None
