"""Sampling and log-probabilities at served sizes, beside the definition and float64, on a CPU and on a GPU."""

import float64
import pytest
import torch
from kernel_site import Site
from pagewire_kernels.sample import SamplingBatch, gather_logprobs, reference, sample

MAX_LEN, NUM_PROMPT, NUM_TOKENS = 64, 20, 50
MAX_SHARE = 0.01
"""Of rows with another token: of a thousand draws, a few may stand on a filter's border."""
MAX_LOGPROB_ERROR = 0.01
OPTIONS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "all filters": {"temperature": 0.7, "top_k": 100, "top_p": 0.95, "min_p": 0.02},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2},
}
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}


def sampling_batch(device: torch.device, num_rows: int, vocab_size: int, options: dict[str, float]) -> SamplingBatch:
    """Rows with the same options, and with different seeds and token histories."""

    def counts(value: int) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=torch.int32, device=device)

    rows = torch.arange(num_rows, device=device)
    floats = {key: torch.full((num_rows,), options.get(key, value), device=device) for key, value in NEUTRAL.items()}
    return SamplingBatch(
        **floats,
        top_k=counts(int(options.get("top_k", 0))),
        seeds=rows * 7919 + 12345,
        positions=rows + NUM_TOKENS,
        token_ids=torch.randint(0, vocab_size, (num_rows, MAX_LEN), dtype=torch.int32, device=device),
        slots=rows,
        num_prompt_tokens=counts(NUM_PROMPT),
        num_tokens=counts(NUM_TOKENS),
        stop_token_ids=torch.full((num_rows, 1), -1, dtype=torch.int32, device=device),
        mask_stop=torch.zeros(num_rows, dtype=torch.bool, device=device),
        all_greedy=options.get("temperature") == 0.0,
        any_penalties="presence_penalty" in options,
        any_stop_mask=False,
    )


def random_logits(site: Site) -> torch.Tensor:
    return site.random(site.size(128, 8), site.size(128_256, 1000)) * 3


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_of_the_definition(float32_site: Site, name: str) -> None:
    logits = random_logits(float32_site)
    batch = sampling_batch(float32_site.device, *logits.shape, OPTIONS[name])
    expected = reference.sample(logits.clone(), batch)
    share = float((sample(logits.clone(), batch) != expected).double().mean())
    assert share <= MAX_SHARE


def test_logprobs(float32_site: Site) -> None:
    logits = random_logits(float32_site)
    chosen = logits.argmax(-1)
    chosen[::2] = 5
    outputs = gather_logprobs(logits, chosen, 5)
    exact = logits.double().log_softmax(-1)
    assert float64.relative_error(outputs[0], exact.gather(1, chosen[:, None])[:, 0]) <= MAX_LOGPROB_ERROR
    assert float64.relative_error(outputs[3], exact.topk(5).values) <= MAX_LOGPROB_ERROR
