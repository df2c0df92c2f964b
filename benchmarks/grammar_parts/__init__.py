"""The parts of benchmarks/grammars.py."""
