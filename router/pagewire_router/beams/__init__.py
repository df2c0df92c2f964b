"""Beam search: which tokens its beams take, and when it is over."""
