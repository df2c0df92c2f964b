"""What the spans of routers and shards have in common."""
