"""Sampling and log-probabilities in Triton against their references: on the GPU if there is one, else in Triton's
interpreter, in a process of its own.

Memory that torch.empty gives holds NaN, or a number that would be noticed. A token other than the reference's is
accepted only where the noisy logits of both are equal up to rounding.
"""

from dataclasses import replace

import pytest
import torch
from interpreter import HAS_GPU, run_in_interpreter, runs_kernels, starts_interpreter
from pagewire_kernels.sample import reference
from pagewire_kernels.sample.columns import ALL_STAGES, MAX_BIASES, RARE_STAGES
from sampling_rows import on, sampling_batch

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if HAS_GPU else [])]
ROUNDING = 1e-4

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.slow
@starts_interpreter
def test_kernels_agree_with_their_references_in_the_interpreter():
    run_in_interpreter(__file__)


@pytest.fixture
def with_triton(monkeypatch):
    """The module of log-probabilities with the kernels of a GPU."""
    from pagewire_kernels.sample import logprobs

    kernels = logprobs._backend("cuda")
    monkeypatch.setattr(logprobs, "_backend", lambda _: kernels)
    return logprobs


def logits_for(num_rows, vocab_size, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(vocab_size)
    return (torch.randn(num_rows, vocab_size, generator=generator) * spread).to(dtype)


def on_device(batch):
    return on(DEVICE, batch)


def noisy_logits(logits, batch):
    """What the reference takes the maximum of."""
    logits = reference.mask_stop_tokens(reference.add_biases(reference.take_tokens(logits, batch), batch), batch)
    logits = reference.apply_penalties(logits, batch)
    temperature = batch.parameter("temperature")[:, None]
    is_greedy = temperature < 1e-5
    noise = reference.gumbel_noise(batch.parameter("seed"), batch.num_tokens(), logits.shape[1])
    scaled = logits / torch.where(is_greedy, 1.0, temperature)
    return torch.where(is_greedy, logits, reference.apply_filters(scaled, batch) + noise)


def check(logits, batch):
    """Samples, and compares the tokens with the reference's, which is computed on the same device; returns them."""
    from pagewire_kernels.sample import triton as kernel

    batch, given = on_device(batch), logits.to(DEVICE, copy=True)
    tokens = kernel.sample(given, batch)
    assert torch.equal(given.cpu(), logits), "the logits were changed"
    precise = given.float()
    expected = reference.sample(precise, batch)
    for row in (tokens != expected).nonzero()[:, 0].tolist():
        values = noisy_logits(precise, batch)[row]
        found, wanted = tokens[row].item(), expected[row].item()
        difference = (values[wanted] - values[found]).item()
        assert difference < ROUNDING, f"row {row}: {found} for {wanted}, {difference} apart"
    return tokens.tolist()


OPTIONS = [
    {},
    {"temperature": 0.3},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 1_000_000},
    {"top_p": 0.9},
    {"top_p": 1e-6},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.01, "top_k": 40, "top_p": 0.8, "temperature": 1.3},
    {"repetition_penalty": 1.7, "presence_penalty": 0.5, "frequency_penalty": -0.8},
    {"repetition_penalty": 0.6, "presence_penalty": -2.0, "frequency_penalty": 2.0, "temperature": 0.0},
    {"repetition_penalty": 1.2, "top_p": 0.7, "temperature": 0.6},
]
FILTERS = [OPTIONS[i] for i in (4, 6, 9, 11)]
KINDS = {
    "temperature": [0.0, 1.0, 0.7, 0.0, 1.5, 1.0],
    "top_k": [5, 0, 3, 0, 50, 0],
    "top_p": [1.0, 1.0, 0.9, 1.0, 1.0, 0.8],
    "repetition_penalty": [1.0, 1.0, 1.0, 1.3, 1.3, 1.0],
}


@runs_kernels
@pytest.mark.parametrize(("vocab_size", "spread"), [(1, 1.0), (5, 0.5), (100, 8.0)])
@pytest.mark.parametrize("options", [*OPTIONS, KINDS], ids=str)
def test_samples_what_the_reference_samples(options, vocab_size, spread):
    check(logits_for(6, vocab_size, spread), sampling_batch(6, vocab_size, **options))


@runs_kernels
@pytest.mark.parametrize("vocab_size", [2050, 6001])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4], OPTIONS[6], OPTIONS[14], KINDS], ids=str)
def test_samples_from_several_chunks(options, vocab_size):
    check(logits_for(6, vocab_size), sampling_batch(6, vocab_size, **options))


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "top_k": 30}, {"temperature": 0.0}, KINDS], ids=str)
def test_logits_of_any_precision(options, dtype):
    wide = logits_for(6, 3000, dtype=dtype)
    check(wide[:, 3:2903], sampling_batch(6, 2900, **options))


@runs_kernels
@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 3000}, {"top_p": 0.9}, {"top_k": 3000, "top_p": 0.5}, {"min_p": 0.9}, {"min_p": 1e-9}],
    ids=str,
)
def test_filters_that_keep_much_of_a_large_vocabulary(options, spread):
    check(logits_for(1, 9_000, spread), sampling_batch(1, 9_000, **options))


@runs_kernels
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_equal_logits_stay_together(options):
    check((logits_for(3, 1200) * 2).round() / 2, sampling_batch(3, 1200, **options))


@runs_kernels
@pytest.mark.parametrize("options", [{"top_k": 7}, {"top_k": 7, "top_p": 0.8}, {"top_p": 0.3}, {"min_p": 1.0}], ids=str)
def test_logits_that_the_temperature_makes_equal_stay_together(options):
    logits = (1.9 + torch.arange(40) * 2.0**-23).repeat(4, 1)
    assert len((logits[0] / 2.5).unique()) < 40
    check(logits, sampling_batch(4, 40, temperature=2.5, **options))


@runs_kernels
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_rows_of_more_groups_than_are_looked_at_together(options, monkeypatch):
    from pagewire_kernels.sample import triton as kernel

    monkeypatch.setattr(kernel, "LISTED", 2)
    for spread in (0.5, 3.0):
        check(logits_for(1, 1500, spread), sampling_batch(1, 1500, **options))


@runs_kernels
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_rows_of_more_candidates_than_are_compared(options, monkeypatch):
    from pagewire_kernels.sample import triton as kernel

    monkeypatch.setattr(kernel, "CANDIDATES", 16)
    for spread in (0.5, 3.0):
        check(logits_for(2, 1500, spread), sampling_batch(2, 1500, **options))


@runs_kernels
def test_the_largest_logits_side_by_side():
    """As frequent tokens have in many vocabularies: few groups hold all that top_k keeps."""
    logits = logits_for(2, 20_000, 0.2) - 2.0 * torch.arange(1, 20_001).log()
    for options in ({"top_k": 40}, {"top_k": 40, "top_p": 0.95}, {"top_p": 0.95}):
        check(logits, sampling_batch(2, 20_000, **options))


@runs_kernels
def test_penalties_of_sequences_longer_than_are_counted_at_once(monkeypatch):
    from pagewire_kernels.sample import triton as kernel

    monkeypatch.setattr(kernel, "TOKENS_AT_ONCE", 256)
    options = {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.25, "temperature": 0.0}
    check(logits_for(4, 60), sampling_batch(4, 60, max_len=1000, **options))


@runs_kernels
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"temperature": 0.0}], ids=str)
def test_stop_tokens_are_not_sampled_while_masked(options):
    logits = logits_for(9, 3000)
    tops = logits.argsort(dim=-1, descending=True)[:, :3].int()
    tops[4, 1], tops[5, 1] = 3000, -1
    masks_stop = [row % 3 > 0 for row in range(9)]
    batch = sampling_batch(9, 3000, **options, stop_token_ids=tops, masks_stop=masks_stop)
    tokens = check(logits, batch)
    assert not any(tokens[row] in tops[row].tolist() for row in range(9) if row % 3 > 0)


@runs_kernels
def test_a_row_whose_tokens_are_all_masked_yields_no_token():
    from pagewire_kernels.sample import triton as kernel

    logits = torch.full((3, 100), float("-inf"), device=DEVICE)
    batch = sampling_batch(3, 100, temperature=[0.0, 1.0, 1.0], top_k=[0, 0, 5])
    assert kernel.sample(logits, on_device(batch)).tolist() == [-1, -1, -1]


@runs_kernels
@pytest.mark.parametrize("poison", [float("nan"), -float("nan"), float("inf")])
def test_a_row_without_a_distribution_yields_no_token(poison):
    from pagewire_kernels.sample import triton as kernel

    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(3))
    logits[1, 57] = logits[2] = logits[4, 99] = poison
    batch = sampling_batch(6, 100, temperature=[0.0, 1.0, 0.0, 1.0, 1.0, 1.0], top_k=[0, 0, 0, 5, 5, 0])
    sampled = kernel.sample(logits.to(DEVICE), on_device(batch)).tolist()
    assert [token < 0 for token in sampled] == [False, True, True, False, True, False]
    assert sampled == reference.sample(logits, batch).tolist()


@runs_kernels
@pytest.mark.parametrize("options", [KINDS, {"top_p": 0.95, "presence_penalty": 0.3}], ids=str)
def test_a_row_samples_the_same_in_any_batch(options):
    from pagewire_kernels.sample import triton as kernel

    logits, batch = logits_for(6, 5000).to(DEVICE), on_device(sampling_batch(6, 5000, **options))
    together = kernel.sample(logits, batch).tolist()
    for row in range(6):
        alone = replace(batch, slots=batch.slots[row : row + 1])
        assert kernel.sample(logits[row : row + 1], alone).tolist() == together[row : row + 1]


@runs_kernels
@pytest.mark.parametrize("vocab_size", [5, 100, 2048, 4100])
@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}, {}, KINDS], ids=str)
def test_biases(options, vocab_size):
    """In every chunk, at its borders, in rows with penalties and without; one row has none, one as many as can be."""
    generator = torch.Generator().manual_seed(5)

    def biases(num):
        token_ids = torch.randperm(vocab_size, generator=generator)[:num].tolist()
        return dict(zip(token_ids, (torch.randn(num, generator=generator) * 5).tolist(), strict=False))

    rows = [biases(3), {}, biases(MAX_BIASES), {0: 9.0, vocab_size - 1: 9.0}, biases(40), biases(257)]
    batch = sampling_batch(6, vocab_size, logit_bias=rows, **options)
    logits = logits_for(6, vocab_size)
    tokens = check(logits, batch)
    without = check(logits, replace(batch, stages=ALL_STAGES & ~RARE_STAGES))
    assert tokens[1] == without[1]
    assert vocab_size == 5 or tokens != without


@runs_kernels
@pytest.mark.parametrize("vocab_size", [5, 33, 100, 2048, 4100])
@pytest.mark.parametrize("options", [*FILTERS, {"temperature": 0.0}, {}, OPTIONS[12], KINDS], ids=str)
def test_masks_allowed_tokens_and_bad_words(options, vocab_size):
    """In every chunk, at its borders, with biases and penalties; one row has none, one may sample nothing."""
    generator = torch.Generator().manual_seed(6)

    def tokens(share):
        return torch.randperm(vocab_size, generator=generator)[: max(1, int(vocab_size * share))].tolist()

    words = [[token] for token in tokens(1.0)[:128]]
    batch = sampling_batch(
        6,
        vocab_size,
        masks=[tokens(0.9), None, tokens(0.5), [vocab_size - 1], None, [0, 2, vocab_size - 1]],
        allowed=[(), (), tokens(0.8), tokens(1.0), tokens(0.01), tokens(1.0)],
        bad_words=[words[:3], (), (), [[vocab_size - 1]], words, [[0, 1, 2], [0], [1, 2, 3]]],
        logit_bias=[{0: 2.0}, {}, {vocab_size - 1: 2.0}, {}, {}, {0: 9.0, 1: 9.0}],
        **{"num_tokens": 20, **options},
    )
    logits = logits_for(6, vocab_size)
    found = check(logits, batch)
    assert found[3] == -1
    free = replace(batch, stages=ALL_STAGES & ~RARE_STAGES)
    assert found[1] == check(logits, free)[1]


@runs_kernels
def test_bad_words_are_compared_with_the_output_alone():
    words = [
        [[9]],
        [[4, 5, 9]],
        [[3, 4, 5, 9]],
        [[2, 3, 4, 5, 9]],
        [[0, 1, 2, 3, 4, 5, 9]],
        [[4, 7], [5, 9], [5, 4, 8]],
    ]
    batch = sampling_batch(6, 12, bad_words=words, max_len=8, num_tokens=5, num_prompt_tokens=2, temperature=0.0)
    batch.sequences.token_ids[:] = torch.tensor([1, 2, 3, 4, 5, 9, 9, 9])
    logits = torch.zeros(6, 12)
    logits[:, 9], logits[:, 0] = 2.0, 1.0
    assert check(logits, batch) == [0, 0, 0, 9, 9, 0]


@runs_kernels
def test_a_forced_token_is_sampled_and_a_banned_one_is_not():
    logits = logits_for(4, 3000)
    best = logits.argmax(-1).tolist()
    tokens = check(logits, sampling_batch(4, 3000, temperature=0.0, logit_bias=[{token: -100.0} for token in best]))
    assert all(token != banned for token, banned in zip(tokens, best, strict=True))
    assert check(logits, sampling_batch(4, 3000, top_p=0.9, logit_bias={2999: 100.0})) == [2999] * 4


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [1, 5, 100, 4100])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_logprobs(vocab_size, num_top, dtype):
    from pagewire_kernels.sample import triton_logprobs as kernel

    logits = logits_for(3, vocab_size).round(decimals=1).to(dtype)
    logits[0, vocab_size // 2 :] = float("-inf")
    logits[0, 0] = 1.0
    sampled = torch.tensor([0, vocab_size - 1, vocab_size // 2])
    num_top = min(num_top, vocab_size)
    *actual, normalisers = kernel.gather_logprobs(logits.to(DEVICE), sampled.to(DEVICE), num_top)
    torch.testing.assert_close(normalisers.cpu(), logits.float().logsumexp(-1), atol=1e-4, rtol=1e-5)
    expected = reference.gather_logprobs(logits.float(), sampled, num_top)
    for found, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(found.cpu(), wanted, atol=1e-4, rtol=1e-5)


@runs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab_size", "num_top"), [(40, 40), (100, 33), (4100, 1000), (4100, 4100)])
def test_more_logprobs_than_one_kernel_finds(vocab_size, num_top, dtype, with_triton):
    logits = logits_for(3, vocab_size).round(decimals=1).to(dtype)
    sampled = torch.tensor([0, vocab_size - 1, vocab_size // 2])
    found = with_triton.gather_logprobs(logits.to(DEVICE), sampled.to(DEVICE), num_top)
    wanted = reference.gather_logprobs(logits.float(), sampled, num_top)
    assert torch.equal(found[2].cpu(), wanted[2])
    torch.testing.assert_close(found[3].cpu(), wanted[3], atol=1e-4, rtol=1e-5)
    few = with_triton.gather_logprobs(logits.to(DEVICE), sampled.to(DEVICE), 32)
    for some, all_ in zip(few, found, strict=True):
        assert torch.equal(some, all_ if some.ndim == 1 else all_[:, :32]), "the same whatever is asked for"


@runs_kernels
@pytest.mark.parametrize("vocab_size", [5, 100, 2049, 4100])
@pytest.mark.parametrize("num_top", [1, 20, 66])
def test_the_most_probable_tokens_that_rows_may_sample(vocab_size, num_top, with_triton):
    num_top = min(num_top, vocab_size)
    generator = torch.Generator().manual_seed(7)
    sets = [torch.randperm(vocab_size, generator=generator)[: vocab_size // 2 + 1].tolist() for _ in range(12)]
    stops = torch.tensor([tokens[:3] for tokens in sets[6:]], dtype=torch.int32)
    batch = sampling_batch(
        6, vocab_size, num_tokens=20, masks=[sets[0], None, [0], [], sets[1], None], temperature=0.0,
        allowed=[(), sets[2], (), (), sets[3], ()],
        bad_words=[[[token] for token in sets[4][:100]], (), (), (), (), ()],
        stop_token_ids=stops, masks_stop=[True, False, True, False, True, True], logit_bias={0: 90.0},
    )  # fmt: skip
    logits = logits_for(6, vocab_size)
    logits[5, vocab_size // 2] = float("nan")
    token_ids, logprobs = with_triton.most_probable(logits.to(DEVICE), on_device(batch), num_top)
    wanted_ids, wanted = reference.most_probable(logits, batch, num_top)
    torch.testing.assert_close(logprobs[:5].cpu(), wanted[:5], atol=1e-4, rtol=1e-5)
    assert torch.equal(token_ids[:5].cpu(), wanted_ids[:5])
    assert logprobs[5].isnan().all()


@pytest.mark.gpu
@runs_kernels
@pytest.mark.parametrize("vocab_size", [32_000, 50_257, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("options", [*OPTIONS, {"top_k": 3000, "top_p": 0.9}, {"top_p": 0.5}, {"top_p": 1e-3}], ids=str)
def test_vocabularies_of_real_models(options, vocab_size):
    frequent = -2.0 * torch.arange(1, vocab_size + 1).log()
    for logits in (
        *(logits_for(8, vocab_size, spread) for spread in (0.04, 1.3, 4.0)),
        logits_for(8, vocab_size, 0.5) + frequent,
        logits_for(8, vocab_size, 0.5) + frequent[torch.randperm(vocab_size)],
    ):
        check(logits.bfloat16(), sampling_batch(8, vocab_size, **options))


@pytest.mark.gpu
@runs_kernels
def test_a_captured_graph_serves_rows_of_all_kinds():
    from pagewire_kernels.sample import sample

    logits = logits_for(6, 5000)
    batch = on_device(sampling_batch(6, 5000, temperature=0.0, stages=ALL_STAGES & ~RARE_STAGES))
    given = logits.to(DEVICE)
    sample(given, batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample(given, batch)
    for options in (KINDS, {"top_p": 0.5}, {}):
        now = sampling_batch(6, 5000, random_seed=3, **options)
        batch.slots.copy_(now.slots)
        for name in ("ints", "token_ids", "stop_token_ids"):
            getattr(batch.sequences, name).copy_(getattr(now.sequences, name))
        for name in ("floats", "ints"):
            getattr(batch.columns, name).copy_(getattr(now.columns, name))
        graph.replay()
        assert tokens.tolist() == check(logits, now)
