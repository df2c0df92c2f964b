"""The gRPC front: the public Inference service, health, and what a call passes before it reaches them."""
