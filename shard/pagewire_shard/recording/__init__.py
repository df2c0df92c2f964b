"""The flight recorder: the last plans of a shard and what came out of them, in a file that can be replayed."""
