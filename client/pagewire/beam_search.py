"""Beam search: its parameters, with vLLM's names, and its results."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from pagewire.errors import InvalidRequest
from pagewire.outputs import FinishReason
from pagewire.parameter_table import BEAM_LENGTH_PENALTY, BY_NAME, MAX_INT32, Range
from pagewire.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from pagewire.v1 import inference_pb2

EarlyStopping = bool | Literal["never"]

_RANGES = {
    "beam_width": Range(1, MAX_INT32),
    "max_tokens": Range(1, MAX_INT32),
    "min_tokens": Range(0, MAX_INT32),
    "n": Range(1, MAX_INT32),
    "truncate_prompt_tokens": BY_NAME["truncate_prompt_tokens"].accepted or Range(-1, MAX_INT32),
}
_FLAGS = (
    *("ignore_eos", "include_stop_str_in_output", "detokenize"),
    *("skip_special_tokens", "spaces_between_special_tokens"),
)
_NO_FIELDS = ("temperature", "early_stopping", "stop_token_ids", "structured_outputs")
"""Parameters that are no numbers or flags of the message."""


@dataclass(slots=True)
class BeamSearchParams:
    """How to search for the most probable continuations of a prompt.

    A beam's score is the sum of its tokens' log-probabilities, divided by their number to the power of length_penalty.
    What is found is what transformers' `generate(num_beams=beam_width, do_sample=False)` finds.

    Raises:
        InvalidRequest: names the field, what was given and what is accepted.
    """

    beam_width: int
    """Beams kept at each step; 1 to the server's limit (32)."""
    max_tokens: int
    """Most tokens to generate."""
    ignore_eos: bool = False
    """Goes on after the model's end-of-sequence token."""
    temperature: float = 0.0
    """As in vLLM. Beam search does not sample: must be 0."""
    length_penalty: float = 1.0
    """Above 0 favours long beams, below 0 short ones; -10 to 10."""
    include_stop_str_in_output: bool = False
    """Keeps the token that ended a beam in its text and tokens."""
    early_stopping: EarlyStopping = False
    """Ends the search as soon as beam_width beams have ended (True), when the best running beam, at its present length,
    cannot beat the worst of them (False), or when no running beam can at any length ("never")."""
    min_tokens: int = 0
    """Tokens to generate before the end-of-sequence token or a stop token may come; at most max_tokens."""
    n: int | None = None
    """Sequences to return; at most beam_width. None: beam_width."""
    stop_token_ids: Sequence[int] = field(default_factory=list)
    """Token ids that end a beam, as the end-of-sequence token does."""
    detokenize: bool = True
    """Returns text beside token ids."""
    skip_special_tokens: bool = True
    """Leaves special tokens out of the text."""
    spaces_between_special_tokens: bool = True
    """Puts spaces between special tokens in the text."""
    truncate_prompt_tokens: int | None = None
    """Keeps only the last tokens of the prompt, this many; -1: as many as leave room for max_tokens."""
    structured_outputs: StructuredOutputsParams | None = None
    """Constrains the beams to a grammar."""

    def __post_init__(self) -> None:
        self._check()

    def to_proto(self) -> "inference_pb2.BeamSearchParams":
        """The wire form; checks once more, for attributes may have been assigned. Raises InvalidRequest."""
        from pagewire.v1 import inference_pb2

        self._check()
        message = inference_pb2.BeamSearchParams(beam_width=self.beam_width, max_tokens=self.max_tokens)
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if parameter.name not in _NO_FIELDS and value is not None:
                setattr(message, parameter.name, value)
        if self.structured_outputs is not None:
            message.structured_outputs.CopyFrom(self.structured_outputs.to_proto())
        message.stop_token_ids.extend(self.stop_token_ids)
        message.early_stopping = {
            False: inference_pb2.EARLY_STOPPING_FALSE,
            True: inference_pb2.EARLY_STOPPING_TRUE,
            "never": inference_pb2.EARLY_STOPPING_NEVER,
        }[self.early_stopping]
        return message

    def _check(self) -> None:
        for name, accepted in _RANGES.items():
            value = getattr(self, name)
            is_absent = value is None and name in ("n", "truncate_prompt_tokens")
            if not is_absent and (type(value) is not int or not accepted.holds(value)):
                raise _refusal(name, value, f"a whole number, {accepted}")
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise _refusal(name, getattr(self, name), "True or False")
        if self.n is not None and self.n > self.beam_width:
            raise _refusal("n", self.n, f"at most beam_width, which is {self.beam_width}")
        if self.min_tokens > self.max_tokens:
            raise _refusal("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.temperature != 0:
            raise _refusal("temperature", self.temperature, "0, for beam search does not sample")
        if not _is_number(self.length_penalty) or not BEAM_LENGTH_PENALTY.holds(self.length_penalty):
            raise _refusal("length_penalty", self.length_penalty, str(BEAM_LENGTH_PENALTY))
        if not (type(self.early_stopping) is bool or self.early_stopping == "never"):
            raise _refusal("early_stopping", self.early_stopping, 'True, False or "never"')
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise _refusal("structured_outputs", self.structured_outputs, "StructuredOutputsParams, or None")
        self._check_stop_tokens()

    def _check_stop_tokens(self) -> None:
        given: Any = self.stop_token_ids
        if isinstance(given, str) or not hasattr(given, "__iter__"):
            raise _refusal("stop_token_ids", given, "a list of token ids")
        self.stop_token_ids = list(given)
        for token_id in self.stop_token_ids:
            if type(token_id) is not int or not 0 <= token_id < 2**32:
                raise _refusal("stop_token_ids", token_id, "token ids")


@dataclass(slots=True)
class BeamSearchSequence:
    """One of the sequences that were found."""

    tokens: list[int]
    """The prompt's tokens, then those that were generated. The token that ended the beam is left out, unless
    include_stop_str_in_output is set."""
    cum_logprob: float
    """The sum of the log-probabilities of what was generated, with the token that ended the beam."""
    beam_score: float
    """cum_logprob divided by the number of generated tokens to the power of length_penalty."""
    text: str | None = None
    """The text of the prompt and of what was generated; None if detokenize is False."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop token that ended it; None for the end-of-sequence token and other reasons."""
    logprobs: None = None
    """This and the following field are for programs written for vLLM. Log-probabilities of single tokens are not
    returned."""
    lora_request: None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The answer to one prompt."""

    sequences: list[BeamSearchSequence]
    """Best first: `n`, or fewer if fewer were found."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refusal(name: str, value: object, accepted: str) -> InvalidRequest:
    return InvalidRequest.of_field(f"beam_search_params.{name}", f"{value!r} given, accepted: {accepted}")
