"""Decides what every step of a shard group runs. Pure and synchronous; the caller passes the time."""
