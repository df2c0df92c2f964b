"""The states of a process that probes tell apart."""

import enum


class HealthState(enum.StrEnum):
    """What a process does, as /readyz and metrics name it."""

    LOADING = "loading"
    """It has not served yet: a shard loads its model, a router looks for shards."""
    STANDBY = "standby"
    """A router: others drive all shard groups."""
    IDLE = "idle"
    """It serves, and has nothing to do."""
    BUSY = "busy"
    """It serves, and gets on with what it has to do."""
    STALLED = "stalled"
    """It has work, and has not got on with it for NOTICE_S (patience.py)."""
    FAILED = "failed"
    """A shard: its last step broke. A router: no shard group serves."""
    DRAINING = "draining"
    """It was told to stop."""

    @property
    def is_ready(self) -> bool:
        """Whether a new request would run."""
        return self in (HealthState.IDLE, HealthState.BUSY)
