"""The heart of a shard: the deterministic state machine, its sequences and its block pool."""
