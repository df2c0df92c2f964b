"""A sequence as the engine's host state knows it.

Its counts run ahead of the device's news: num_tokens and num_computed_tokens are what they will be if no sampled token
ends the sequence. When the tokens of a step are known, `token_ids` catches up (see engine.py for when that is).
"""

from dataclasses import dataclass, field

from pagewire.v1 import shard_pb2

from pagewire_shard.block_hash import block_digest
from pagewire_shard.block_pool import Digest

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One admitted or forked sequence."""

    seq_id: int
    slot: int
    """Its row in the device state."""
    token_ids: list[int]
    """The tokens known on the host, prompt first."""
    num_prompt_tokens: int
    root: Digest
    """Parent of its first block's digest."""
    sampling: shard_pb2.SequenceSampling
    stop: shard_pb2.StopConditions
    blocks: list[int] = field(default_factory=list)
    """The block table."""
    num_tokens: int = 0
    """Tokens known once everything launched so far is done."""
    num_computed_tokens: int = 0
    """Tokens in the cache once everything launched so far is done."""
    digests: list[Digest] = field(default_factory=list)
    """Digests of the full blocks of token_ids, as far as computed."""
    num_indexed_blocks: int = 0
    """Blocks already offered to the prefix index."""
    stopped: bool = False
    """A sampled token ended it. It keeps slot and blocks until it is released."""
    num_cached_tokens: int = 0
    """Tokens a cached prefix provided."""
    has_run: bool = False
    released: bool = False
    reported_computed: int = 0
    """num_computed_tokens in the last result."""
    reported_known: int = 0
    """num_known_tokens in the last result."""
    reported_stop: "shard_pb2.StopReason.ValueType" = shard_pb2.STOP_REASON_UNSPECIFIED
    """stop_reason in the last result."""
    is_greedy: bool = field(init=False)
    has_penalties: bool = field(init=False)
    wants_logprobs: bool = field(init=False)
    masks_stop: bool = field(init=False)

    def __post_init__(self) -> None:
        # Read for every sequence in every step, where fields of a message would cost more than the sampling.
        sampling = self.sampling
        self.is_greedy = sampling.temperature < GREEDY_BELOW
        self.has_penalties = bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
        )
        self.wants_logprobs = sampling.HasField("num_logprobs")
        self.masks_stop = self.stop.min_tokens > 0

    def digest_of(self, block_idx: int, block_size: int) -> Digest:
        """The digest of its block_idx-th block, all of whose tokens are known on the host."""
        while len(self.digests) <= block_idx:
            i = len(self.digests)
            parent = self.digests[i - 1] if i else self.root
            self.digests.append(block_digest(parent, self.token_ids[i * block_size : (i + 1) * block_size]))
        return self.digests[block_idx]
