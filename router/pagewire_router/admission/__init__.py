"""Turns what a client has asked for into a request that can run, or refuses it. Knows no transport."""
