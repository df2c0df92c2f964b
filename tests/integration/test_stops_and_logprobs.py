"""Ends of sequences and log-probabilities of their tokens, compared with a transformers model."""

import pytest
import torch
from pagewire.v1 import inference_pb2, shard_pb2
from random_models import VOCAB_SIZE
from reference_model import Comparison, Expected
from scheduling_world import output
from subject import NUM_TOKENS, Subject


@pytest.mark.parametrize("window", [1, 2, 4])
def test_stop_tokens_end_a_sequence_where_the_reference_ends(llama: Subject, window: int) -> None:
    world = llama.world(window=window)
    cases = []
    for greedy in llama.greedy:
        early, late = greedy.tokens[4], greedy.tokens[11]
        for options in (
            {"eos_token_ids": (early,)},
            {"stop_token_ids": (late, VOCAB_SIZE - 1)},
            {"eos_token_ids": (late,), "stop_token_ids": (early,), "min_tokens": 8},
            {"eos_token_ids": (early,), "min_tokens": NUM_TOKENS},
        ):
            group = world.submit(greedy.prompt, temperature=0.0, max_tokens=NUM_TOKENS, **options)
            cases.append((llama.reference.answer(group.request), group))
    world.run()
    reasons = set()
    for expected, group in cases:
        Comparison().check(expected, output(group), f"stops, window of {window}")
        stops = {*expected.eos_token_ids, *expected.params.stop_token_ids}
        reason = group.sequences[0].finish_reason
        is_stop = expected.tokens[-1] in stops and len(expected.tokens) > expected.params.min_tokens
        assert reason == (inference_pb2.FINISH_REASON_STOP if is_stop else inference_pb2.FINISH_REASON_LENGTH)
        reasons.add(reason)
    assert len(reasons) == 2


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_context_length_ends_a_sequence(llama: Subject, window: int) -> None:
    max_len = 32
    world = llama.world(window=window, max_model_len=max_len, num_blocks=8)
    groups = [world.submit(e.prompt, temperature=0.0, max_tokens=100) for e in llama.greedy if len(e.prompt) < max_len]
    groups.append(world.submit([5] * (max_len - 1), temperature=0.0, max_tokens=1))
    world.run()
    for group in groups:
        Comparison().check(llama.reference.answer(group.request, max_len=max_len), output(group), "full context")
        assert len(group.sequences[0].token_ids) == max_len
        assert group.sequences[0].finish_reason == inference_pb2.FINISH_REASON_LENGTH


def check_logprobs(expected: Expected, entries: list[shard_pb2.SequenceLogprobs], num_top: int) -> None:
    logprobs = expected.logits.log_softmax(-1)
    assert len(entries) == len(expected.tokens)
    for entry, token, row in zip(entries, expected.tokens, logprobs, strict=True):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
        ranked = row.sort(descending=True).values
        assert ranked[entry.rank - 1] == pytest.approx(float(row[token]), abs=1e-4)
        assert len(set(entry.top_token_ids)) == num_top
        torch.testing.assert_close(torch.tensor(entry.top_logprobs), ranked[:num_top], atol=1e-4, rtol=0)
        torch.testing.assert_close(row[list(entry.top_token_ids)], ranked[:num_top], atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_blocks", [64, 12])
def test_logprobs_are_the_reference_models_own(llama: Subject, num_blocks: int) -> None:
    world = llama.world(block_size=8, num_blocks=num_blocks, max_num_batched_tokens=16)
    nums = (0, 1, 5, 20, 3, 2)
    groups = [
        world.submit(e.prompt, temperature=0.0, max_tokens=NUM_TOKENS, logprobs=num)
        for e, num in zip(llama.greedy, nums, strict=True)
    ]
    without = world.submit([1, 2, 3], temperature=0.0, max_tokens=4)
    world.run()
    for expected, group, num in zip(llama.greedy, groups, nums, strict=True):
        assert output(group) == expected.tokens
        check_logprobs(expected, world.logprobs[group.sequences[0]], num)
    assert without.sequences[0] not in world.logprobs
    assert (world.scheduler.num_preemptions > 0) == (num_blocks == 12)


def test_logprobs_of_sampled_tokens_ignore_temperature_filters_and_penalties(llama: Subject) -> None:
    world = llama.world()
    options = {"temperature": 1.5, "top_k": 30, "frequency_penalty": 1.0, "seed": 3, "n": 3}
    group = world.submit([5, 6, 7], max_tokens=NUM_TOKENS, logprobs=4, **options)
    world.run()
    for sequence in group.sequences:
        expected = llama.reference.answer(group.request, sequence.index)
        assert output(group, sequence.index) == expected.tokens
        check_logprobs(expected, world.logprobs[sequence], 4)
