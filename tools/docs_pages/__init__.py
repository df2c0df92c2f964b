"""Generates pages of docs/ from the command lines' parsers, from protos/, from benchmarks/results."""
