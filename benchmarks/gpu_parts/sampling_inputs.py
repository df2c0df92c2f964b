"""Sampling parameters that are the same for every row."""

import torch
from pagewire_kernels.sample import SamplingBatch

MAX_LEN = 64
NUM_PROMPT = 20
NUM_TOKENS = 50


def sampling_batch(
    device: torch.device,
    num_rows: int,
    vocab_size: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    presence: float = 0.0,
    repetition: float = 1.0,
) -> SamplingBatch:
    """Rows with different seeds and token histories."""

    def full(value: float) -> torch.Tensor:
        return torch.full((num_rows,), value, device=device)

    def counts(value: int) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=torch.int32, device=device)

    rows = torch.arange(num_rows, device=device)
    return SamplingBatch(
        temperature=full(temperature),
        top_k=counts(top_k),
        top_p=full(top_p),
        min_p=full(min_p),
        presence_penalty=full(presence),
        frequency_penalty=full(0.0),
        repetition_penalty=full(repetition),
        seeds=rows * 7919 + 12345,
        positions=rows + NUM_TOKENS,
        token_ids=torch.randint(0, vocab_size, (num_rows, MAX_LEN), dtype=torch.int32, device=device),
        slots=rows,
        num_prompt_tokens=counts(NUM_PROMPT),
        num_tokens=counts(NUM_TOKENS),
        stop_token_ids=torch.full((num_rows, 1), -1, dtype=torch.int32, device=device),
        mask_stop=torch.zeros(num_rows, dtype=torch.bool, device=device),
        all_greedy=temperature == 0,
        any_penalties=(presence, repetition) != (0.0, 1.0),
        any_stop_mask=False,
    )
