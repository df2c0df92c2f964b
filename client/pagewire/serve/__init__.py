"""The implementation of `pagewire serve`: one router and its shards, as child processes of a supervisor.

The supervisor only starts and watches processes. It imports neither grpc nor any part of the router or the shard.
"""
