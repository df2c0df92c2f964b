"""How the rows of a step are to be sampled, looked up in the device state."""

from dataclasses import dataclass

import torch
from pagewire_kernels.sample import SamplingBatch

from pagewire_shard.execution.device_state import (
    FREQUENCY,
    MIN_LEN,
    MIN_P,
    NUM_PROMPT,
    NUM_TOKENS,
    PRESENCE,
    REPETITION,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    DeviceState,
)


@dataclass(frozen=True, slots=True)
class SamplingNeeds:
    """What the host knows of how rows are sampled; saying more than is true costs time alone."""

    all_greedy: bool = False
    any_penalties: bool = True
    any_stop_mask: bool = True


def sampling_batch(state: DeviceState, slots: torch.Tensor, needs: SamplingNeeds) -> SamplingBatch:
    """The parameters of the rows in `slots`, [num_rows] int64, left where they are. Can be part of a CUDA graph."""
    ints, floats = state.ints, state.floats
    return SamplingBatch(
        temperature=floats[:, TEMPERATURE],
        top_k=ints[:, TOP_K],
        top_p=floats[:, TOP_P],
        min_p=floats[:, MIN_P],
        presence_penalty=floats[:, PRESENCE],
        frequency_penalty=floats[:, FREQUENCY],
        repetition_penalty=floats[:, REPETITION],
        seeds=ints[:, SEED],
        positions=ints[:, NUM_TOKENS],
        token_ids=state.token_ids,
        slots=slots,
        num_prompt_tokens=ints[:, NUM_PROMPT],
        num_tokens=ints[:, NUM_TOKENS],
        stop_token_ids=state.stop_token_ids,
        mask_stop=ints[:, NUM_TOKENS] < ints[:, MIN_LEN],
        all_greedy=needs.all_greedy,
        any_penalties=needs.any_penalties,
        any_stop_mask=needs.any_stop_mask,
        by_slot=True,
    )
