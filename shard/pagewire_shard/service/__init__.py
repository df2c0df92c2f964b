"""What routers and probes talk to: the gRPC service, the plan stream, the lease."""
