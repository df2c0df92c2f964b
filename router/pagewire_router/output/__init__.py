"""From sampled tokens to what a client gets: text, stop strings, finish reasons, and when it is due."""
