"""What the CPU kernels of all ops stand on: threads, the launcher, SIMD and the compile cache."""
