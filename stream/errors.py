"""What can go wrong, as one tree. Each message is one sentence for the user that says what to do."""

from __future__ import annotations

from typing import ClassVar


class BurnfuseError(Exception):
    """Root of all errors the user can do something about."""

    exit_code: ClassVar[int] = 1


class UsageError(BurnfuseError):
    """A command was called in a way that cannot work."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is wrong; the message lists every problem with its path."""


class InputError(BurnfuseError):
    """An input cannot be read at all."""

    exit_code = 3


class BrokerError(BurnfuseError):
    """Kafka cannot be reached or refuses what was asked."""


class SavedStateError(BurnfuseError):
    """Saved state cannot be used: it is of another version, of other settings, or damaged."""


class RejectedShareError(BurnfuseError):
    """So many events are turned away that something else must be wrong; the worker stops.

    Carries what stopped it, so that a restart knows.
    """

    def __init__(self, message: str, marker: bytes) -> None:
        super().__init__(message)
        self.marker = marker


class PackedRecordError(BurnfuseError):
    """A record on an inner topic is damaged or of another version."""
