"""Ranks of a shard group: how they share a model out, and how they add up what each of them computes."""
