"""Detectors: columns of events in, findings out.

Pure code: no Kafka, no Slack, no clock, no environment, no files. Every module of this package is
imported here, and registers what it holds; a new detector is one new file.
"""

from detectors.base import discover, registered

MODULES = tuple(discover())

__all__ = ["MODULES", "registered"]
