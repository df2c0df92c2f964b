"""From what a client asked for to a request that the engine can run, or a refusal. Knows no transport."""
