"""The stages that take tokens away: masks, allowed tokens and bad words, on a CPU and by their definition."""

from dataclasses import replace

import pytest
import torch
from pagewire_kernels.sample import SamplingBatch, TokenMasks, most_probable, reference, sample
from pagewire_kernels.sample.columns import ALL_STAGES, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, RARE_STAGES
from sampling_rows import sampling_batch, token_masks

NUM_ROWS = 6
MINUS_INFINITY = float("-inf")


def logits_for(num_rows: int, vocab_size: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def random_sets(vocab_size: int, *sizes: int, seed: int = 2) -> list[list[int]]:
    """Different tokens, so many in each set, as far as there are so many."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(vocab_size, generator=generator)[:size].tolist() for size in sizes]


def sampled(logits: torch.Tensor, batch: SamplingBatch) -> list[int]:
    """The CPU's tokens, which must be those of the definition."""
    tokens = sample(logits.clone(), batch)
    assert torch.equal(tokens, reference.sample(logits, batch))
    return tokens.tolist()


OPTIONS = [
    {"temperature": 0.0},
    {},
    {"top_p": 0.7},
    {"top_k": 5},
    {"min_p": 0.1, "top_k": 20, "top_p": 0.9},
    {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25},
]


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 100, 2049, 32_003])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_only_what_mask_and_allowed_tokens_both_have_is_sampled(vocab_size: int, options: dict) -> None:
    masks = [*random_sets(vocab_size, 1, 7, 10_000), None, range(vocab_size), None]
    allowed = [*random_sets(vocab_size, 3, seed=3), range(vocab_size), (), range(0, vocab_size, 3), (), ()]
    allowed[0] = [*allowed[0], *masks[0]]
    batch = sampling_batch(NUM_ROWS, vocab_size, masks=masks, allowed=allowed, **options)
    logits = logits_for(NUM_ROWS, vocab_size)
    tokens = sampled(logits, batch)
    for token, mask, mine in zip(tokens, masks, allowed, strict=True):
        assert token in (range(vocab_size) if mask is None else mask)
        assert token in (mine or range(vocab_size))
    free = sampling_batch(NUM_ROWS, vocab_size, **options)
    assert tokens[5] == sampled(logits, free)[5]


def test_a_mask_has_no_effect_without_its_stage_and_a_row_without_one_none_from_the_others() -> None:
    logits = logits_for(NUM_ROWS, 200)
    masks = [[3], None, [199], None, [], [64]]
    batch = sampling_batch(NUM_ROWS, 200, masks=masks, temperature=0.0)
    best = logits.argmax(-1).tolist()
    assert sampled(logits, batch) == [3, best[1], 199, best[3], -1, 64]
    assert sampled(logits, replace(batch, stages=ALL_STAGES & ~RARE_STAGES)) == best


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_that_may_sample_nothing_yields_no_token(options: dict) -> None:
    masks, allowed = [[], [5], [7], None, [9], None], [(), [6], [7], [8], (), ()]
    bad_words = [(), (), [[7]], [[8]], [[9]], [[10]]]
    batch = sampling_batch(NUM_ROWS, 50, masks=masks, allowed=allowed, bad_words=bad_words, **options)
    tokens = sampled(logits_for(NUM_ROWS, 50), batch)
    assert tokens[:5] == [-1] * 5
    assert tokens[5] >= 0


def test_a_row_without_a_distribution_yields_no_token_even_if_its_mask_takes_the_poison() -> None:
    logits = logits_for(3, 50)
    logits[0, 7], logits[1, 8] = float("nan"), float("inf")
    assert sampled(logits, sampling_batch(3, 50, masks=[[1]] * 3)) == [-1, -1, 1]


def test_draws_from_a_mask_follow_the_distribution_of_what_is_left() -> None:
    num_draws, vocab_size, left = 20_000, 40, [1, 4, 33, 34, 39]
    logits = logits_for(1, vocab_size) / 3
    masks = TokenMasks(token_masks(vocab_size, [left]).bits, torch.zeros(num_draws, dtype=torch.int64))
    options = {"seed": 77, "num_tokens": torch.arange(num_draws), "top_p": 0.9}
    batch = replace(sampling_batch(num_draws, vocab_size, **options), masks=masks)
    counts = sample(logits.repeat(num_draws, 1), batch).bincount(minlength=vocab_size)
    kept = torch.full((1, vocab_size), MINUS_INFINITY)
    kept[0, left] = logits[0, left]
    expected = reference.apply_filters(kept, sampling_batch(1, vocab_size, top_p=0.9)).softmax(-1)[0].double()
    assert 0 < (expected > 0).sum() < len(left), "top_p is of what the mask leaves"
    assert (counts[expected == 0] == 0).all()
    expected *= num_draws
    # At most 4 degrees of freedom: 18.5 is the 0.1 % point. The seed is fixed, so that the test cannot flicker.
    assert (((counts - expected) ** 2 / expected)[expected > 0]).sum() < 18.5


def test_the_last_token_of_a_bad_word_is_banned_behind_its_others_in_the_output() -> None:
    history = [1, 2, 3, 4, 5]
    words = {
        "a word of one token": ([[9]], True),
        "the tokens before it end the output": ([[4, 5, 9]], True),
        "all of the output": ([[3, 4, 5, 9]], True),
        "they begin in the prompt": ([[2, 3, 4, 5, 9]], False),
        "they are more than there are": ([[0, 1, 2, 3, 4, 5, 9]], False),
        "another token is last": ([[4, 9]], False),
        "another token is first": ([[1, 5, 9]], False),
        "only the second word": ([[4, 7], [5, 9], [6, 8]], True),
        "only the last word": ([[8, 8], [9, 8], [5, 9]], True),
    }
    options = {"max_len": 8, "num_tokens": 5, "num_prompt_tokens": 2, "temperature": 0.0}
    batch = sampling_batch(len(words), 12, bad_words=[bad for bad, _ in words.values()], **options)
    batch.sequences.token_ids[:] = torch.tensor([*history, 9, 9, 9])
    logits = torch.zeros(len(words), 12)
    logits[:, 9], logits[:, 0] = 2.0, 1.0
    tokens = sampled(logits, batch)
    assert dict(zip(words, tokens, strict=True)) == {name: 0 if banned else 9 for name, (_, banned) in words.items()}


def test_as_many_bad_words_as_can_be() -> None:
    many = [[token] for token in range(MAX_BAD_WORDS)]
    long = [[5] * (MAX_BAD_WORD_TOKENS - 1) + [7]]
    full = [[token] * (MAX_BAD_WORD_TOKENS // MAX_BAD_WORDS) for token in range(MAX_BAD_WORDS)]
    options = {"max_len": MAX_BAD_WORD_TOKENS, "num_prompt_tokens": 0, "temperature": 0.0}
    nums = torch.tensor([9, MAX_BAD_WORD_TOKENS - 1, MAX_BAD_WORD_TOKENS - 2, 9])
    batch = sampling_batch(4, 200, bad_words=[many, long, long, full], num_tokens=nums, **options)
    batch.sequences.token_ids.fill_(5)
    logits = torch.zeros(4, 200)
    logits[1:, 7] = 1.0
    logits[3, 5] = 2.0
    assert sampled(logits, batch) == [MAX_BAD_WORDS, 0, 7, 7]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_stages_together_and_a_row_in_any_batch(options: dict) -> None:
    vocab_size = 1000
    rows = [random_sets(vocab_size, 400, 500, 20, seed=seed) for seed in range(NUM_ROWS)]
    batch = sampling_batch(
        NUM_ROWS,
        vocab_size,
        **{"num_tokens": 20, **options},
        masks=[mask if row % 3 else None for row, (mask, _, _) in enumerate(rows)],
        allowed=[mine if row % 2 else () for row, (_, mine, _) in enumerate(rows)],
        bad_words=[[[token] for token in bad] for _, _, bad in rows],
        logit_bias=[dict.fromkeys(bad, 2.0) for _, _, bad in rows],
        stop_token_ids=torch.tensor([mine[:3] for _, mine, _ in rows], dtype=torch.int32),
        masks_stop=[row % 2 > 0 for row in range(NUM_ROWS)],
    )
    logits = logits_for(NUM_ROWS, vocab_size)
    tokens = sampled(logits, batch)
    assert min(tokens) >= 0
    assert batch.masks is not None
    for row in range(NUM_ROWS):
        masks = TokenMasks(batch.masks.bits, batch.masks.rows[row : row + 1])
        alone = replace(batch, slots=batch.slots[row : row + 1], masks=masks)
        assert sampled(logits[row : row + 1], alone) == tokens[row : row + 1]


@pytest.mark.parametrize("num_top", [1, 20, 66, 300])
@pytest.mark.parametrize("vocab_size", [5, 100, 2049])
def test_the_most_probable_tokens_that_rows_may_sample(vocab_size: int, num_top: int) -> None:
    num_top = min(num_top, vocab_size)
    sets = random_sets(vocab_size, *[vocab_size // 2 + 1] * 5)
    bad_words = [[token] for token in sets[4][:100]]
    batch = sampling_batch(
        NUM_ROWS, vocab_size, num_tokens=20, masks=[sets[0], None, [0], [], sets[1], None], logit_bias={0: 90.0},
        allowed=[(), sets[2], (), (), sets[3], ()], bad_words=[bad_words, (), (), (), (), ()], presence_penalty=2.0,
        stop_token_ids=torch.tensor([tokens[:3] for tokens in (*sets, [1, 2, 3])], dtype=torch.int32),
        masks_stop=[True, False, True, False, True, False],
    )  # fmt: skip
    logits = logits_for(NUM_ROWS, vocab_size).round(decimals=1)
    given = logits.clone()
    token_ids, logprobs = most_probable(logits, batch, num_top)
    assert torch.equal(logits, given), "the logits were changed"
    wanted_ids, wanted = reference.most_probable(logits, batch, num_top)
    assert torch.equal(token_ids, wanted_ids)
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)
    exact = logits.double().log_softmax(-1)
    may = [set(range(vocab_size)) for _ in range(NUM_ROWS)]
    may[0] &= {*sets[0]} - {token for (token,) in bad_words}
    may[1], may[2], may[3], may[4] = {*sets[2]}, {0}, set(), {*sets[1]} & {*sets[3]}
    for row, stop in ((0, sets[0]), (2, sets[2]), (4, sets[4])):
        may[row] -= {*stop[:3]}
    for row, tokens in enumerate(may):
        best = sorted(tokens, key=lambda token: (-float(exact[row, token]), token))[:num_top]
        assert token_ids[row, : len(best)].tolist() == best
        torch.testing.assert_close(logprobs[row, : len(best)].double(), exact[row, best], atol=1e-5, rtol=1e-5)
        assert (logprobs[row, len(best) :] == MINUS_INFINITY).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), MINUS_INFINITY])
def test_a_row_without_a_distribution_has_no_log_probabilities(poison: float) -> None:
    logits = logits_for(2, 50)
    logits[0, 7 if poison > 0 or poison != poison else slice(None)] = poison
    token_ids, logprobs = most_probable(logits, sampling_batch(2, 50, allowed=[[7, 8], [7, 8]]), 3)
    assert logprobs[0].isnan().all()
    assert set(token_ids[1, :2].tolist()) == {7, 8}
    assert logprobs[1].isfinite().tolist() == [True, True, False]
