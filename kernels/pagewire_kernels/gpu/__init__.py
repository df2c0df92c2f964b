"""Common base of the GPU kernels: overlapping launches, tiles of rows, and traits of the device."""
