"""Processors that look at one sequence at a time, as processors of whole batches."""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from pagewire_shard.logits_processors.interface import (
    BatchUpdate,
    LogitsProcessor,
    MoveDirectionality,
    ProcessorConfig,
)

RequestLogitsProcessor = Callable[..., torch.Tensor]
"""(output_ids, logits) or (prompt_ids, output_ids, logits) -> logits; logits: [vocab_size] float32."""
State = TypeVar("State")


def process_dict_updates(
    entries: dict[int, State],
    batch_update: BatchUpdate | None,
    new_state: Callable[[Any, list[int] | None, list[int]], State | None],
) -> bool:
    """Brings states by row to where the batch is. Returns whether they have changed.

    Args:
        new_state: Makes the state of an added row of its parameters, prompt and output; None: the row has none.
    """
    if batch_update is None:
        return False
    has_changed = False
    for index in batch_update.removed:
        has_changed |= entries.pop(index, None) is not None
    for index, params, prompt_ids, output_ids in batch_update.added:
        has_changed |= entries.pop(index, None) is not None
        if (state := new_state(params, prompt_ids, output_ids)) is not None:
            entries[index] = state
            has_changed = True
    for source, target, direction in batch_update.moved:
        moved, other = entries.pop(source, None), entries.pop(target, None)
        if moved is not None:
            entries[target] = moved
        if other is not None and direction is MoveDirectionality.SWAP:
            entries[source] = other
        has_changed |= moved is not None or other is not None
    return has_changed


class AdapterLogitsProcessor(LogitsProcessor):
    """Base class of processors that look at one sequence at a time."""

    def __init__(self, vllm_config: ProcessorConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.req_info: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}
        """What to call with a row's logits, by row."""

    @abstractmethod
    def new_req_logits_processor(self, params: Any) -> RequestLogitsProcessor | None:
        """Returns what to call for a sequence; None: its logits stay as they are."""

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """See LogitsProcessor."""
        process_dict_updates(self.req_info, batch_update, self._new_state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """See LogitsProcessor."""
        for row, process in self.req_info.items():
            logits[row] = process(logits[row])
        return logits

    def _new_state(
        self, params: Any, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        process = self.new_req_logits_processor(params)
        if process is None:
            return None
        takes_prompt = len(inspect.signature(process).parameters) == 3
        return partial(process, prompt_ids, output_ids) if takes_prompt else partial(process, output_ids)
