"""A step plan while it is made, what is remembered of it until its result is back, and what the result brought."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.block_hash import PrefixHashes
from pagewire_common.cache_groups import chunk_len

from pagewire_router.beams.search import Hypothesis
from pagewire_router.scheduling.sequence import ProtocolError, Sequence, SequenceGroup, sequence_seed

MAX_PROMPT_SCORES = 1 << 19
"""Log-probabilities of prompts that one result brings, about: some megabytes of it."""

_RESOLVED_ELSEWHERE: tuple[Literal["stop_token_ids", "stop", "structured_outputs", "bad_words"], ...]
_RESOLVED_ELSEWHERE = ("stop_token_ids", "stop", "structured_outputs", "bad_words")
"""Parameters that a shard gets in another form than the client's."""


@dataclass(slots=True, eq=False)
class DraftRow:
    """A row of a plan in flight that verifies draft tokens."""

    row: int
    sequence: Sequence
    seq_id: int
    num_drafts: int
    num_accepted: int = 0
    """Known when the result is back."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Blocks of a prompt that a plan is expected to fill."""

    step: int
    """The plan's."""
    prefix: PrefixHashes
    first_block: int
    end_block: int


@dataclass(slots=True, eq=False)
class PlanInFlight:
    """A step plan. Lists over rows have one entry for each sequence that it runs, in the order of the message."""

    message: shard_pb2.StepPlan
    num_tokens_left: int
    """Tokens that may still be added to it."""
    max_chunk: int = sys.maxsize
    """Most tokens of one sequence that it computes."""
    num_scores_left: int = field(default_factory=lambda: MAX_PROMPT_SCORES)
    """Log-probabilities of prompts that its result may still bring, as far as it is bounded."""
    sequences: list[Sequence] = field(default_factory=list)
    """The sequence of each row."""
    num_scheduled_tokens: list[int] = field(default_factory=list)
    """Most tokens that each row computes, draft tokens not counted."""
    draft_rows: list[DraftRow] = field(default_factory=list)
    drafting: dict[Sequence, int] = field(default_factory=dict)
    """Sequences for which the shard's blocks depend on draft tokens, and their seq_ids."""
    num_block_tokens: list[tuple[Sequence, int, int, int]] = field(default_factory=list)
    """For each of `drafting`: the sequence, its seq_id, the tokens that the shard has blocks for after the plan, and
    how many of them are certain."""
    forked: list[tuple[Sequence, int]] = field(default_factory=list)
    """Parents, and their seq_ids, for whose children tables with a window need not keep anything after the plan."""
    score_rows: list[int] = field(default_factory=list)
    """Rows of beams, which are scored."""
    prefill_rows: list[int] = field(default_factory=list)
    """Rows that compute a chunk of a prompt, or of what a sequence had when it was preempted."""
    admitted: list[Sequence] = field(default_factory=list)
    num_prompt_tokens: int = 0
    """Tokens it computes beside the last of each sequence; of those run for the first time, known with its result."""
    num_released_blocks: int = 0
    """Blocks its releases give back at most."""
    chunks: list[Chunk] = field(default_factory=list)
    """The blocks that it is expected to fill. See PrefixIndex."""

    @property
    def step(self) -> int:
        """Its number within the epoch."""
        return self.message.step

    @property
    def is_empty(self) -> bool:
        """It changes nothing on the shard group."""
        return not (self.sequences or self.message.release_seq_ids or self.message.forks)

    @property
    def decodes(self) -> bool:
        """It has rows that compute one token, to have the next."""
        return len(self.sequences) > len(self.prefill_rows)

    def admit(self, sequence: Sequence) -> None:
        """Admits a sequence with the tokens it has."""
        self.admitted.append(sequence)
        request = sequence.group.request
        params = request.params
        max_tokens = sequence.max_len - len(request.prompt_token_ids)
        admit = self.message.admits.add(
            seq_id=sequence.seq_id,
            token_ids=sequence.token_ids,
            num_prompt_tokens=len(request.prompt_token_ids),
            cache_salt=request.cache_salt,
            grammar=request.grammar,
            sampling_params=params,
            stop=shard_pb2.StopConditions(
                token_ids=sorted({*params.stop_token_ids, *request.eos_token_ids}),
                # A shard refuses more than the context has room for.
                max_tokens=max_tokens,
                min_tokens=min(params.min_tokens, max_tokens),
            ),
        )
        admit.sampling_params.seed = sequence_seed(params.seed, sequence.index)
        # `stop` has the stop tokens, `bad_words` their tokens, a Prepare the grammar, and no shard looks at text.
        for name in _RESOLVED_ELSEWHERE:
            admit.sampling_params.ClearField(name)
        if request.bad_words:
            admit.bad_words.extend(inference_pb2.TokenIds(ids=token_ids) for token_ids in request.bad_words)
        if sequence.group.next_scored_position:
            admit.min_recompute_from = sequence.group.next_scored_position - 1
        else:
            admit.sampling_params.ClearField("prompt_logprobs")
        if request.beams is not None:
            admit.num_scores = request.beams.num_scores
        admit.fork_from = sequence.fork_from
        if sequence.checkpoints:
            admit.checkpoints.extend(sequence.checkpoints)
        if request.trace_context is not None:
            admit.trace_context.traceparent = request.trace_context.traceparent
            admit.trace_context.tracestate = request.trace_context.tracestate

    def fork(self, parent: Sequence, child: Sequence, num_tokens: int) -> None:
        """Forks a child that shares the parent's first num_tokens tokens."""
        self.message.forks.add(
            parent_seq_id=parent.seq_id,
            child_seq_id=child.seq_id,
            num_tokens=num_tokens,
            appended_token_ids=child.token_ids[num_tokens:],
            seed=sequence_seed(child.group.request.params.seed, child.index),
        )

    def max_budget(self, sequence: Sequence, num_computed: int, num_tokens: int) -> int:
        """Returns how many of a sequence's next num_tokens tokens, one at least, the plan has room for, behind the
        first num_computed."""
        if sequence.chunk_ends:
            num_tokens = chunk_len(num_computed, num_tokens, sequence.chunk_ends)
        num_tokens = min(num_tokens, self.num_tokens_left, self.max_chunk)
        num_scores = sequence.group.num_scores_per_token
        return num_tokens if num_scores == 0 else min(num_tokens, max(1, self.num_scores_left // num_scores))

    def run(self, sequence: Sequence, budget: int, *, is_chunk: bool = True) -> None:
        """Adds a row for which blocks have been reserved: it computes a chunk of a prompt, or is expected to decode."""
        if is_chunk:
            self.prefill_rows.append(len(self.sequences))
        if sequence.group.beams is not None:
            self.score_rows.append(len(self.sequences))
        self.sequences.append(sequence)
        self.num_scheduled_tokens.append(budget)
        self.num_tokens_left -= budget
        self.num_scores_left -= budget * sequence.group.num_scores_per_token
        sequence.run(budget)

    def draft(self, sequence: Sequence, num_drafts: int) -> None:
        """Adds a row that computes a sequence's last token and verifies so many draft tokens behind it."""
        sequence.draft(num_drafts)
        if num_drafts:
            self.draft_rows.append(DraftRow(len(self.sequences), sequence, sequence.seq_id, num_drafts))
        if sequence.num_unverified_tokens:
            self.drafting[sequence] = sequence.seq_id
        self.sequences.append(sequence)
        self.num_scheduled_tokens.append(1)

    def close(self) -> shard_pb2.StepPlan:
        """The message, complete."""
        self.message.run_seq_ids.extend([sequence.seq_id for sequence in self.sequences])
        self.message.run_token_budgets.extend(self.num_scheduled_tokens)
        self.num_block_tokens += [
            (
                sequence,
                seq_id,
                min(sequence.num_computed_tokens, sequence.max_len),
                sequence.num_computed_tokens - sequence.num_unverified_tokens,
            )
            for sequence, seq_id in self.drafting.items()
            if sequence.runs_as(seq_id)
        ]
        if self.score_rows:
            run_modes = [shard_pb2.RUN_MODE_SAMPLE] * len(self.sequences)
            for row in self.score_rows:
                run_modes[row] = shard_pb2.RUN_MODE_SCORE
            self.message.run_modes.extend(run_modes)
        if self.draft_rows:
            num_draft_tokens = [0] * len(self.sequences)
            for draft_row in self.draft_rows:
                num_draft_tokens[draft_row.row] = draft_row.num_drafts
            self.message.num_draft_tokens.extend(num_draft_tokens)
        return self.message


@dataclass(slots=True)
class TokenCounts:
    """Tokens so far, by what was done for them."""

    prompt_computed: int = 0
    """Prompt tokens that were computed when their requests were first admitted."""
    prompt_cached: int = 0
    """Prompt tokens that a cached prefix provided when their requests were first admitted."""
    recomputed: int = 0
    """Computed again after a preemption or a failover."""
    generated: int = 0
    """Sampled, and not dropped because their sequence had ended."""

    def add_first_runs(self, plan: PlanInFlight, result: shard_pb2.StepResult) -> None:
        """Takes in what a result says of sequences that ran for the first time since they entered the shard group."""
        for row, num_cached in zip(result.first_run_indices, result.num_cached_tokens, strict=True):
            if not plan.sequences[row].last_fork_step:
                plan.num_prompt_tokens += max(0, result.num_computed_tokens[row] - num_cached - 1)
            self._add_first_run(plan.sequences[row], num_cached)

    def forget_first_run(self, group: SequenceGroup) -> None:
        """The request of which the last result told the first run goes back to the queue: it starts anew."""
        if group.num_resumed_tokens is None and group.num_cached_tokens is not None:
            self.prompt_cached -= group.num_cached_tokens
            self.prompt_computed -= group.num_prompt_tokens - group.num_cached_tokens
            group.num_cached_tokens = None

    def _add_first_run(self, sequence: Sequence, num_cached: int) -> None:
        group = sequence.group
        if group.num_cached_tokens is None:
            # A resumed sequence has tokens beyond its prompt, which may be cached too.
            num_of_prompt = min(num_cached, group.num_prompt_tokens)
            group.num_cached_tokens = num_of_prompt
            self.prompt_cached += num_of_prompt
            self.prompt_computed += group.num_prompt_tokens - num_of_prompt
        elif not sequence.last_fork_step:
            self.recomputed += sequence.num_admitted_tokens - num_cached


@dataclass(slots=True)
class Progress:
    """The new tokens and the end of one sequence in one result."""

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[shard_pb2.SequenceLogprobs] | None
    """One entry for each of token_ids; None: not asked for."""
    finish_reason: "inference_pb2.FinishReason.ValueType"
    """Set if the shard stopped it."""
    failure: "shard_pb2.StopReason.ValueType" = shard_pb2.STOP_REASON_UNSPECIFIED
    """Why the sequence has no next token: STOP_REASON_ERROR, STOP_REASON_GRAMMAR or STOP_REASON_PROCESSOR."""
    row_failure: shard_pb2.RowFailure | None = None
    """What the logits processor said, if it was one."""
    prompt_scores: shard_pb2.PromptScores | None = None
    """Log-probabilities of the next tokens of its request's prompt, and nothing else."""
    hypotheses: list[Hypothesis] | None = None
    """What its request, a beam search that is over, is answered."""

    @staticmethod
    def failed(
        sequence: Sequence,
        failure: "shard_pb2.StopReason.ValueType",
        row_failure: shard_pb2.RowFailure | None = None,
    ) -> "Progress":
        """Returns the progress of a sequence that has no next token."""
        abort = inference_pb2.FINISH_REASON_ABORT
        return Progress(sequence, [], None, abort, failure=failure, row_failure=row_failure)


def take_prompt_scores(plan: PlanInFlight, result: shard_pb2.StepResult) -> list[Progress]:
    """Takes in the log-probabilities of prompts that a plan's result brings; those of requests that ended are dropped.

    Raises ProtocolError if they are not the next ones of their prompt.
    """
    progress: list[Progress] = []
    for scores in result.prompt_scores:
        sequence = plan.sequences[scores.run_index]
        group = sequence.group
        if group.is_finished:
            continue
        first, end = scores.first_position, scores.first_position + len(scores.logprobs)
        if first != group.next_scored_position or end > group.num_prompt_tokens:
            expected = f"{group.next_scored_position} of {group.num_prompt_tokens}"
            raise ProtocolError(f"log-probabilities of prompt tokens {first} to {end}; expected {expected}")
        group.next_scored_position = end if end < group.num_prompt_tokens else 0
        progress.append(Progress(sequence, [], None, inference_pb2.FINISH_REASON_UNSPECIFIED, prompt_scores=scores))
    return progress
