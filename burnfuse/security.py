"""How a client connects to Kafka: encrypted or not, and as whom.

from burnfuse.security import Security
from burnfuse.track import Tracker

security = Security(tls=True, mechanism="SCRAM-SHA-512", username="invoice-bot", password=password)
tracker = Tracker("kafka:9093", security=security, agent_id="invoice-bot")
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kafka.net.sasl.oauth import AbstractTokenProvider

from burnfuse.tokens import Tokens

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class SecurityError(Exception):
    """A certificate or key that cannot be used; the text says which."""


class KeyPasswordError(SecurityError):
    """The private key has a password, and that is missing or another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What encrypts the connections to Kafka, and who connects.

    Args:
        tls: Encrypt.
        ca_file: Certificates (PEM) of who may vouch for brokers; the system's if not given.
        certificate_file: Own certificate (PEM), for brokers that ask for one.
        key_file: Its private key (PEM).
        key_password: Password of the private key.
        check_hostname: A broker's certificate must be for the name it is reached by.
        mechanism: SASL mechanism; None: no SASL.
        username: For PLAIN and SCRAM.
        password: For PLAIN and SCRAM.
        tokens: Where tokens come from, for OAUTHBEARER.
    """

    tls: bool = False
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    check_hostname: bool = True
    mechanism: Mechanism | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tokens: Tokens | None = field(default=None, repr=False)

    @property
    def protocol(self) -> str:
        """Kafka's name for it, e.g. SASL_SSL."""
        return {
            (False, False): "PLAINTEXT",
            (True, False): "SSL",
            (False, True): "SASL_PLAINTEXT",
            (True, True): "SASL_SSL",
        }[self.tls, self.mechanism is not None]

    def context(self) -> ssl.SSLContext | None:
        """What encrypts; None without TLS.

        Raises:
            SecurityError: a file cannot be read, or holds something else.
            KeyPasswordError: the password of the private key is not the one given.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # an ssl.SSLError is one
            raise SecurityError(f"cannot use the certificates in {self.ca_file}: {_why(error)}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.check_hostname
        if self.certificate_file is not None:
            key_file = self.key_file or self.certificate_file
            _read(self.certificate_file)
            encrypted = b"ENCRYPTED" in _read(key_file)
            try:
                # Without a password, OpenSSL would ask for one on the terminal.
                context.load_cert_chain(self.certificate_file, key_file, self.key_password or "")
            except ValueError as error:
                raise KeyPasswordError(
                    f"the password for the key in {key_file} is longer than OpenSSL takes"
                ) from error
            except OSError as error:
                # Of a wrong password OpenSSL only says that the file is of no use.
                if encrypted and getattr(error, "reason", None) != "KEY_VALUES_MISMATCH":
                    what = "another one than given" if self.key_password else "and none is given"
                    raise KeyPasswordError(f"the key in {key_file} has a password, {what}") from error
                names = f"{self.certificate_file} and {key_file}"
                raise SecurityError(f"cannot use the certificate and key in {names}: {_why(error)}") from error
        return context

    def kafka_python(self) -> dict[str, Any]:
        """Settings for any client of kafka-python.

        Raises:
            SecurityError: see `context`.
        """
        if self.mechanism is not None:
            _keep_quiet()
        settings: dict[str, Any] = {"security_protocol": self.protocol}
        if self.tls:
            settings |= {"ssl_context": self.context(), "ssl_check_hostname": self.check_hostname}
        if self.mechanism is not None:
            settings["sasl_mechanism"] = self.mechanism
        if self.tokens is not None:
            settings["sasl_oauth_token_provider"] = _TokenProvider(self.tokens)
        elif self.mechanism is not None:
            settings |= {"sasl_plain_username": self.username, "sasl_plain_password": self.password}
        return settings


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python ships no types
    """Tokens for kafka-python, which asks for one per connection and when a session ends."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def token(self) -> str:
        return self._tokens.token()


def _keep_quiet() -> None:
    """At DEBUG kafka-python logs passwords and tokens: who wants that must ask for it by the logger's name."""
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SecurityError(f"cannot read {path}: {_why(error)}") from error


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        # Of OpenSSL, e.g. KEY_VALUES_MISMATCH.
        return error.reason.lower().replace("_", " ") if error.reason else "not in PEM format"
    return error.strerror or "not in PEM format"
