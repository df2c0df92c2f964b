"""Common base of the CPU kernels: threads, the launcher, SIMD and the compile cache."""
