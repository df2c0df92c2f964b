"""Sampling parameters: what is accepted, what is refused, and how each violation is named."""

import dataclasses
import math

import pagewire
import pytest
from pagewire.v1 import inference_pb2
from pagewire_common.sampling_params import with_defaults
from pagewire_router.admission.validation import (
    Limits,
    Violations,
    bound_by_context,
    check_prompt_length,
    check_prompt_logprobs,
    num_kept_tokens,
    resolve_sampling_params,
)
from pagewire_router.errors import InvalidRequest, RequestTooLong

LIMITS = Limits(vocab_size=100, max_model_len=64, max_n=8, max_logprobs=20, eos_token_ids=(2, 3))


def violations_of(**fields):
    violations = Violations()
    resolve_sampling_params(inference_pb2.SamplingParams(**fields), LIMITS, violations)
    return {violation.field: violation.description for violation in violations.found}


def checked(**fields):
    violations = Violations()
    params = resolve_sampling_params(inference_pb2.SamplingParams(**fields), LIMITS, violations)
    violations.raise_if_any()
    return params


def test_absent_parameters_have_vllms_defaults():
    params = checked(seed=5)
    theirs = pagewire.SamplingParams(seed=5)
    for field in dataclasses.fields(theirs):
        if isinstance(getattr(theirs, field.name), int | float):
            assert getattr(params, field.name) == getattr(theirs, field.name), field.name
            assert params.HasField(field.name)


def test_absent_seeds_differ():
    assert len({checked().seed for _ in range(10)}) == 10


ACCEPTED = [
    {"n": 8},
    {"n": 1, "temperature": 0},
    {"temperature": 2},
    {"top_p": 1},
    {"top_p": 1e-6},
    {"top_k": 10**9},
    {"min_p": 1},
    {"min_p": 0},
    {"presence_penalty": -2},
    {"frequency_penalty": 2},
    {"repetition_penalty": 1e-3},
    {"max_tokens": 2**31 - 1},
    {"min_tokens": 16},
    {"logprobs": 0},
    {"logprobs": 20},
    {"seed": -1},
    {"truncate_prompt_tokens": -1},
    {"truncate_prompt_tokens": 64},
    {"stop": ["a", "b" * 1024]},
    {"stop_token_ids": [99, 0]},
    {"stop_token_ids": range(62)},
    {"logit_bias": {0: -100, 99: 100, 5: 0}},
    {"stop_token_ids": range(64), "ignore_eos": True},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_accepted(fields):
    assert violations_of(**fields) == {}


REFUSED = [
    ({"n": 0}, "n", "1 to 8"),
    ({"n": 9}, "n", "1 to 8"),
    ({"n": 2, "temperature": 0}, "n", "1 when temperature is 0"),
    ({"temperature": -0.1}, "temperature", "0 to 2"),
    ({"temperature": 2.1}, "temperature", "0 to 2"),
    ({"temperature": math.nan}, "temperature", "is nan"),
    ({"top_p": 0}, "top_p", "above 0, at most 1"),
    ({"top_p": 1.01}, "top_p", "above 0, at most 1"),
    ({"top_p": math.nan}, "top_p", "is nan"),
    ({"top_k": -2}, "top_k", "-1 or more"),
    ({"min_p": -0.1}, "min_p", "0 to 1"),
    ({"min_p": 1.1}, "min_p", "0 to 1"),
    ({"presence_penalty": 2.1}, "presence_penalty", "-2 to 2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "-2 to 2"),
    ({"frequency_penalty": math.nan}, "frequency_penalty", "is nan"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"repetition_penalty": math.inf}, "repetition_penalty", "is inf"),
    ({"max_tokens": 0}, "max_tokens", "1 or more"),
    ({"min_tokens": -1}, "min_tokens", "0 to 16"),
    ({"min_tokens": 17}, "min_tokens", "0 to 16"),
    ({"logprobs": -1}, "logprobs", "0 to 20"),
    ({"logprobs": 21}, "logprobs", "0 to 20"),
    ({"stop": ["a", ""]}, "stop[1]", "1 to 1024"),
    ({"stop": ["a" * 1025]}, "stop[0]", "1 to 1024"),
    ({"stop": ["a"] * 65}, "stop", "up to 64"),
    ({"stop": ["a"], "detokenize": False}, "stop", "stop strings need text"),
    ({"stop_token_ids": [5, 100]}, "stop_token_ids[1]", "below the vocabulary size, 100"),
    ({"stop_token_ids": range(4, 68)}, "stop_token_ids", "up to 62"),
    ({"prompt_logprobs": -1}, "prompt_logprobs", "0 to 20"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "0 to 20"),
    ({"logit_bias": {100: 1.0}}, "logit_bias", "token 100; accepted: token ids below the vocabulary size, 100"),
    ({"logit_bias": {1: 0.5, 7: -100.5}}, "logit_bias", "is -100.5 for token 7; accepted: -100 to 100"),
    ({"logit_bias": {1: 101}}, "logit_bias", "is 101 for token 1"),
    ({"logit_bias": {1: math.nan}}, "logit_bias", "is nan for token 1"),
    ({"logit_bias": {1: -math.inf}}, "logit_bias", "is -inf for token 1"),
    ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "logit_bias", "holds 1025 entries; accepted: up to 1024"),
    ({"allowed_token_ids": [1, 100]}, "allowed_token_ids", "holds token 100"),
    ({"bad_words": ["x"]}, "bad_words", "not served by the shards"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "is 0; accepted: -1, or 1 to 64"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "is -2; accepted: -1, or 1 to 64"),
    ({"truncate_prompt_tokens": 65}, "truncate_prompt_tokens", "is 65; accepted: -1, or 1 to 64"),
]


@pytest.mark.parametrize(("fields", "field", "description"), REFUSED, ids=str)
def test_refused(fields, field, description):
    violations = violations_of(**fields)
    assert list(violations) == [f"sampling_params.{field}"]
    assert description in violations[f"sampling_params.{field}"]


def test_all_violations_are_reported_at_once():
    assert set(violations_of(temperature=3, top_p=0, n=-1, stop=[""])) == {
        "sampling_params.temperature",
        "sampling_params.top_p",
        "sampling_params.n",
        "sampling_params.stop[0]",
    }


def test_top_k_of_minus_one_keeps_all():
    assert checked(top_k=-1).top_k == 0


def test_prompts_must_leave_room_for_a_token():
    check_prompt_length(63, "text", LIMITS)
    with pytest.raises(RequestTooLong, match="64 tokens long; accepted: up to 63"):
        check_prompt_length(64, "text", LIMITS)
    with pytest.raises(InvalidRequest, match="is empty"):
        check_prompt_length(0, "text", LIMITS)


def test_output_is_bounded_by_the_context():
    bounded = with_defaults(inference_pb2.SamplingParams(max_tokens=100, min_tokens=50))
    bound_by_context(bounded, 60, LIMITS)
    assert (bounded.max_tokens, bounded.min_tokens) == (4, 4)


@pytest.mark.parametrize(
    ("fields", "num_kept"),
    [
        ({}, None),
        ({"truncate_prompt_tokens": 5}, 5),
        ({"truncate_prompt_tokens": -1}, 64 - 16),
        ({"truncate_prompt_tokens": -1, "max_tokens": 60}, 4),
        # "Until the context ends": there has to be room for a token.
        ({"truncate_prompt_tokens": -1, "max_tokens": 2**31 - 1}, 63),
    ],
    ids=str,
)
def test_a_prompt_is_truncated_to_what_was_asked_for_or_to_what_leaves_room(fields, num_kept):
    assert num_kept_tokens(checked(**fields), LIMITS) == num_kept


WIDE = dataclasses.replace(LIMITS, max_logprobs=LIMITS.vocab_size, max_bad_word_tokens=1024)


def test_the_whole_vocabulary_is_returned_where_the_limit_is_that():
    violations = Violations()
    params = resolve_sampling_params(inference_pb2.SamplingParams(logprobs=-1), WIDE, violations)
    assert not violations.found
    assert params.logprobs == 100
    resolve_sampling_params(inference_pb2.SamplingParams(logprobs=101), WIDE, violations)
    assert [violation.description for violation in violations.found] == ["is 101; accepted: -1 to 100"]


def test_sequences_together_ask_for_no_more_log_probabilities_than_a_result_has_room_for():
    limits = dataclasses.replace(LIMITS, max_logprobs=128_256, vocab_size=128_256)
    violations = Violations()
    resolve_sampling_params(inference_pb2.SamplingParams(logprobs=-1, n=8), limits, violations)
    assert not violations.found
    resolve_sampling_params(
        inference_pb2.SamplingParams(logprobs=128_256, n=9), dataclasses.replace(limits, max_n=9), violations
    )
    assert ("sampling_params.logprobs", "is 128256; accepted for n of 9: up to 116508") in [
        (violation.field, violation.description) for violation in violations.found
    ]


@pytest.mark.parametrize(
    ("bad_words", "field", "description"),
    [
        ([""], "bad_words[0]", "has 0 characters; accepted: 1 to 1024"),
        (["a", "b" * 1025], "bad_words[1]", "has 1025 characters; accepted: 1 to 1024"),
        (["a"] * 129, "bad_words", "holds 129 strings; accepted: up to 128"),
        (["b" * 1024] * 9, "bad_words", "have 9216 characters in all; accepted: up to 8192"),
    ],
    ids=["empty", "long", "many", "long together"],
)
def test_bad_words_are_bounded_before_they_are_tokenized(bad_words, field, description):
    violations = Violations()
    resolve_sampling_params(inference_pb2.SamplingParams(bad_words=bad_words), WIDE, violations)
    assert [(v.field, v.description) for v in violations.found] == [(f"sampling_params.{field}", description)]


def test_the_log_probabilities_of_a_long_prompt_are_bounded_in_number():
    some, none = inference_pb2.SamplingParams(prompt_logprobs=999), inference_pb2.SamplingParams()
    check_prompt_logprobs(some, 4194)
    check_prompt_logprobs(none, 1 << 30)
    with pytest.raises(InvalidRequest) as refused:
        check_prompt_logprobs(some, 4195)
    [violation] = refused.value.violations
    assert violation.field == "sampling_params.prompt_logprobs"
    assert violation.description == "is 999; accepted for 4195 prompt tokens: up to 998"
