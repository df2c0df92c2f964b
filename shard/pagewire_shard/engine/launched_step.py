"""A step between its launch and its result."""

from concurrent.futures import Future
from dataclasses import dataclass, replace

from pagewire.v1 import shard_pb2

from pagewire_shard.engine.runner import BatchMasks, PendingTokens, RunBatch, StepTokens
from pagewire_shard.engine.step_changes import Row


@dataclass(slots=True, eq=False)
class LaunchedStep:
    """A launched step whose tokens are on their way to the host."""

    step: int
    rows: list[Row]
    """The plan's run, in its order. Those that compute nothing are not in the runner's batch."""
    result: shard_pb2.StepResult
    """What is known at launch."""
    pending_tokens: PendingTokens | None = None
    """Set when the runner has launched it."""
    num_tokens: int = 0
    """Tokens it computes."""
    tokens: StepTokens | None = None
    """Set when they have been waited for."""
    batch: RunBatch | None = None
    """Set while the forward pass has been launched without the sampling; see constraints.py."""
    masks: "Future[BatchMasks] | None" = None
    """The masks of the batch, where they are filled beside the forward pass."""

    @property
    def awaits_tokens(self) -> bool:
        """It is sampled by Engine.sample, when the tokens of the steps before it are on the host."""
        return self.batch is not None

    def is_ready(self) -> bool:
        """The tokens are on the host."""
        return self.tokens is not None or (self.pending_tokens is not None and self.pending_tokens.is_ready())

    def take_tokens(self, notes_tokens: bool) -> StepTokens:
        """Waits for the tokens, once.

        Args:
            notes_tokens: Whether constraints or logits processors read them.
        """
        if self.tokens is None:
            assert self.pending_tokens is not None, f"step {self.step} was not launched"
            tokens = self.pending_tokens.wait()
            if len(tokens.num_tokens) < len(self.rows):
                tokens = _spread(tokens, self.rows)
            if notes_tokens:
                _note_tokens(self.rows, tokens)
            self.tokens = tokens
        return self.tokens

    def finish(self, notes_tokens: bool) -> shard_pb2.StepResult:
        """Waits for the tokens and completes the result."""
        tokens = self.take_tokens(notes_tokens)
        result = self.result
        for (sequence, _, _), computed, known, stop in zip(
            self.rows, tokens.num_computed_tokens, tokens.num_tokens, tokens.stop_reasons, strict=True
        ):
            sequence.reported_computed, sequence.reported_known, sequence.reported_stop = computed, known, stop
        result.num_computed_tokens.extend(tokens.num_computed_tokens)
        result.num_known_tokens.extend(tokens.num_tokens)
        result.num_sampled_tokens.extend(tokens.num_sampled)
        result.sampled_token_ids.extend(tokens.sampled_token_ids)
        result.stop_reasons.extend(tokens.stop_reasons)
        result.logprobs.extend(tokens.logprobs)
        result.row_scores.extend(tokens.row_scores)
        result.prompt_scores.extend(tokens.prompt_scores)
        result.row_failures.extend(tokens.row_failures)
        result.timings.forward_us, result.timings.sample_us = tokens.forward_us, tokens.sample_us
        return result


def _note_tokens(rows: list[Row], tokens: StepTokens) -> None:
    """Tells constraints and processors what their sequences have sampled, and names the reason where a constraint has
    kept one from it."""
    end = 0
    for row, ((sequence, _, _), num_sampled) in enumerate(zip(rows, tokens.num_sampled, strict=True)):
        start, end = end, end + num_sampled
        constraint = sequence.constraint
        if constraint is not None:
            if constraint.has_failed and tokens.stop_reasons[row] == shard_pb2.STOP_REASON_ERROR:
                tokens.stop_reasons[row] = shard_pb2.STOP_REASON_GRAMMAR
            constraint.note(tokens.sampled_token_ids[start:end], tokens.stop_reasons[row])
        if sequence.output_ids is not None:
            # In place: processors hold the list.
            sequence.output_ids += tokens.sampled_token_ids[start:end]
            if tokens.stop_reasons[row]:
                sequence.output_ids = None


def _spread(tokens: StepTokens, rows: list[Row]) -> StepTokens:
    """Gives rows that did not run their entries: nothing sampled, counts as last reported."""
    ran = [i for i, (_, query_len, _) in enumerate(rows) if query_len]
    for logprobs in tokens.logprobs:
        logprobs.run_index = ran[logprobs.run_index]
    for scores in tokens.row_scores:
        scores.run_index = ran[scores.run_index]
    for prompt_scores in tokens.prompt_scores:
        prompt_scores.run_index = ran[prompt_scores.run_index]
    for failure in tokens.row_failures:
        failure.run_index = ran[failure.run_index]
    spread = replace(
        tokens,
        num_computed_tokens=[sequence.reported_computed for sequence, _, _ in rows],
        num_tokens=[sequence.reported_known for sequence, _, _ in rows],
        stop_reasons=[sequence.reported_stop for sequence, _, _ in rows],
        num_sampled=[0] * len(rows),
    )
    for row, i in enumerate(ran):
        spread.num_computed_tokens[i] = tokens.num_computed_tokens[row]
        spread.num_tokens[i] = tokens.num_tokens[row]
        spread.stop_reasons[i] = tokens.stop_reasons[row]
        spread.num_sampled[i] = tokens.num_sampled[row]
    return spread
