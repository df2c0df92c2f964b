"""Tile configurations of the GPU kernels: one table per op, each entry with its reason."""
