"""Shard groups: found, driven, chosen between, and recovered from."""
