"""Ahead-of-time compilation of the Triton kernels, for developers: what each takes on every GPU generation."""
