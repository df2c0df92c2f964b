"""Grammars that constrain what sequences sample: from a request's StructuredOutputs to a mask over the vocabulary."""
