"""The service to routers and probes: the gRPC service, the plan stream, the lease."""
