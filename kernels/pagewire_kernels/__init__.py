"""Kernels: one folder per op; reference.py is the definition of correct."""
