"""A real broker with TLS, SASL and rights (ACLs); the plain port is the administrator's."""

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
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
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

from stream.acls import Rule

_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
PLAIN_USER, PLAIN_PASSWORD = "plain", "plain-password"


@dataclass(frozen=True, slots=True)
class SecuredKafka:
    """Addresses of a broker, and who may vouch for it."""

    admin: str
    """Plain; whoever connects here may do everything."""
    secured: str
    """SASL_SSL."""
    ca_file: Path
    other_ca_file: Path
    """Vouches for others."""

    def user(self, name: str, password: str) -> None:
        """Lets a user in, by SCRAM."""
        admin = KafkaAdminClient(bootstrap_servers=self.admin)
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            outcome = admin.alter_user_scram_credentials([UserScramCredentialUpsertion(name, mechanism, password)])
            assert not any(outcome.values()), outcome
        admin.close()

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


def acl(user: str, rule: Rule, operation: str) -> ACL:
    """A rule as kafka-python's ACL."""
    pattern = ACLResourcePatternType.PREFIXED if rule.prefixed else ACLResourcePatternType.LITERAL
    name = "".join(f"_{c}" if c.isupper() else c for c in operation).lstrip("_").upper()
    resource = ResourcePattern(_RESOURCES[rule.resource], rule.name, pattern)
    return ACL(f"User:{user}", "*", ACLOperation[name], ACLPermissionType.ALLOW, resource)


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    """Runs a broker for the length of the block."""
    ca, other = trustme.CA(), trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    keystore = folder / "broker.pem"
    # Kafka reads private keys in PKCS #8 only.
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    keystore.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain)
    ca_file, other_ca_file = folder / "ca.pem", folder / "other-ca.pem"
    ca.cert_pem.write_to_path(ca_file)
    other.cert_pem.write_to_path(other_ca_file)
    login = "org.apache.kafka.common.security"
    jaas = {
        "scram-sha-256": f"{login}.scram.ScramLoginModule required;",
        "scram-sha-512": f"{login}.scram.ScramLoginModule required;",
        "plain": f'{login}.plain.PlainLoginModule required user_{PLAIN_USER}="{PLAIN_PASSWORD}";',
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
    } | {f"listener.name.sasl_ssl.{name}.sasl.jaas.config": value for name, value in jaas.items()}
    port = free_port()
    options = ["--listener", f"SASL_SSL:{port}"]
    for key, value in properties.items():
        options += ["--set", f"{key}={value}"]
    with running(*options) as address:
        yield SecuredKafka(address, f"127.0.0.1:{port}", ca_file, other_ca_file)


def unsigned_token(subject: str, life_s: float = 3600.0) -> str:
    """A token as the broker's handler for tests takes it: a JWS without a signature (RFC 7515, appendix A.5)."""
    now = time.time()
    claims = {"sub": subject, "iat": now, "exp": now + life_s, "jti": secrets.token_hex(8)}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({"alg": "none"}, claims)
    ]
    return ".".join([*parts, ""])
