"""What a logits processor is, and what it is told. Names and meaning are vLLM's, so that processors run on both."""

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import torch
from pagewire.v1 import inference_pb2
from pagewire_common.json_struct import plain


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model."""

    model: str
    """The name that clients see."""
    max_model_len: int
    """Longest sequence."""
    vocab_size: int
    """Columns of the logits."""

    def get_vocab_size(self) -> int:
        """Columns of the logits."""
        return self.vocab_size


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits of a batch."""

    max_num_seqs: int
    """Most rows of a batch."""


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """What a processor is built with: the parts of vLLM's VllmConfig that one can need here."""

    model_config: ModelConfig
    scheduler_config: SchedulerConfig
    speculative_config: None = None
    """No drafts are verified where processors run."""


_KEPT_BY_THE_ROUTER = {
    "stop": "text is looked at by the router alone",
    "bad_words": "their tokens are in bad_words_token_ids",
    "structured_outputs": "a grammar constrains the logits behind processors",
}
"""Parameters that no shard gets, and why."""


class RequestParams:
    """A request's sampling parameters, under the names of pagewire.SamplingParams. Those that it left out have the
    server's defaults; those without a default are None. `stop`, `bad_words` and `structured_outputs` raise
    AttributeError: the router keeps them."""

    def __init__(
        self,
        message: inference_pb2.SamplingParams,
        stop_token_ids: Items[int] = (),
        bad_words_token_ids: Items[Items[int]] = (),
    ) -> None:
        """Takes the parameters, and what a shard has in another form: see Admit.stop and Admit.bad_words."""
        self._message = message
        self._stop_token_ids = stop_token_ids
        self._bad_words_token_ids = bad_words_token_ids

    @property
    def stop_token_ids(self) -> list[int]:
        """All tokens that stop the sequence: those of the request, and those of the model unless they are ignored."""
        return list(self._stop_token_ids)

    @property
    def all_stop_token_ids(self) -> set[int]:
        """The same as a set, as in vLLM."""
        return set(self._stop_token_ids)

    @property
    def bad_words_token_ids(self) -> list[list[int]] | None:
        """The tokens of each bad word, as in vLLM; None: there are none."""
        return [list(word) for word in self._bad_words_token_ids] or None

    @cached_property
    def extra_args(self) -> dict[str, Any] | None:
        """Arguments for logits processors; None: none were given. Whole numbers are integers."""
        args: dict[str, Any] = plain(self._message.extra_args)
        return args or None

    def __getattr__(self, name: str) -> Any:
        if reason := _KEPT_BY_THE_ROUTER.get(name):
            raise AttributeError(f"sampling parameters on a shard have no {name!r}: {reason}")
        message = self._message
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            raise AttributeError(f"sampling parameters have no {name!r}")
        if field.has_presence and not message.HasField(name):  # type: ignore[arg-type]
            return None
        value = getattr(message, name)
        return list(value) if field.is_repeated and field.message_type is None else value


class MoveDirectionality(Enum):
    """What becomes of the row at the second index of a move."""

    UNIDIRECTIONAL = auto()
    """There is none."""
    SWAP = auto()
    """It takes the first index."""


AddedRequest = tuple[int, RequestParams, list[int] | None, list[int]]
"""(index, parameters, the prompt's tokens, the tokens behind it). The last list grows as tokens are sampled."""
MovedRequest = tuple[int, int, MoveDirectionality]
"""(from, to, what happens to the row that is there)."""


@dataclass(frozen=True, slots=True)
class BatchUpdate:
    """How the rows of a batch differ from those of the batch before. To be followed in the order removed, added, moved;
    what is added or moved may take the index of a row that was there."""

    batch_size: int
    """Rows of the batch."""
    removed: Items[int]
    """Indices whose sequences are in the batch no more."""
    added: Items[AddedRequest]
    moved: Items[MovedRequest]


class LogitsProcessor(ABC):
    """Changes the logits of all rows of a batch. One object lives as long as the shard, on the thread that runs steps.

    A sequence's state must follow from its parameters, its prompt and the tokens behind it: it is removed when it is
    preempted, or passed over in a step, and added again with all tokens that it has by then, maybe in another process.
    """

    @classmethod
    def validate_params(cls, sampling_params: RequestParams) -> None:
        """Raises ValueError for arguments that are not accepted; the message goes to the client."""
        return

    @abstractmethod
    def __init__(self, vllm_config: ProcessorConfig, device: torch.device, is_pin_memory: bool) -> None:
        """Is called once.

        Args:
            vllm_config: The model and the limits of a batch.
            device: Where the logits are.
            is_pin_memory: Whether host memory for copies to the device should be pinned.
        """

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the most probable token stays the same. Then rows with temperature 0 need not be looked at, and the
        others' logits are divided by their temperature."""

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Is told of each batch before apply. None: its rows are those of the batch before, each with new tokens."""

    @abstractmethod
    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns the logits as they shall be; may change them in place.

        Args:
            logits: [batch_size, vocab_size] float32.
        """
