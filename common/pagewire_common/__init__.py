"""What routers and shards share and no client needs."""
