"""Turns sampled tokens into what a client gets: text, stop strings, finish reasons, and the time when it is due."""
