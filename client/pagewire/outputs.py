"""The results of a request, with vLLM's names."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability at one position, of the model's unprocessed distribution."""

    logprob: float
    """The natural logarithm of the token's probability."""
    rank: int | None = None
    """Position among all tokens by probability, from 1."""
    decoded_token: str | None = None
    """The token decoded alone, special tokens included. Empty if it ends inside its only character: the token with the
    last byte has that. None if SamplingParams.detokenize is False."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one sequence."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed because a cached prefix held them."""


@dataclass(slots=True)
class CompletionOutput:
    """One of the sequences sampled from a prompt."""

    index: int
    """Index of the sequence among the n."""
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum of the sampled tokens' log-probabilities; None unless logprobs were asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    """One dictionary for each token, by token id: the sampled token first, then the most probable ones, best first."""
    finish_reason: FinishReason | None = None
    """Why the sequence ended; None while it has not."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it; None for the end-of-sequence token and other reasons."""
    usage: Usage = field(default_factory=Usage)

    def finished(self) -> bool:
        """Returns whether the sequence has ended."""
        return self.finish_reason is not None


class CompletionOutputs(list[CompletionOutput]):
    """The sequences of a request, by index. `.text` is the first one's text."""

    @property
    def text(self) -> str:
        """Text of the first sequence."""
        return self[0].text


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt."""

    request_id: str
    prompt: str | None
    """The prompt's text: as it was given, or as the chat template rendered it; None if token ids alone were given."""
    prompt_token_ids: list[int]
    outputs: CompletionOutputs
    finished: bool = True
    seed: int = 0
    """The seed in use, given or picked by the server."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    """One dictionary for each prompt token, by token id: the prompt's token first, then the most probable ones, best
    first. The first token has None. None unless SamplingParams.prompt_logprobs was set."""
    metrics: None = None
    """This and the following fields are for programs written for vLLM, where they too are None by default."""
    lora_request: None = None
    encoder_prompt: None = None
    encoder_prompt_token_ids: None = None
    kv_transfer_params: None = None

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were not computed because a cached prefix held them."""
        return max((output.usage.cached_tokens for output in self.outputs), default=0)
