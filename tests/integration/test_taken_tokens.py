"""Allowed tokens and bad words, in the engine beside what the reference yields, and as clients see them."""

from functools import partial
from itertools import pairwise

import pytest
import transformers
from pagewire import Client, InvalidRequest, PagewireError, SamplingParams
from pagewire_kernels.sample.columns import MAX_BAD_WORD_TOKENS
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from random_models import VOCAB_SIZE
from reference_model import Comparison
from scheduling_world import output
from streams import TEXT
from subject import Subject

NUM_TOKENS = 12
SIZES = GraphSizes((2, 8, 16), ((16, 8), (64, 16), (512, 16)))
WITH_GRAPHS = partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=SIZES)
THIRD = list(range(0, VOCAB_SIZE, 3))
FEW = THIRD[:4]
PAIRS = tuple((first, second) for first in FEW for second in FEW if (first + second) % 2)
"""Bad words that a sequence of few tokens meets at every turn."""
OPTIONS = [
    {"temperature": 0.0, "allowed_token_ids": THIRD},
    {"temperature": 0.9, "n": 3, "seed": 4, "top_p": 0.9, "allowed_token_ids": FEW, "bad_words": PAIRS},
    {"temperature": 0.0, "allowed_token_ids": FEW, "bad_words": ((FEW[0],), *PAIRS), "repetition_penalty": 1.3},
    {"temperature": 1.0, "seed": 9, "allowed_token_ids": FEW, "logit_bias": {1: 50.0, FEW[1]: 2.0}},
    {"temperature": 0.8, "top_k": 20, "seed": 2},
]


@pytest.mark.parametrize("runner", [{}, {"make_runner": WITH_GRAPHS}], ids=["plain", "graphs"])
@pytest.mark.parametrize("window", [1, 3])
def test_requests_side_by_side_yield_what_the_reference_yields(llama: Subject, window: int, runner: dict) -> None:
    """Forked, and preempted in a pool that is too small for all; with several steps in flight the last token of a bad
    word's others is known to the device alone."""
    comparison = Comparison()
    world = llama.world(window=window, num_blocks=16, block_size=8, max_num_seqs=8, **runner)
    groups = [
        world.submit(expected.prompt, max_tokens=NUM_TOKENS, **options)
        for expected in llama.greedy[2:4]
        for options in OPTIONS
    ]
    world.run()
    assert world.scheduler.num_preemptions > 0
    for group in groups:
        params, bad_words = group.request.params, group.request.bad_words
        for index in range(params.n):
            tokens = output(group, index)
            comparison.check(llama.reference.answer(group.request, index), tokens, f"{params} {index}")
            assert set(tokens) <= set(params.allowed_token_ids or range(VOCAB_SIZE))
            assert not {word[0] for word in bad_words if len(word) == 1} & set(tokens)
            assert not set(bad_words) & set(pairwise(tokens))
    assert comparison.num_near_ties <= 1


def test_a_sequence_that_may_sample_nothing_ends_with_an_error_and_the_others_go_on(llama: Subject) -> None:
    world = llama.world()
    prompt = llama.greedy[0].prompt
    dead = world.submit(prompt, temperature=0.0, max_tokens=8, allowed_token_ids=[5], bad_words=((5, 5, 5),))
    other = world.submit(prompt, temperature=0.0, max_tokens=8)
    for _ in range(20):
        world.step()
    assert output(dead) == [5, 5]
    world.scheduler.end(dead)
    world.run()
    assert output(other) == llama.greedy[0].tokens[:8]


def test_clients_choose_what_may_be_generated(client: Client, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    plain = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    best = client.complete(TEXT, plain).outputs[0]
    allowed = plain.clone()
    allowed.allowed_token_ids = sorted(set(best.token_ids))
    assert client.complete(TEXT, allowed).outputs[0].token_ids == best.token_ids
    allowed.allowed_token_ids = [41]
    assert client.complete(TEXT, allowed).outputs[0].token_ids == [41] * NUM_TOKENS
    banned = plain.clone()
    words = {token: tokenizer.decode([token]) for token in best.token_ids}
    words = {token: word for token, word in words.items() if word.strip() and tokenizer.encode(word) == [token]}
    assert words
    banned.bad_words = list(words.values())
    assert not words.keys() & set(client.complete(TEXT, banned).outputs[0].token_ids)


def test_bounds_are_refused_by_name(client: Client) -> None:
    for params, field, description in (
        (SamplingParams(allowed_token_ids=[1, 2**31]), "allowed_token_ids", "holds token 2147483648"),
        (SamplingParams(bad_words=["a b c d " * MAX_BAD_WORD_TOKENS]), "bad_words", "accepted: "),
        (SamplingParams(bad_words=["x"] * 129), "bad_words", "accepted: up to 128"),
    ):
        with pytest.raises(InvalidRequest, match=description) as caught:
            client.complete(TEXT, params)
        assert caught.value.violations[0].field.startswith(f"sampling_params.{field}")


def test_a_request_that_leaves_nothing_to_sample_is_told_so(client: Client) -> None:
    params = SamplingParams(allowed_token_ids=[41], stop_token_ids=[41], min_tokens=3, max_tokens=5)
    with pytest.raises(PagewireError, match="allowed_token_ids, bad_words and min_tokens together leave none"):
        client.complete(TEXT, params)
