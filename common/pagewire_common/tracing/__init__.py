"""The base of tracing in routers and shards."""
