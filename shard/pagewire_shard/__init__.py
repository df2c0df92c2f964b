"""The model shard: owns one device, its KV block pool and its model; runs step plans."""
