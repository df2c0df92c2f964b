"""Constants that a router and its shards agree on: the plan stream's version and the limits of plans."""

PROTOCOL_MAJOR = 2
"""A router of another major version is refused."""
PROTOCOL_MINOR = 2
"""Additions that an older router may ignore."""
MAX_SHARD_MESSAGE_BYTES = 256 << 20
"""Longest message between a router and a shard."""
MAX_STOP_TOKENS = 64
"""Stop tokens of one sequence, the model's own among them."""
MAX_BEAM_WIDTH = 32
"""Beams that beam search keeps."""
MAX_SCORES = MAX_BEAM_WIDTH + MAX_STOP_TOKENS
"""Most probable tokens that a shard returns of a sequence which it scores: enough for as many that go on as there are
beams, whichever stop tokens come before them."""
MAX_STEP_LOGPROBS = 1 << 20
"""Most probable tokens that a router has a step report, over all sequences that ask for many. Each takes 8 or 9 bytes
of the result, and a shard and a router a fraction of a microsecond."""
