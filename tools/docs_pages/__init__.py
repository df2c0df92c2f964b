"""The pages of docs/ that are generated: from the command lines' parsers, from protos/, from benchmarks/results."""
