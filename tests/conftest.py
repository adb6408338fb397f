"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from kafka_broker import enter_or_skip, running
from secured_kafka import SecuredKafka, secured_kafka

# A slow machine is no failure.
settings.register_profile("burnfuse", deadline=None)
settings.load_profile("burnfuse")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the broker is a Kafka test; nobody has to remember the marker."""
    for item in items:
        if {"broker", "secured"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """`host:port` of a real Kafka broker, one for the whole session, started when first asked for."""
    if given := os.environ.get("BURNFUSE_TEST_BROKER"):
        yield given
        return
    with ExitStack() as stack:
        yield enter_or_skip(stack, running())


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """A real Kafka broker with TLS, SASL and rights, started when first asked for."""
    with ExitStack() as stack:
        yield enter_or_skip(stack, secured_kafka(tmp_path_factory.mktemp("secured")))


@pytest.fixture
def topic_prefix() -> str:
    """Start topic names with it: the broker is shared by all tests of a session."""
    return f"t{uuid.uuid4().hex[:12]}."
