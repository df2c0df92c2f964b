"""Sampling and log-probabilities at served sizes, beside the definition and float64, on a CPU and on a GPU."""

import float64
import pytest
import torch
from kernel_site import Site
from pagewire_kernels.sample import gather_logprobs, most_probable, reference, sample
from sampling_rows import on, sampling_batch

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
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2, "num_tokens": 50},
    "biases": {"logit_bias": {token_id: token_id % 7 - 3.0 for token_id in range(0, 1000, 3)}, "top_p": 0.9},
}


def random_logits(site: Site) -> torch.Tensor:
    return site.random(site.size(128, 8), site.size(128_256, 1000)) * 3


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_those_of_the_definition(float32_site: Site, name: str) -> None:
    logits = random_logits(float32_site)
    batch = on(float32_site.device, sampling_batch(*logits.shape, max_len=64, num_prompt_tokens=20, **OPTIONS[name]))
    expected = reference.sample(logits.clone(), batch)
    share = float((sample(logits.clone(), batch) != expected).double().mean())
    assert share <= MAX_SHARE


def test_tokens_that_may_not_be_sampled_are_not(float32_site: Site) -> None:
    logits = random_logits(float32_site)
    num_rows, vocab_size = logits.shape
    thirds = [range(row % 3, vocab_size, 3) for row in range(num_rows)]
    batch = on(
        float32_site.device,
        sampling_batch(
            num_rows,
            vocab_size,
            num_tokens=20,
            masks=[third if row % 4 else None for row, third in enumerate(thirds)],
            allowed=[range(0, vocab_size, 2) if row % 2 else () for row in range(num_rows)],
            bad_words=[[[token] for token in range(128)] for _ in range(num_rows)],
        ),
    )
    logits[:, :128] += 9.0
    tokens = sample(logits.clone(), batch)
    assert float((tokens != reference.sample(logits.clone(), batch)).double().mean()) <= MAX_SHARE
    assert int(tokens.min()) >= 128
    for row, token in enumerate(tokens.tolist()):
        assert row % 4 == 0 or token % 3 == row % 3
        assert row % 2 == 0 or token % 2 == 0
    token_ids, logprobs = most_probable(logits, batch, 96)
    wanted_ids, wanted = reference.most_probable(logits, batch, 96)
    assert torch.equal(token_ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, atol=1e-4, rtol=1e-5)


def test_logprobs(float32_site: Site) -> None:
    logits = random_logits(float32_site)
    chosen = logits.argmax(-1)
    chosen[::2] = 5
    outputs = gather_logprobs(logits, chosen, 5)
    exact = logits.double().log_softmax(-1)
    assert float64.relative_error(outputs[0], exact.gather(1, chosen[:, None])[:, 0]) <= MAX_LOGPROB_ERROR
    assert float64.relative_error(outputs[3], exact.topk(5).values) <= MAX_LOGPROB_ERROR
