"""What a step yields: the report that append_tokens returns, and the log-probabilities asked for."""

import math
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from pagewire.v1 import shard_pb2
from pagewire_kernels.append_tokens import FIRST_TOKEN, NUM_COMPUTED, NUM_SAMPLED, NUM_TOKENS, STOP_REASON

from pagewire_shard.engine.runner import StepTokens
from pagewire_shard.sampling.logprobs import Gathered
from pagewire_shard.sampling.prompt_scores import PendingPromptScores
from pagewire_shard.sampling.scores import Scores


@dataclass(frozen=True, slots=True, eq=False)
class PendingLogprobs:
    """Log-probabilities for the rows that asked for them."""

    rows: list[int]
    """Row in the batch of each entry. A row has as many entries as it can sample tokens, in their order."""
    nums: list[int]
    """Number of most probable tokens that each entry's row asked for."""
    gathered: list[Gathered]
    """All entries, each once."""

    def to_host(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "PendingLogprobs":
        """The same with each tensor copied."""
        on_host = []
        for part in self.gathered:
            a, b, c, d = part.logprobs
            on_host.append(Gathered(part.entries, (copy(a), copy(b), copy(c), copy(d))))
        return PendingLogprobs(self.rows, self.nums, on_host)

    def to_messages(self, num_sampled: list[int]) -> list[shard_pb2.SequenceLogprobs]:
        """The messages of the tokens that were sampled; gathered must be on the host.

        Args:
            num_sampled: For each row of the batch.
        """
        messages: dict[int, shard_pb2.SequenceLogprobs] = {}
        num_left = num_sampled.copy()
        for part in self.gathered:
            logprob, rank, top_ids, top_logprobs = (tensor.tolist() for tensor in part.logprobs)
            for i, entry in enumerate(part.entries):
                row, num = self.rows[entry], self.nums[entry]
                if num_left[row] > 0:
                    num_left[row] -= 1
                    messages[entry] = shard_pb2.SequenceLogprobs(
                        run_index=row,
                        logprob=logprob[i],
                        rank=rank[i],
                        top_token_ids=top_ids[i][:num],
                        top_logprobs=top_logprobs[i][:num],
                    )
        return [messages[entry] for entry in sorted(messages)] if len(self.gathered) > 1 else list(messages.values())


@dataclass(frozen=True, slots=True, eq=False)
class PendingScores:
    """Scores of the rows that ran in mode SCORE."""

    rows: list[int]
    """The row in the batch of each row of scores."""
    nums: list[int]
    """How many tokens each of them asked for."""
    scores: Scores

    def to_host(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "PendingScores":
        """The same with each tensor copied."""
        return PendingScores(self.rows, self.nums, Scores(copy(self.scores.token_ids), copy(self.scores.logprobs)))

    def to_messages(self) -> tuple[list[shard_pb2.RowScores], list[int]]:
        """The messages, and the rows in the batch that have no distribution; the scores must be on the host."""
        messages: list[shard_pb2.RowScores] = []
        unsound: list[int] = []
        all_ids, all_logprobs = self.scores.token_ids.tolist(), self.scores.logprobs.tolist()
        for row, num, token_ids, logprobs in zip(self.rows, self.nums, all_ids, all_logprobs, strict=True):
            if math.isnan(logprobs[0]):
                unsound.append(row)
                continue
            num_allowed = sum(logprob > -math.inf for logprob in logprobs[:num])
            messages.append(
                shard_pb2.RowScores(run_index=row, token_ids=token_ids[:num_allowed], logprobs=logprobs[:num_allowed])
            )
        return messages, unsound


@dataclass(frozen=True, slots=True, eq=False)
class StepOutput:
    """Results of a step, on the device or on the host."""

    report: torch.Tensor
    """[FIRST_TOKEN + max_sampled, num_rows or more] int64, as append_tokens returns it, rows of padding included."""
    logprobs: PendingLogprobs | None = None
    scores: PendingScores | None = None
    prompt_scores: PendingPromptScores | None = None
    failures: Items[shard_pb2.RowFailure] = ()
    """Rows of the batch that logits processors have ended."""

    def to_host(self, report: torch.Tensor, copy: Callable[[torch.Tensor], torch.Tensor]) -> "StepOutput":
        """The same with this report, which is on its way already, and each other tensor copied."""
        return StepOutput(
            report,
            self.logprobs and self.logprobs.to_host(copy),
            self.scores and self.scores.to_host(copy),
            self.prompt_scores and self.prompt_scores.to_host(copy),
            self.failures,
        )


def step_tokens(output: StepOutput, num_rows: int, forward_us: int, sample_us: int) -> StepTokens:
    """Converts a step's results, which must be on the host, into what the engine takes."""
    lines = output.report[:, :num_rows].tolist()
    logprobs, scores, prompt_scores = output.logprobs, output.scores, output.prompt_scores
    num_sampled = lines[NUM_SAMPLED]
    row_scores: list[shard_pb2.RowScores] = []
    if scores is not None:
        row_scores, unsound = scores.to_messages()
        for row in unsound:
            lines[STOP_REASON][row] = shard_pb2.STOP_REASON_ERROR
    for failure in output.failures:
        lines[STOP_REASON][failure.run_index] = shard_pb2.STOP_REASON_PROCESSOR
    return StepTokens(
        num_computed_tokens=lines[NUM_COMPUTED],
        num_tokens=lines[NUM_TOKENS],
        stop_reasons=lines[STOP_REASON],
        num_sampled=num_sampled,
        sampled_token_ids=[token for row in zip(*lines[FIRST_TOKEN:], strict=True) for token in row if token >= 0],
        logprobs=logprobs.to_messages(num_sampled) if logprobs else [],
        row_scores=row_scores,
        prompt_scores=prompt_scores.to_messages() if prompt_scores else [],
        row_failures=list(output.failures),
        forward_us=forward_us,
        sample_us=sample_us,
    )
