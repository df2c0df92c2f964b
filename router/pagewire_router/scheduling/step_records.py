"""What the scheduler is told, what it remembers of each plan in flight, and what it reports."""

from dataclasses import dataclass, field

from pagewire.v1 import inference_pb2, shard_pb2

from pagewire_router.errors import FieldViolation, RequestTooLong
from pagewire_router.request import Request
from pagewire_router.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """What a shard group can take."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    """Tokens one plan may compute."""
    max_model_len: int

    @staticmethod
    def of(info: shard_pb2.ShardInfo) -> "GroupLimits":
        """What a shard says of its group."""
        return GroupLimits(
            num_blocks=info.num_blocks[0],
            block_size=info.block_size,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            max_model_len=info.max_model_len,
        )

    def check_fits(self, request: Request) -> None:
        """Raises RequestTooLong if the request could not run even if it were alone."""
        num_prompt, n = len(request.prompt_token_ids), request.params.n
        limit = min(num_prompt + request.params.max_tokens, self.max_model_len)
        shared = (num_prompt - 1) // self.block_size if n > 1 else 0
        needed = shared + n * (-(-limit // self.block_size) - shared)
        if needed > self.num_blocks:
            description = (
                f"{num_prompt} prompt tokens and {request.params.max_tokens} max_tokens in {n} sequences take {needed} "
                f"blocks of {self.block_size} tokens; the KV cache has {self.num_blocks}"
            )
            raise RequestTooLong([FieldViolation("max_tokens", description)])
        if n > self.max_num_seqs:
            raise RequestTooLong([FieldViolation("n", f"{n} sequences; the server runs {self.max_num_seqs}")])


@dataclass(slots=True, eq=False)
class PlanInFlight:
    """What has to be remembered of a plan until its result is back."""

    step: int
    sequences: list[Sequence] = field(default_factory=list)
    """Its run, in order."""
    num_prompt_tokens: int = 0
    """Tokens it computes beside the last of each sequence; of those run for the first time, known with its result."""
    num_released_blocks: int = 0
    """Blocks its releases give back at most."""
    traced_chunks: list[int] = field(default_factory=list)
    """Indices into sequences: those of traced requests that prefill."""


@dataclass(slots=True)
class TokenCounts:
    """Tokens so far, by what was done for them."""

    prompt_computed: int = 0
    """Of prompts, when they were first admitted."""
    prompt_cached: int = 0
    """Of prompts, provided by a cached prefix when they were first admitted."""
    recomputed: int = 0
    """Computed again after a preemption or a failover."""
    generated: int = 0
    """Sampled, and not dropped because their sequence had ended."""

    def add_first_runs(self, record: PlanInFlight, result: shard_pb2.StepResult) -> None:
        """Takes in what a result says of sequences that ran for the first time since they entered the shard."""
        for index, num_cached in zip(result.first_run_indices, result.num_cached_tokens, strict=True):
            record.num_prompt_tokens += max(0, result.num_computed_tokens[index] - num_cached - 1)
            self.add_first_run(record.sequences[index], num_cached)

    def add_first_run(self, sequence: Sequence, num_cached: int) -> None:
        """A sequence ran for the first time since it entered the shard, from a cached prefix of num_cached tokens."""
        group = sequence.group
        if group.num_cached_tokens is None:
            group.num_cached_tokens = num_cached
            self.prompt_cached += num_cached
            self.prompt_computed += group.num_prompt_tokens - num_cached
        elif not sequence.fork_step:
            self.recomputed += sequence.prefill_target - num_cached


@dataclass(slots=True)
class Progress:
    """What one result brought for one sequence."""

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[shard_pb2.SequenceLogprobs] | None
    finish_reason: "inference_pb2.FinishReason.ValueType"
    """Set if the shard stopped it."""
    has_failed: bool = False
    """The model gave no finite logits: the sequence has no next token."""

    @staticmethod
    def failed(sequence: Sequence) -> "Progress":
        """Of a sequence that has no next token."""
        return Progress(sequence, [], None, inference_pb2.FINISH_REASON_ABORT, has_failed=True)
