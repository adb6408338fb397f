"""Fixtures that every test may ask for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings
from kafka_broker import BrokerMissingError, running

# A slow machine is no failure.
settings.register_profile("burnfuse", deadline=None)
settings.load_profile("burnfuse")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the broker is a Kafka test; nobody has to remember the marker."""
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.kafka)


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """`host:port` of a real Kafka broker, one for the whole session, started when first asked for."""
    if given := os.environ.get("BURNFUSE_TEST_BROKER"):
        yield given
        return
    with ExitStack() as stack:
        missing = ""
        try:
            address = stack.enter_context(running())
        except BrokerMissingError as error:
            missing = str(error)
        if missing and os.environ.get("REQUIRE_KAFKA") == "1":
            # A skip that nobody sees would let a broken machine pass for a tested one.
            pytest.fail(f"REQUIRE_KAFKA=1, but {missing}", pytrace=False)
        if missing:
            pytest.skip(f"{missing}; or set BURNFUSE_TEST_BROKER=host:port")
        yield address


@pytest.fixture
def topic_prefix() -> str:
    """Start topic names with it: the broker is shared by all tests of a session."""
    return f"t{uuid.uuid4().hex[:12]}."
