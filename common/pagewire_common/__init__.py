"""Modules that routers and shards share and that no client needs."""
