"""What clients talk to: the gRPC service, its servers, and what stands before and behind a call."""
