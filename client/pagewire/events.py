"""The events of a Generate stream: Started once, PromptLogprobs if they were asked for, TokenDeltas, and
SequenceFinished once for each sequence."""

from dataclasses import dataclass

from pagewire.outputs import FinishReason, Logprob, Usage


@dataclass(slots=True)
class Started:
    """The request was accepted. Always first."""

    request_id: str
    model: str
    seed: int
    """The seed in use, given or picked by the server."""
    num_prompt_tokens: int
    prompt_token_ids: list[int]
    """Empty unless they were asked for."""
    model_digest: bytes = b""
    """Identifies the model and its defaults."""
    prompt_digest: bytes = b""
    """Identifies the prompt's token ids; empty: the server cannot resume requests."""


@dataclass(slots=True)
class PromptLogprobs:
    """Log-probabilities of a part of the prompt. The parts come in order, all of them before the first TokenDelta."""

    first_position: int
    """Position of the first of them in the prompt; the token at position 0 has none."""
    logprobs: list[dict[int, Logprob]]
    """One entry for each position, as in RequestOutput.prompt_logprobs."""


@dataclass(slots=True)
class TokenDelta:
    """New tokens of one sequence."""

    index: int
    """Index of the sequence among the n."""
    text: str
    """Text that became certain: an increment, possibly empty."""
    token_ids: list[int]
    """Tokens sampled since the sequence's last TokenDelta."""
    logprobs: list[dict[int, Logprob]] | None
    """One entry for each of token_ids, as in CompletionOutput; None unless they were asked for."""


@dataclass(slots=True)
class SequenceFinished:
    """One sequence ended. After the last of them the stream ends."""

    index: int
    """Which of the n sequences."""
    finish_reason: FinishReason
    stop_reason: str | int | None
    """The stop string or stop token id; None for the end-of-sequence token and other reasons."""
    usage: Usage
    cumulative_logprob: float | None = None
    """Sum of the sampled tokens' log-probabilities; None unless logprobs were asked for."""


Event = Started | PromptLogprobs | TokenDelta | SequenceFinished
