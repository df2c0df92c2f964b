"""How the tokens of a step are sampled."""
