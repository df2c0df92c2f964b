"""The version of the plan stream's protocol that this shard speaks."""

PROTOCOL_MAJOR = 1
"""A router of another major version is refused."""
PROTOCOL_MINOR = 0
"""Additions that an older router may ignore."""
