"""A sequence as the engine's host state knows it.

Its counts run ahead of what the device has reported: num_tokens and num_computed_tokens are upper bounds of what they
will be when everything launched so far is done. They are exact, unless a sampled token stops the sequence or drafts in
flight are rejected. When a step's tokens are known, `token_ids` and the counts follow (see engine.py for when that is).
"""

from dataclasses import dataclass, field

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import Digest, block_digest, root_digest

from pagewire_shard.engine.block_pool import BlockPool


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
    """The digest that its first block's digest builds on."""
    sampling_params: inference_pb2.SamplingParams
    """As the plan has them. Shared with forked children, which have seeds of their own."""
    seed: int
    """Seed of its sampling noise, an int64."""
    stop: shard_pb2.StopConditions
    max_len: int = 0
    """The sequence stops at this length."""
    blocks: list[int] = field(default_factory=list)
    """The block table."""
    num_tokens: int = field(init=False)
    """Upper bound of the tokens known when everything launched so far is done. Beyond max_len only if some of them are
    unverified."""
    num_computed_tokens: int = 0
    """Upper bound of the tokens in the cache when everything launched so far is done. After a step that samples, one
    less than num_tokens."""
    num_unverified_tokens: int = 0
    """Draft tokens of steps in flight: those of num_tokens and of num_computed_tokens that may be rejected."""
    digests: list[Digest] = field(default_factory=list)
    """Digests of the full blocks of token_ids, as far as computed."""
    num_indexed_blocks: int = 0
    """Its first blocks that have been offered to the prefix index."""
    stopped: bool = False
    """The host knows that a sampled token stopped it. It keeps its slot and blocks until it is released."""
    num_cached_tokens: int = 0
    """Tokens a cached prefix provided."""
    has_run: bool = False
    released: bool = False
    reported_computed: int = field(init=False)
    """num_computed_tokens in the last result."""
    reported_known: int = field(init=False)
    """num_known_tokens in the last result."""
    reported_stop: "shard_pb2.StopReason.ValueType" = shard_pb2.STOP_REASON_UNSPECIFIED
    """stop_reason in the last result."""

    def __post_init__(self) -> None:
        self.num_tokens = self.reported_known = len(self.token_ids)
        self.reported_computed = self.num_computed_tokens

    @property
    def num_verified_tokens(self) -> int:
        """Tokens that the host knows, and that are in the cache when everything launched so far is done."""
        num_known, num_computed = len(self.token_ids), self.num_computed_tokens - self.num_unverified_tokens
        return num_known if num_known < num_computed else num_computed

    def next_writes(self, query_len: int) -> tuple[int, int]:
        """Where the keys and values of its next query_len tokens may go: the first position, and the end."""
        end = self.num_computed_tokens + query_len
        return self.num_computed_tokens - self.num_unverified_tokens, min(end, self.max_len)

    def next_row(self, budget: int, max_draft_tokens: int) -> tuple[int, int]:
        """How many tokens it computes and how many it samples at most when it runs next; (0, 0): it does not run."""
        num_tokens = self.num_tokens
        num_new = num_tokens - self.num_computed_tokens
        if self.stopped or num_tokens - self.num_unverified_tokens >= self.max_len:
            return 0, 0  # It has stopped, or a step in flight samples its last token.
        if budget < num_new:
            return budget, 0
        if not max_draft_tokens:
            return num_new, 1
        # The token behind the last draft must not be longer than the sequence may become.
        num_drafts = max(0, min(max_draft_tokens, self.max_len - 1 - num_tokens))
        return num_new + num_drafts, 1 + num_drafts

    def advance(self, query_len: int, sample_len: int) -> tuple[int, int]:
        """A step is launched in which it computes query_len tokens and samples at most sample_len.

        Returns what next_writes would have returned before.
        """
        first = self.num_computed_tokens - self.num_unverified_tokens
        end = self.num_computed_tokens = self.num_computed_tokens + query_len
        if sample_len:
            self.num_tokens += sample_len
            if sample_len > 1:
                self.num_unverified_tokens += sample_len - 1
        return first, end if end < self.max_len else self.max_len

    def settle(self, sample_len: int, num_sampled: int) -> None:
        """The oldest step in flight that ran it has sampled num_sampled of at most sample_len tokens."""
        num_rejected = sample_len - num_sampled
        self.num_tokens -= num_rejected
        self.num_computed_tokens -= num_rejected
        self.num_unverified_tokens -= sample_len - 1

    def stop_at(self, num_tokens: int, num_computed_tokens: int) -> None:
        """It has stopped with these counts."""
        self.stopped = True
        self.num_tokens, self.num_computed_tokens, self.num_unverified_tokens = num_tokens, num_computed_tokens, 0

    def digest_of(self, block_idx: int, block_size: int) -> Digest:
        """The digest of its block_idx-th block, all of whose tokens are known on the host."""
        while len(self.digests) <= block_idx:
            i = len(self.digests)
            parent = self.digests[i - 1] if i else self.root
            self.digests.append(block_digest(parent, self.token_ids[i * block_size : (i + 1) * block_size]))
        return self.digests[block_idx]


def forked(parent: Sequence, fork: shard_pb2.Fork, block_size: int) -> Sequence:
    """The child of a fork; it names the parent's blocks and does not hold them yet."""
    shared = fork.num_tokens
    return Sequence(
        seq_id=fork.child_seq_id,
        slot=-1,
        token_ids=parent.token_ids[:shared] + list(fork.appended_token_ids),
        num_prompt_tokens=parent.num_prompt_tokens,
        root=parent.root,
        sampling_params=parent.sampling_params,
        seed=fork.seed,
        stop=parent.stop,
        max_len=parent.max_len,
        blocks=parent.blocks[: -(-shared // block_size)],
        num_computed_tokens=shared,
    )


def admitted(admit: shard_pb2.Admit, pool: BlockPool, max_model_len: int) -> Sequence:
    """A new sequence; it names the blocks of its cached prefix and does not hold them yet."""
    sequence = Sequence(
        seq_id=admit.seq_id,
        slot=-1,
        token_ids=list(admit.token_ids),
        num_prompt_tokens=admit.num_prompt_tokens,
        root=root_digest(admit.cache_salt, admit.adapter),
        sampling_params=admit.sampling_params,
        seed=admit.sampling_params.seed,
        stop=admit.stop,
        max_len=min(admit.num_prompt_tokens + admit.stop.max_tokens, max_model_len),
    )
    # The last known token is always computed: its logits are what the first sample needs.
    limit = sequence.num_tokens - 1
    if admit.min_recompute_from:
        limit = min(limit, admit.min_recompute_from)
    for i in range(limit // pool.block_size):
        block = pool.lookup(sequence.digest_of(i, pool.block_size))
        if block is None:
            break
        sequence.blocks.append(block)
    num_cached = len(sequence.blocks) * pool.block_size
    sequence.num_indexed_blocks = len(sequence.blocks)
    sequence.num_cached_tokens = sequence.num_computed_tokens = sequence.reported_computed = num_cached
    return sequence
