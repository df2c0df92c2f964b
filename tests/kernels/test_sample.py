"""Sampling: the CPU kernels against the reference, and the reference against transformers and against chance."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pagewire_kernels.sample import Stage, gather_logprobs, reference, sample
from pagewire_kernels.sample.columns import ALL_STAGES, MAX_BIASES
from sampling_rows import sampling_batch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

VOCAB_SIZES = [1, 5, 64, 100, 2048, 32000]


def logits_for(num_rows, vocab_size, spread=3.0, seed=1):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


OPTIONS = [
    {},
    {"temperature": 0.3},
    {"temperature": 0.0},
    {"temperature": torch.tensor([0.0, 1.0, 0.5, 2.0, 0.0, 1.5])},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 1_000_000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.01, "top_k": 40, "top_p": 0.8, "temperature": 1.3},
    {"repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": -0.8},
    {"repetition_penalty": 0.6, "presence_penalty": -2.0, "frequency_penalty": 2.0, "temperature": 0.0},
    {"logit_bias": {0: 3.0}},
    {"logit_bias": {0: -100.0}, "temperature": 0.0},
    {"logit_bias": {0: 0.75}, "repetition_penalty": 1.7, "top_k": 20},
]


@pytest.mark.parametrize("spread", [0.5, 8.0])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cpu_samples_what_the_reference_samples(options, vocab_size, spread):
    logits = logits_for(6, vocab_size, spread)
    batch = sampling_batch(6, vocab_size, **options)
    assert torch.equal(sample(logits.clone(), batch), reference.sample(logits, batch))


@pytest.mark.parametrize("vocab_size", [1, 2, 47, 48, 49, 50, 51, 52, 64])
def test_scratch_of_any_size_leaves_a_kernel_s_arguments_alone(vocab_size):
    """Scratch that is as large as the kernel's own arguments must not be given their memory."""
    logits = logits_for(6, vocab_size)
    batch = sampling_batch(6, vocab_size, repetition_penalty=1.7, presence_penalty=0.5)
    batch.sequences.token_ids.zero_()
    assert torch.equal(sample(logits.clone(), batch), reference.sample(logits, batch))


def test_equal_logits_are_won_by_the_lowest_token_when_greedy():
    logits = torch.zeros(3, 5000)
    logits[1, [1030, 4000]] = 2.0
    logits[2] = -1e3
    batch = sampling_batch(3, 5000, temperature=0.0, stages=Stage(0))
    assert sample(logits.clone(), batch).tolist() == [0, 1030, 0]
    assert reference.sample(logits, batch).tolist() == [0, 1030, 0]


def test_equal_logits_stay_together_in_top_k_and_top_p():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    for options in ({"top_k": 2}, {"top_p": 0.6}):
        kept = reference.apply_filters(logits, sampling_batch(1, **options)).isfinite()
        assert kept.tolist() == [[False, True, True, True, True, False]]


@pytest.mark.parametrize("num_rows", [1, 4, 40])
def test_a_row_samples_the_same_in_any_batch(num_rows):
    logits = logits_for(40, 1000)
    batch = sampling_batch(40, 1000, top_p=0.95, presence_penalty=0.3)
    rows = torch.randperm(40)[:num_rows]
    assert torch.equal(
        sample(logits[rows], replace(batch, slots=batch.slots[rows])), sample(logits.clone(), batch)[rows]
    )


def test_noise_is_that_of_the_published_philox():
    words = reference.philox(torch.tensor([0]), torch.tensor([0]), 1)
    assert [f"{word:08x}" for word in words[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def test_noise_depends_on_every_bit_of_seed_and_position():
    base = reference.gumbel_noise(torch.tensor([5]), torch.tensor([7]), 8)
    for seed, position in ((5 + 2**40, 7), (5 - 2**63, 7), (5, 7 + 2**35), (6, 7), (5, 8)):
        assert not torch.isclose(reference.gumbel_noise(torch.tensor([seed]), torch.tensor([position]), 8), base).any()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_distribution(options):
    num_draws, vocab_size = 20_000, 12
    logits = logits_for(1, vocab_size, spread=1.0)
    batch = sampling_batch(num_draws, vocab_size, **{"seed": 1234, "num_tokens": torch.arange(num_draws), **options})
    counts = sample(logits.repeat(num_draws, 1), batch).bincount(minlength=vocab_size)
    one = sampling_batch(1, vocab_size, **options)
    expected = reference.apply_filters(logits / one.parameter("temperature"), one).softmax(-1)[0].double() * num_draws
    assert (counts[expected == 0] == 0).all()
    chi_square = ((counts - expected) ** 2 / expected)[expected > 0].sum()
    # 11 degrees of freedom: 31.3 is the 0.1 % point. The seed is fixed, so that the test cannot flicker.
    assert chi_square < 31.3


def test_stop_tokens_are_not_sampled_while_masked():
    logits = logits_for(4, 100)
    tops = logits.argsort(dim=-1, descending=True).int()
    masks_stop = [True, False, True, False]
    stops = torch.stack([tops[:, 0], torch.tensor([-1, 100, 2**31 - 1, 5], dtype=torch.int32)], dim=1)
    batch = sampling_batch(4, temperature=0.0, stop_token_ids=stops, masks_stop=masks_stop)
    expected = [tops[row, 1 if masks_stop[row] else 0].item() for row in range(4)]
    assert sample(logits.clone(), batch).tolist() == expected
    assert reference.sample(logits, batch).tolist() == expected


@pytest.mark.parametrize(
    ("options", "processor"),
    [
        ({"top_k": 7}, TopKLogitsWarper(7)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
    ],
    ids=["top_k", "top_p", "min_p"],
)
def test_filters_keep_what_those_of_transformers_keep(options, processor):
    logits = logits_for(50, 300)
    kept = reference.apply_filters(logits, sampling_batch(50, 300, **options)).isfinite()
    assert torch.equal(kept, processor(None, logits).isfinite())


def test_repetition_penalty_is_that_of_transformers():
    logits = logits_for(5, 60)
    batch = sampling_batch(5, 60, repetition_penalty=1.4)
    penalised = reference.apply_penalties(logits, batch)
    for row in range(5):
        tokens = batch.sequences.token_ids[batch.slots[row], : batch.num_tokens()[row]].long()[None]
        expected = RepetitionPenaltyLogitsProcessor(1.4)(tokens, logits[row : row + 1].clone())
        torch.testing.assert_close(penalised[row : row + 1], expected)


def test_presence_and_frequency_penalties_count_the_output_only():
    options = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "num_prompt_tokens": 2, "num_tokens": 6}
    batch = sampling_batch(1, 10, max_len=7, **options)
    batch.sequences.token_ids[:] = torch.tensor([3, 4, 5, 5, 4, 5, 9])
    expected = np.zeros(10)
    expected[4], expected[5] = -0.75, -1.25
    assert reference.apply_penalties(torch.zeros(1, 10), batch)[0].tolist() == expected.tolist()


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("num_top", [0, 1, 20, 256, 257, 32000])
def test_logprobs(vocab_size, num_top):
    num_top = min(num_top, vocab_size)
    logits = logits_for(5, vocab_size).round(decimals=1)
    sampled = torch.randint(0, vocab_size, (5,))
    for actual, expected in zip(
        gather_logprobs(logits, sampled, num_top),
        reference.gather_logprobs(logits, sampled, num_top),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {}, {"top_k": 20}, {"top_p": 0.9, "repetition_penalty": 1.3}]
)
@pytest.mark.parametrize("poison", [float("nan"), -float("nan"), float("inf")])
def test_a_row_without_a_distribution_yields_no_token_and_the_others_theirs(options, poison):
    params = sampling_batch(6, **options, stages=Stage(0) if options == {"temperature": 0.0} else ALL_STAGES)
    logits = logits_for(6, 100)
    sound = sample(logits.clone(), params)
    logits[1, 57] = logits[2] = poison
    logits[4] = float("-inf")
    logits[5, :99] = float("-inf")
    for sampled in (sample(logits.clone(), params), reference.sample(logits, params)):
        assert sampled.tolist() == [sound[0], -1, -1, sound[3], -1, 99]


def test_biases_are_added_before_the_penalties_and_each_row_has_its_own():
    logits = torch.zeros(3, 6)
    biases = [{2: 1.5, 4: -2.0}, {}, {0: 100.0}]
    batch = sampling_batch(3, 6, logit_bias=biases, repetition_penalty=2.0, max_len=12)
    batch.sequences.token_ids.fill_(2)
    biased = reference.add_biases(logits, batch)
    assert biased.tolist() == [[0, 0, 1.5, 0, -2.0, 0], [0] * 6, [100.0, 0, 0, 0, 0, 0]]
    assert reference.apply_penalties(biased, batch)[0].tolist() == [0, 0, 0.75, 0, -2.0, 0]


@pytest.mark.parametrize("num_biases", [1, 7, MAX_BIASES])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_is_banned_by_minus_100_and_forced_by_100(num_biases, temperature):
    logits = logits_for(8, 2000)
    best = logits.argsort(dim=-1, descending=True)[:, :num_biases].tolist()
    banned = sampling_batch(8, 2000, temperature=temperature, logit_bias=[dict.fromkeys(row, -100.0) for row in best])
    tokens = sample(logits.clone(), banned).tolist()
    assert not any(token in row for token, row in zip(tokens, best, strict=True))
    forced = sampling_batch(8, 2000, temperature=temperature, logit_bias=[{1999 - row: 100.0} for row in range(8)])
    assert sample(logits.clone(), forced).tolist() == [1999 - row for row in range(8)]


def test_a_bias_leaves_a_row_without_a_distribution_without_one():
    logits = torch.full((2, 50), float("-inf"))
    logits[1] = torch.randn(50)
    logits[1, 7] = float("inf")
    batch = sampling_batch(2, 50, logit_bias={3: 100.0, 7: -100.0})
    assert sample(logits.clone(), batch).tolist() == reference.sample(logits, batch).tolist() == [-1, -1]
