"""A sequence as the engine's host state knows it.

Its counts run ahead of what the device has reported: num_tokens and num_computed_tokens are upper bounds of what they
will be when everything launched so far is done. They are exact, unless a sampled token stops the sequence or drafts in
flight are rejected. When a step's tokens are known, `token_ids` and the counts follow (see engine.py for when that is).
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import Digest, block_digests, max_cached_blocks, root_digest, sequence_kind

if TYPE_CHECKING:
    from pagewire_shard.engine.constraints import Constraint


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
    bad_words: Items[Items[int]] = ()
    """The tokens of each. Shared with forked children, as the sampling parameters are."""
    max_len: int = 0
    """The sequence stops at this length."""
    min_recompute_from: int = 0
    """Cached blocks from this token on are not used; 0: no limit, unless it wants log-probabilities of its prompt."""
    num_scores: int = 0
    """How many of the most probable tokens a run in mode SCORE returns; 0: it does not run in that mode."""
    num_prompt_logprobs: int | None = None
    """How many of the most probable tokens it wants for each prompt token behind min_recompute_from; None: it wants
    none. Children of forks want none: their parent's steps yield them."""
    constraint: "Constraint | None" = None
    """Where it stands in its grammar; None: it has none."""
    output_ids: list[int] | None = None
    """Tokens behind the prompt that are on the host, also those whose effects are still to come; None: nothing reads
    them, or the sequence has stopped."""
    blocks: list[int] = field(default_factory=list)
    """The block table; of a model with several, the first one."""
    other_tables: Items[list[int]] = ()
    """The other block tables, each as long as the first."""
    first_blocks: list[int] = field(default_factory=list)
    """For each table the first block that is held; entries before it mean nothing. Empty: all blocks of the only table
    are."""
    fork_from: int = 0
    """What children need that are forked from so many of its tokens is kept; 0: none will be."""
    state_slot: int = -1
    """Where its recurrent state is when everything launched so far is done; -1: it has none."""
    fork_slot: int = -1
    """Where the state behind its first fork_from tokens is kept; -1: it is not computed, or not needed any more."""
    checkpoints: Items[int] = ()
    """The state behind so many tokens is entered in the prefix index."""
    chunk_ends: Items[int] = ()
    """Where a run ends at the latest: what the state is needed behind, ascending. Not of children."""
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
        if self.stopped or num_tokens - self.num_unverified_tokens >= self.max_len or not num_new:
            return 0, 0  # It has stopped, a step in flight samples its last token, or it has been scored.
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

    def digests_of(self, num_blocks: int, block_size: int) -> list[Digest]:
        """The digests of its first blocks, num_blocks at least, all of whose tokens are known on the host."""
        num_digests = len(self.digests)
        if num_digests < num_blocks:
            parent = self.digests[-1] if num_digests else self.root
            token_ids = self.token_ids[num_digests * block_size : num_blocks * block_size]
            self.digests.extend(block_digests(parent, token_ids, block_size))
        return self.digests

    def max_cached_blocks(self, block_size: int) -> int:
        """The most blocks that a cached prefix may provide when it is admitted."""
        num_blocks = max_cached_blocks(self.num_tokens, block_size)
        if self.fork_from:
            num_blocks = min(num_blocks, self.fork_from // block_size)
        if self.min_recompute_from or self.num_prompt_logprobs is not None:
            return min(num_blocks, self.min_recompute_from // block_size)
        return num_blocks

    def start_from(self, num_cached_blocks: int, block_size: int) -> None:
        """It is admitted with so many blocks of a cached prefix."""
        self.num_indexed_blocks = num_cached_blocks
        num_cached = num_cached_blocks * block_size
        self.num_cached_tokens = self.num_computed_tokens = self.reported_computed = num_cached


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
        bad_words=parent.bad_words,
        max_len=parent.max_len,
        num_scores=parent.num_scores,
        blocks=parent.blocks[: -(-shared // block_size)],
        num_computed_tokens=shared,
        digests=parent.digests[: shared // block_size],
        num_indexed_blocks=min(parent.num_indexed_blocks, shared // block_size),
    )


def admitted(admit: shard_pb2.Admit, max_model_len: int, longest_short: int = 0) -> Sequence:
    """A new sequence, before its cached prefix has been looked for."""
    params = admit.sampling_params
    max_len = min(admit.num_prompt_tokens + admit.stop.max_tokens, max_model_len)
    return Sequence(
        seq_id=admit.seq_id,
        slot=-1,
        token_ids=admit.token_ids[:],
        num_prompt_tokens=admit.num_prompt_tokens,
        root=root_digest(admit.cache_salt, admit.adapter, sequence_kind(max_len, longest_short)),
        sampling_params=params,
        seed=params.seed,
        stop=admit.stop,
        bad_words=[word.ids[:] for word in admit.bad_words],
        max_len=max_len,
        min_recompute_from=admit.min_recompute_from,
        num_scores=admit.num_scores,
        num_prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        fork_from=admit.fork_from,
        checkpoints=(checkpoints := admit.checkpoints[:]),
        chunk_ends=sorted({*checkpoints, admit.fork_from} - {0}),
    )
