"""Ahead-of-time compilation of the Triton kernels, for developers: the resources of each on every GPU generation."""
