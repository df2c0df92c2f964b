import dataclasses
import math

import pytest
from pagewire import InvalidRequest, SamplingParams
from pagewire.v1 import inference_pb2 as pb


def test_the_defaults_are_left_to_the_server():
    assert SamplingParams().to_proto() == pb.SamplingParams()


def test_every_field_of_the_wire_but_the_constraint_can_be_set():
    wire = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert wire - {field.name for field in dataclasses.fields(SamplingParams)} == {"structured_outputs"}


def test_every_field_reaches_the_wire():
    given = {
        "n": 2,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": -1,
        "min_p": 0.125,
        "seed": 3,
        "stop": ["a", "b"],
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
        "max_tokens": 7,
        "min_tokens": 2,
        "logprobs": 0,
        "prompt_logprobs": 1,
        "detokenize": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
        "logit_bias": {8: 1.5},
        "allowed_token_ids": [9],
        "bad_words": ["c"],
    }
    assert set(given) == {field.name for field in dataclasses.fields(SamplingParams)}
    message = SamplingParams(**given).to_proto()
    expected = pb.SamplingParams(**{name: value for name, value in given.items() if name != "detokenize"})
    assert message == expected


@pytest.mark.parametrize(("stop", "sent"), [(None, []), ("end", ["end"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_is_a_string_or_several(stop, sent):
    assert list(SamplingParams(stop=stop).to_proto().stop) == sent


def test_no_max_tokens_means_until_the_context_ends():
    assert SamplingParams(max_tokens=None).to_proto().max_tokens == 2**31 - 1


def test_seed_minus_one_means_none():
    assert not SamplingParams(seed=-1).to_proto().HasField("seed")
    assert SamplingParams(seed=0).to_proto().HasField("seed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("presence_penalty", -2),
        ("frequency_penalty", 2.0),
        ("repetition_penalty", 0.01),
        ("temperature", 0),
        ("temperature", 2),
        ("top_p", 1e-6),
        ("top_p", 1),
        ("top_k", -1),
        ("top_k", 0),
        ("min_p", 0.0),
        ("min_p", 1),
        ("max_tokens", 1),
        ("min_tokens", 16),
        ("logprobs", 0),
    ],
)
def test_the_ends_of_the_ranges_are_accepted(name, value):
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.0),
        ("n", True),
        ("presence_penalty", 2.01),
        ("frequency_penalty", -2.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", "1"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", 2**63),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("logprobs", -1),
        ("bad_words", [""]),
    ],
)
def test_what_is_out_of_range_is_named(name, value):
    with pytest.raises(InvalidRequest, match=rf"^sampling_params\.{name}: .*accepted: ") as caught:
        SamplingParams(**{name: value})
    assert caught.value.violations[0].field == f"sampling_params.{name}"


def test_greedy_sampling_has_one_sequence():
    with pytest.raises(InvalidRequest, match=r"sampling_params\.n"):
        SamplingParams(n=2, temperature=0)


def test_stop_strings_need_text():
    with pytest.raises(InvalidRequest, match=r"sampling_params\.stop"):
        SamplingParams(stop="x", detokenize=False)


@pytest.mark.parametrize(
    "given",
    [
        {"structured_outputs": {"json": {}}},
        {"guided_decoding": {"choice": ["a"]}},
        {"extra_args": {"x": 1}},
        {"truncate_prompt_tokens": 8},
        {"flat_logprobs": True},
        {"best_of": 2},
    ],
    ids=str,
)
def test_parameters_of_vllm_that_are_not_served_are_refused_by_name_unless_they_ask_for_nothing(given):
    with pytest.raises(InvalidRequest, match=next(iter(given))):
        SamplingParams(**given)
    assert SamplingParams(**dict.fromkeys(given), max_tokens=3) == SamplingParams(max_tokens=3)


def test_other_parameters_are_type_errors():
    with pytest.raises(TypeError, match="max_token"):
        SamplingParams(max_token=3)
