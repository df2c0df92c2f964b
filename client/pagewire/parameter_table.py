"""Every sampling parameter, once: what it means, its type, its default and the values it may have.

The client's SamplingParams, the command line's flags, the router's and the shards' checks and the table in
docs/sampling.md derive from PARAMETERS. The comments of SamplingParams in inference.proto are the descriptions here,
and the fields of pagewire.SamplingParams have the defaults here; tests compare them. Names, defaults, ranges and
meaning are vLLM's. The module imports nothing of this package, so that servers can import it too.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

MAX_INT32 = 2**31 - 1
"""Largest value of integers but the seed. As max_tokens it means: until the context ends."""
GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most probable token."""
MAX_LOGIT_BIAS_ENTRIES = 1024
"""Tokens of one sequence that may have a bias."""
MAX_LOGIT_BIAS = 100.0
"""Largest absolute value of a bias."""
MAX_BAD_WORDS = 128
"""Token sequences that bad_words may come to; each word is one or two."""
MAX_TEXT_CHARS = 1024
"""Longest stop string or bad word."""
MAX_STOP_STRINGS = 64
MAX_EXTRA_ARGS_BYTES = 1 << 16
"""Most bytes of extra_args as a message."""


class Kind(Enum):
    """What a parameter holds."""

    INT = "integer"
    FLOAT = "number"
    BOOL = "boolean"
    TEXTS = "strings"
    TOKEN_IDS = "token ids"
    BIASES = "numbers by token id"
    MESSAGE = "message"
    OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a number may have; never NaN or infinity."""

    low: float
    high: float = math.inf
    excludes_low: bool = False
    excludes_zero: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is in the range."""
        if not self.low <= value <= self.high or value == math.inf:
            return False
        return not (self.excludes_low and value == self.low) and not (self.excludes_zero and value == 0)

    def up_to(self, high: float) -> "Range":
        """The range with another upper end."""
        return replace(self, high=high)

    def __str__(self) -> str:
        low, high = (f"{end:g}" if isinstance(end, float) else str(end) for end in (self.low, self.high))
        if self.excludes_zero:
            return f"{low}, or 1 " + ("or more" if self.high == math.inf else f"to {high}")
        if self.excludes_low:
            return f"above {low}" + ("" if self.high == math.inf else f", at most {high}")
        return f"{low} or more" if self.high == math.inf else f"{low} to {high}"


BEAM_LENGTH_PENALTY = Range(-10.0, 10.0)
"""Accepted values of the length penalty of beam search."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One sampling parameter."""

    name: str
    kind: Kind
    meaning: str
    """One sentence or two."""
    default: int | float | bool | None = None
    """None: there is no number that would mean the same as leaving it out."""
    accepted: Range | None = None
    """Of a number, or of each number of a list."""
    absent: str = ""
    """What leaving it out means, where `default` does not say it."""
    also: str = ""
    """Further limits, in words."""

    @property
    def default_text(self) -> str:
        """The default, as documents write it."""
        if self.absent or self.default is None:
            return self.absent or "none"
        return str(self.default).lower() if isinstance(self.default, bool) else f"{self.default:g}"

    @property
    def limits_text(self) -> str:
        """What is accepted, as documents write it; empty if there is nothing to say."""
        has_range = self.accepted is not None and self.name != "seed"
        return "; ".join(text for text in (str(self.accepted) if has_range else "", self.also) if text)

    @property
    def description(self) -> str:
        """Meaning, default and limits: the comment of the parameter's field in inference.proto."""
        colon = ":" if self.absent or self.default is None else ""
        limits = f"; {self.limits_text}" if self.limits_text else ""
        return f"{self.meaning} Default{colon} {self.default_text}{limits}."


_INT, _FLOAT, _BOOL, _TEXTS, _TOKEN_IDS = Kind.INT, Kind.FLOAT, Kind.BOOL, Kind.TEXTS, Kind.TOKEN_IDS
_LOGPROBS_LIMITS = (
    "at most the server's limit (20 unless it says otherwise); -1: the whole vocabulary, where the limit is that"
)

PARAMETERS = (
    Parameter(
        "n",
        _INT,
        "Sequences to sample from the prompt.",
        1,
        Range(1),
        also="at most the server's limit (128 unless it says otherwise); must be 1 with greedy sampling",
    ),
    Parameter(
        "presence_penalty",
        _FLOAT,
        "Subtracted from the logit of each token that has been generated.",
        0.0,
        Range(-2.0, 2.0),
    ),
    Parameter(
        "frequency_penalty",
        _FLOAT,
        "Subtracted from a token's logit once for each time it has been generated.",
        0.0,
        Range(-2.0, 2.0),
    ),
    Parameter(
        "repetition_penalty",
        _FLOAT,
        "Divides positive and multiplies negative logits of tokens in prompt or output.",
        1.0,
        Range(0.0, excludes_low=True),
    ),
    Parameter(
        "temperature",
        _FLOAT,
        "Divides the logits; 0 (below 1e-5) means greedy sampling.",
        1.0,
        Range(0.0, 2.0),
    ),
    Parameter(
        "top_p",
        _FLOAT,
        "Keeps the smallest set of tokens whose probability reaches this.",
        1.0,
        Range(0.0, 1.0, excludes_low=True),
    ),
    Parameter("top_k", _INT, "Keeps the k most probable tokens; 0 and -1 keep all.", 0, Range(-1)),
    Parameter(
        "min_p",
        _FLOAT,
        "Keeps tokens at least this times as probable as the most probable.",
        0.0,
        Range(0.0, 1.0),
    ),
    Parameter(
        "seed",
        _INT,
        "Makes the sample reproducible.",
        accepted=Range(-(2**63), 2**63 - 1),
        absent="the router picks one and reports it in Started",
    ),
    Parameter(
        "stop",
        _TEXTS,
        "Strings that end a sequence when generated.",
        also=f"up to {MAX_STOP_STRINGS}, each of 1 to {MAX_TEXT_CHARS} characters",
    ),
    Parameter(
        "stop_token_ids",
        _TOKEN_IDS,
        "Token ids that end a sequence when generated.",
        also="up to 64 with the model's end-of-sequence tokens",
    ),
    Parameter("ignore_eos", _BOOL, "Goes on after the model's end-of-sequence token.", False),
    Parameter(
        "max_tokens",
        _INT,
        "Most tokens to generate for each sequence.",
        16,
        Range(1),
        also="ends at the context length in any case",
    ),
    Parameter(
        "min_tokens",
        _INT,
        "Tokens to generate before the end-of-sequence token, a stop token or the end of a stop string may come.",
        0,
        Range(0),
        also="at most max_tokens",
    ),
    Parameter(
        "logprobs",
        _INT,
        "Log-probabilities to return for each generated token: the token's own and this many of the most probable.",
        accepted=Range(-1),
        also=_LOGPROBS_LIMITS,
    ),
    Parameter(
        "prompt_logprobs",
        _INT,
        "The same for each prompt token but the first, in PromptLogprobs.",
        accepted=Range(-1),
        also="limits as for logprobs",
    ),
    Parameter("detokenize", _BOOL, "Returns text beside token ids; stop strings need it.", True),
    Parameter("skip_special_tokens", _BOOL, "Leaves special tokens out of the text.", True),
    Parameter("spaces_between_special_tokens", _BOOL, "Puts spaces between special tokens in the text.", True),
    Parameter(
        "include_stop_str_in_output",
        _BOOL,
        "Keeps the stop string that ended a sequence at the end of its text.",
        False,
    ),
    Parameter(
        "logit_bias",
        Kind.BIASES,
        "Added to the model's logits, by token id, before penalties and temperature: a bias at either end bans or "
        "forces a token in practice.",
        accepted=Range(-MAX_LOGIT_BIAS, MAX_LOGIT_BIAS),
        also=f"at most {MAX_LOGIT_BIAS_ENTRIES} entries",
    ),
    Parameter("allowed_token_ids", _TOKEN_IDS, "Only these tokens may be generated.", absent="all may"),
    Parameter(
        "bad_words",
        _TEXTS,
        "Strings that must not be generated: the last token of each is not sampled behind the tokens before it.",
        also=f"up to {MAX_BAD_WORDS} token sequences",
    ),
    Parameter("structured_outputs", Kind.MESSAGE, "Constrains the output to a grammar."),
    Parameter(
        "truncate_prompt_tokens",
        _INT,
        "Keeps only the last tokens of the prompt, this many; -1: as many as leave room for max_tokens.",
        accepted=Range(-1, excludes_zero=True),
        absent="all",
        also="at most the context length",
    ),
    Parameter(
        "extra_args",
        Kind.OBJECT,
        "Arguments for the server's logits processors, as JSON.",
        also=f"up to {MAX_EXTRA_ARGS_BYTES >> 10} KiB; refused where the server has no logits processors",
    ),
)
"""Every sampling parameter, in the order of the fields of inference.proto."""
BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}
