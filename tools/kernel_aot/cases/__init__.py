"""The ahead-of-time cases: one module for each module of kernels."""
