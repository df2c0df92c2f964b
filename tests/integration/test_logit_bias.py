"""Biases on logits: equal to transformers' logits with the biases added by hand, in the engine and over gRPC."""

import math
from functools import partial
from unittest.mock import patch

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from pagewire import Client, InvalidRequest, SamplingParams
from pagewire.v1 import inference_pb2
from pagewire_shard.execution.gpu_runner import GraphRunner
from pagewire_shard.execution.graph_capture import CpuCapturer
from pagewire_shard.execution.graph_sizes import GraphSizes
from pagewire_shard.execution.host_transfer import CpuDownlink, CpuUplink
from random_models import VOCAB_SIZE
from reference_model import Comparison, ReferenceModel
from scheduling_world import output
from streams import TEXT, collect
from subject import Subject

NUM_TOKENS = 12
BIASES = {token_id: (token_id % 11 - 5) / 2 for token_id in range(0, VOCAB_SIZE, 3)}
SIZES = GraphSizes((2, 8, 16), ((16, 8), (64, 16), (512, 16)))
WITH_GRAPHS = partial(GraphRunner, uplink=CpuUplink(), downlink=CpuDownlink(), capturer=CpuCapturer(), sizes=SIZES)
OPTIONS = [
    {"temperature": 0.0, "logit_bias": BIASES},
    {"temperature": 0.7, "top_p": 0.9, "n": 3, "seed": 4, "logit_bias": BIASES},
    {"temperature": 1.0, "seed": 9, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": BIASES},
    {"temperature": 0.9, "top_k": 20, "seed": 2},
]


@pytest.mark.parametrize("runner", [{}, {"make_runner": WITH_GRAPHS}], ids=["plain", "graphs"])
@pytest.mark.parametrize("window", [1, 2])
def test_biased_and_unbiased_requests_side_by_side_yield_what_the_reference_yields(
    llama: Subject, window: int, runner: dict
) -> None:
    """Forked, and preempted in a pool that is too small for all."""
    comparison = Comparison()
    world = llama.world(window=window, num_blocks=16, block_size=8, max_num_seqs=8, **runner)
    groups = [
        world.submit(expected.prompt, max_tokens=NUM_TOKENS, **options)
        for expected in llama.greedy[2:5]
        for options in OPTIONS
    ]
    world.run()
    assert world.scheduler.num_preemptions > 0
    for group in groups:
        for index in range(group.request.params.n):
            expected = llama.reference.answer(group.request, index)
            comparison.check(expected, output(group, index), f"{group.request.params} {index}")
    assert comparison.num_near_ties <= 1


def test_a_cached_prefix_is_shared_whatever_the_bias(llama: Subject) -> None:
    world = llama.world()
    prompt = llama.greedy[-1].prompt
    plain = world.submit(prompt, temperature=0.0, max_tokens=NUM_TOKENS)
    world.run()
    banned = output(plain)[0]
    biased = world.submit(prompt, temperature=0.0, max_tokens=NUM_TOKENS, logit_bias={banned: -100.0})
    world.run()
    assert biased.num_cached_tokens
    assert banned not in output(biased)
    Comparison().check(llama.reference.answer(biased.request), output(biased), "after a cached prefix")


def test_clients_ban_and_force_tokens(
    client: Client, reference: ReferenceModel, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    plain = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    best = client.complete(TEXT, plain).outputs[0].token_ids
    banned = plain.clone()
    banned.logit_bias = dict.fromkeys(best, -100.0)
    _, tokens, _ = collect(list(client.generate(TEXT, banned)))
    assert not set(tokens) & set(best)
    assert client.complete(TEXT, banned).outputs[0].token_ids == tokens
    forced = SamplingParams(seed=1, n=2, max_tokens=5, ignore_eos=True, logit_bias={41: 100.0}, logprobs=2)
    for sequence in client.complete(TEXT, forced).outputs:
        assert sequence.token_ids == [41] * 5
        # Log-probabilities are the model's own, without the bias.
        logits = reference.greedy_after(tokenizer.encode(TEXT), sequence.token_ids).logits
        expected = logits.log_softmax(-1)
        assert sequence.logprobs is not None
        for entry, row in zip(sequence.logprobs, expected, strict=True):
            assert entry[41].logprob == pytest.approx(float(row[41]), abs=1e-4)
            assert {token for token, logprob in entry.items() if logprob.rank == 1} == {int(row.argmax())}


def test_stop_tokens_stay_masked_and_an_end_may_be_forced(client: Client) -> None:
    params = SamplingParams(max_tokens=9, min_tokens=4, stop_token_ids=[41], logit_bias={41: 100.0}, seed=3)
    sequence = client.complete(TEXT, params).outputs[0]
    assert len(sequence.token_ids) == 5
    assert sequence.token_ids.index(41) == 4
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", 41)


def test_what_only_the_server_can_know_is_refused_by_name(client: Client, reference: ReferenceModel) -> None:
    vocab_size = reference.model.config.vocab_size
    for logit_bias, description in (
        ({1: 1.0, vocab_size: 1.0}, f"holds token {vocab_size}; accepted: token ids below the vocabulary size"),
        ({2**32 - 1: 1.0}, "token ids below the vocabulary size"),
        (dict.fromkeys(range(1025), 0.5), "holds 1025 entries; accepted: up to 1024"),
    ):
        with pytest.raises(InvalidRequest, match=description) as caught:
            client.complete(TEXT, SamplingParams(logit_bias=logit_bias))
        assert [violation.field for violation in caught.value.violations] == ["sampling_params.logit_bias"]


def test_any_bias_is_served_or_refused_by_name(client: Client, reference: ReferenceModel) -> None:
    """Past the client's own checks."""
    vocab_size = reference.model.config.vocab_size

    @settings(max_examples=60, deadline=None)
    @given(
        st.dictionaries(
            st.integers(0, vocab_size + 9) | st.integers(0, 2**32 - 1),
            st.floats(-120, 120, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, -100.0, 100.0]),
            max_size=4,
        )
    )
    def check(logit_bias: dict[int, float]) -> None:
        is_good = all(token_id < vocab_size and -100 <= bias <= 100 for token_id, bias in logit_bias.items())
        message = inference_pb2.SamplingParams(max_tokens=2, ignore_eos=True, logit_bias=logit_bias)
        refused = []
        with patch.object(SamplingParams, "to_proto", lambda _: message):
            try:
                assert len(client.complete(TEXT, SamplingParams()).outputs[0].token_ids) == 2
            except InvalidRequest as error:
                refused = [violation.field for violation in error.violations]
        assert refused == ([] if is_good else ["sampling_params.logit_bias"])

    check()
