"""A real broker with TLS, SASL, certificates of clients and rights (ACLs); the plain port is the administrator's."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)
from kafka.admin._users import ScramMechanism
from kafka_broker import free_port, running

from stream.acls import AGENT, OPERATOR, PRODUCER, WORKER, Rule

_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
PASSWORDS = {role: f"password-of-{role}" for role in (WORKER, PRODUCER, AGENT, OPERATOR)}
"""Kafka wants to know those who log in by PLAIN when it starts; they are called plain-ROLE."""


@dataclass(frozen=True, slots=True)
class SecuredKafka:
    """Addresses of a broker, and who may vouch for it."""

    admin: str
    """Plain; whoever connects here may do everything."""
    secured: str
    """SASL_SSL."""
    certified: str
    """SSL; asks for a certificate, whose common name is the user."""
    ca_file: Path
    other_ca_file: Path
    """Vouches for others."""
    clients: trustme.CA
    """Vouches for clients."""
    strangers: trustme.CA
    """The broker does not know it."""

    def user(self, name: str, password: str) -> None:
        """Lets a user in, by SCRAM."""
        admin = KafkaAdminClient(bootstrap_servers=self.admin)
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            outcome = admin.alter_user_scram_credentials([UserScramCredentialUpsertion(name, mechanism, password)])
            assert not any(outcome.values()), outcome
        admin.close()

    def certificate(
        self, name: str, folder: Path, *, password: str = "", by: trustme.CA | None = None
    ) -> dict[str, str]:
        """Files with a certificate for a user and its key, as they are named in `kafka.tls`."""
        issued = (by or self.clients).issue_cert(f"{name}.invalid", common_name=name)
        files = {"certificate_file": str(folder / f"{name}.pem"), "key_file": str(folder / f"{name}.key")}
        Path(files["certificate_file"]).write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        Path(files["key_file"]).write_bytes(_pkcs8(issued, password))
        return files

    def grant(self, user: str, rules: Sequence[Rule]) -> None:
        """Gives a user these rights."""
        admin = KafkaAdminClient(bootstrap_servers=self.admin)
        acls = [acl(user, rule, operation) for rule in rules for operation in rule.operations]
        outcome = admin.create_acls(acls)
        admin.close()
        assert not outcome["failed"], outcome

    def settings(self, **sasl: Any) -> dict[str, Any]:
        """The part of a configuration that says how to connect."""
        return {
            "bootstrap_servers": [self.secured],
            "tls": {"enabled": True, "ca_file": str(self.ca_file)},
            "sasl": sasl,
        }

    def certified_settings(self, **certificate: str) -> dict[str, Any]:
        """The same for who connects with a certificate and nothing else."""
        return {
            "bootstrap_servers": [self.certified],
            "tls": {"enabled": True, "ca_file": str(self.ca_file)} | certificate,
        }


def acl(user: str, rule: Rule, operation: str) -> ACL:
    """A rule as kafka-python's ACL."""
    pattern = ACLResourcePatternType.PREFIXED if rule.prefixed else ACLResourcePatternType.LITERAL
    name = "".join(f"_{c}" if c.isupper() else c for c in operation).lstrip("_").upper()
    resource = ResourcePattern(_RESOURCES[rule.resource], rule.name, pattern)
    return ACL(f"User:{user}", "*", ACLOperation[name], ACLPermissionType.ALLOW, resource)


def _pkcs8(issued: trustme.LeafCert, password: str = "") -> bytes:
    """The key of a certificate, encrypted if there is a password; Kafka reads PKCS #8 only."""
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    how = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Runs a broker for the length of the block."""
    ca, other, clients, strangers = (trustme.CA(organization_name=name) for name in ("own", "other", "clients", "?"))
    certificate = ca.issue_cert("127.0.0.1")
    keystore = folder / "broker.pem"
    keystore.write_bytes(_pkcs8(certificate) + b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    ca_file, other_ca_file, clients_file = folder / "ca.pem", folder / "other-ca.pem", folder / "clients-ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    other.cert_pem.write_to_path(other_ca_file)
    clients.cert_pem.write_to_path(clients_file)
    login = "org.apache.kafka.common.security"
    jaas = {
        "scram-sha-256": f"{login}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{login}.scram.ScramLoginModule required;",
        "plain": f"{login}.plain.PlainLoginModule required "
        + " ".join(f'user_plain-{role}="{password}"' for role, password in PASSWORDS.items())
        + ";",
        # Without another handler Kafka takes unsigned tokens: right for tests only.
        "oauthbearer": f"{login}.oauthbearer.OAuthBearerLoginModule required;",
    }
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        # Connections end with the token they began with, unless it is renewed on them.
        "listener.name.sasl_ssl.oauthbearer.connections.max.reauth.ms": "3600000",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.ssl.ssl.truststore.type": "PEM",
        "listener.name.ssl.ssl.truststore.location": str(clients_file),
        "listener.name.ssl.ssl.principal.mapping.rules": "RULE:^CN=([^,]+),.*$/$1/",
    } | {f"listener.name.sasl_ssl.{name}.sasl.jaas.config": value for name, value in jaas.items()}
    port, certified = free_port(), free_port()
    options = ["--listener", f"SASL_SSL:{port}", "--listener", f"SSL:{certified}"]
    for key, value in properties.items():
        options += ["--set", f"{key}={value}"]
    with running(*options) as address:
        yield SecuredKafka(
            address, f"127.0.0.1:{port}", f"127.0.0.1:{certified}", ca_file, other_ca_file, clients, strangers
        )


def unsigned_token(subject: str, life_s: float = 3600.0) -> str:
    """A token as the broker's handler for tests takes it: a JWS without a signature (RFC 7515, appendix A.5)."""
    now = time.time()
    claims = {"sub": subject, "iat": now, "exp": now + life_s, "jti": secrets.token_hex(8)}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    ]
    return ".".join([*parts, ""])
