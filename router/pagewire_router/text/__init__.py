"""Turns text and chat into token ids, and token ids into text. Knows no requests."""
