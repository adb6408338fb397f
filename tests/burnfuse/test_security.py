"""What encrypts and who connects, as settings of client libraries."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from burnfuse.security import KeyPasswordError, Security, SecurityError
from burnfuse.tokens import FileTokens


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    before = logging.getLogger("kafka").level
    logging.getLogger("kafka").setLevel(logging.NOTSET)
    yield
    logging.getLogger("kafka").setLevel(before)


@pytest.mark.parametrize(
    ("security", "protocol"),
    [
        (Security(), "PLAINTEXT"),
        (Security(tls=True), "SSL"),
        (Security(mechanism="PLAIN", username="u", password="p"), "SASL_PLAINTEXT"),
        (Security(tls=True, mechanism="SCRAM-SHA-256", username="u", password="p"), "SASL_SSL"),
    ],
)
def test_the_protocol_follows(security: Security, protocol: str) -> None:
    settings = security.kafka_python()
    assert settings["security_protocol"] == protocol
    assert ("ssl_context" in settings) == security.tls
    assert settings.get("sasl_plain_password") == security.password


def test_brokers_are_checked_unless_told_otherwise() -> None:
    context = Security(tls=True).context()
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    lax = Security(tls=True, check_hostname=False).context()
    assert lax is not None
    assert not lax.check_hostname
    assert lax.verify_mode is ssl.CERT_REQUIRED


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    one, other = trustme.CA().issue_cert("a"), trustme.CA().issue_cert("b")
    certificate, key, text = tmp_path / "c.pem", tmp_path / "k.pem", tmp_path / "text"
    one.cert_chain_pems[0].write_to_path(certificate)
    other.private_key_pem.write_to_path(key)
    text.write_text("nothing")
    for security, says in [
        (Security(tls=True, ca_file=str(tmp_path / "gone")), "gone: No such file or directory"),
        (Security(tls=True, ca_file=str(text)), "cannot use the certificates in .*text"),
        (Security(tls=True, certificate_file=str(certificate), key_file=str(key)), "k.pem: key values mismatch"),
        (
            Security(tls=True, certificate_file=str(certificate), key_file=str(text)),
            "cannot use the certificate and key",
        ),
    ]:
        with pytest.raises(SecurityError, match=says):
            security.context()


def test_an_own_certificate_is_taken(tmp_path: Path) -> None:
    one, path = trustme.CA().issue_cert("a"), tmp_path / "c.pem"
    one.private_key_and_cert_chain_pem.write_to_path(path)
    assert Security(tls=True, certificate_file=str(path), key_file=str(path)).context() is not None


def test_a_key_may_have_a_password(tmp_path: Path) -> None:
    one, certificate, key = trustme.CA().issue_cert("a"), tmp_path / "c.pem", tmp_path / "k.pem"
    one.cert_chain_pems[0].write_to_path(certificate)
    plain = load_pem_private_key(one.private_key_pem.bytes(), None)
    key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"right")))

    def use(password: str | None) -> None:
        Security(tls=True, certificate_file=str(certificate), key_file=str(key), key_password=password).context()

    use("right")
    for password, says in [
        ("planted", "k.pem has a password, another one than given"),
        (None, "k.pem has a password, and none is given"),
        ("planted" * 1000, "k.pem is longer than OpenSSL takes"),
    ]:
        with pytest.raises(KeyPasswordError, match=says) as refused:
            use(password)
        assert "planted" not in str(refused.value)


def test_secrets_are_not_part_of_what_is_printed(tmp_path: Path) -> None:
    security = Security(mechanism="PLAIN", username="u", password="planted", key_password="planted",
                        tokens=FileTokens("planted"))  # fmt: skip
    assert "planted" not in repr(security)


def test_kafka_python_does_not_log_what_it_proves_itself_with() -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    try:
        Security().kafka_python()
        assert logging.getLogger("kafka.protocol.parser").isEnabledFor(logging.DEBUG)
        Security(mechanism="PLAIN", username="u", password="p").kafka_python()
        assert not logging.getLogger("kafka.protocol.parser").isEnabledFor(logging.DEBUG)
        logging.getLogger("kafka").setLevel(logging.DEBUG)  # somebody asks for it by name
        Security(mechanism="PLAIN", username="u", password="p").kafka_python()
        assert logging.getLogger("kafka.protocol.parser").isEnabledFor(logging.DEBUG)
    finally:
        root.setLevel(before)
