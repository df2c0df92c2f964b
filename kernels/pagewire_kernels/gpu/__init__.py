"""What the GPU kernels of all ops stand on: launches that overlap, tiles of rows, and what a device is."""
