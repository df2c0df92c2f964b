"""Generated protobuf and gRPC modules of package pagewire.v1. Regenerate with `make protos`."""
