import copy
import dataclasses
import math
import pickle

import pytest
from pagewire import InvalidRequest, SamplingParams, StructuredOutputsParams
from pagewire.v1 import inference_pb2 as pb


def test_the_defaults_are_left_to_the_server():
    assert SamplingParams().to_proto() == pb.SamplingParams()


def test_what_is_given_is_sent_also_if_it_is_the_default():
    params = SamplingParams(temperature=1.0, max_tokens=16)
    expected = pb.SamplingParams(temperature=1.0, max_tokens=16)
    assert params.to_proto() == expected
    for copied in (params.clone(), copy.copy(params), pickle.loads(pickle.dumps(params))):
        assert copied.to_proto() == expected
        copied.top_p = 1.0
        assert copied.to_proto() == pb.SamplingParams(temperature=1.0, max_tokens=16, top_p=1.0)
    assert params.to_proto() == expected


def test_parameters_are_read_from_a_message():
    message = pb.SamplingParams(
        temperature=0.6, top_k=20, stop=["a"], stop_token_ids=[3], logit_bias={4: 0.1}, ignore_eos=True
    )
    params = SamplingParams.from_proto(message)
    assert (params.temperature, params.top_k, params.stop, params.logit_bias) == (0.6, 20, ["a"], {4: 0.1})
    assert params.to_proto() == message


def test_every_field_of_the_wire_can_be_set():
    wire = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert wire == {field.name for field in dataclasses.fields(SamplingParams)}


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
        "truncate_prompt_tokens": -1,
    }
    constraint = StructuredOutputsParams(regex="a")
    given["extra_args"] = {"token": 3, "words": ["a", {"b": None}], "weight": 0.5}
    assert {*given, "structured_outputs"} == {field.name for field in dataclasses.fields(SamplingParams)}
    message = SamplingParams(**given, structured_outputs=constraint).to_proto()
    assert message == pb.SamplingParams(**given, structured_outputs=pb.StructuredOutputs(regex="a"))


@pytest.mark.parametrize(("stop", "sent"), [(None, []), ("end", ["end"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_is_a_string_or_several(stop, sent):
    assert list(SamplingParams(stop=stop).to_proto().stop) == sent


def test_lists_are_lists_whatever_was_given():
    params = SamplingParams(stop="end", stop_token_ids=(1, 2))
    assert (params.stop, params.stop_token_ids, params.bad_words) == (["end"], [1, 2], [])
    params.stop.append("more")
    params.stop_token_ids += [3]
    message = params.to_proto()
    assert (list(message.stop), list(message.stop_token_ids)) == (["end", "more"], [1, 2, 3])
    stop = params.stop
    params.to_proto()
    assert params.stop is stop, "sending leaves the caller's references good"


def test_attributes_may_be_assigned():
    params = SamplingParams(max_tokens=4)
    params.max_tokens, params.temperature, params.stop = 32, 0, "end"
    message = params.to_proto()
    assert (message.max_tokens, message.temperature, list(message.stop)) == (32, 0.0, ["end"])
    assert message.HasField("temperature")


@pytest.mark.parametrize(("name", "value"), [("temperature", 9), ("stop", [""]), ("min_tokens", -1), ("n", None)])
def test_what_is_assigned_is_checked_when_it_is_sent(name, value):
    params = SamplingParams()
    setattr(params, name, value)
    with pytest.raises(InvalidRequest, match=rf"^sampling_params\.{name}: .*accepted: "):
        params.to_proto()


def test_a_clone_shares_nothing():
    bias, stop = {1: 2.0}, ["a"]
    params = SamplingParams(stop=stop, logit_bias=bias)
    clone = params.clone()
    assert clone == params
    clone.stop.append("b")
    clone.logit_bias[3] = 4.0
    clone.max_tokens = 99
    assert params == SamplingParams(stop=["a"], logit_bias={1: 2.0})
    assert (stop, bias) == (["a"], {1: 2.0})


def test_none_means_the_default_in_from_optional():
    names = [field.name for field in dataclasses.fields(SamplingParams) if field.name != "max_tokens"]
    assert SamplingParams.from_optional(**dict.fromkeys(names)) == SamplingParams()
    assert SamplingParams.from_optional(max_tokens=None).max_tokens is None
    assert SamplingParams.from_optional(temperature=0.0, top_p=None, n=1).temperature == 0
    assert SamplingParams.from_optional(structured_outputs=None) == SamplingParams()


def test_from_optional_takes_a_bias_as_json_has_it():
    params = SamplingParams.from_optional(logit_bias={"5": 1.5, 6: -1000})
    assert params.logit_bias == {5: 1.5, 6: -100.0}
    for wrong in ({"a": 1}, {5: "b"}, [5]):
        with pytest.raises(InvalidRequest, match=r"sampling_params\.logit_bias"):
            SamplingParams.from_optional(logit_bias=wrong)


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
        ("logprobs", -1),
        ("prompt_logprobs", -1),
        ("truncate_prompt_tokens", -1),
        ("truncate_prompt_tokens", 1),
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
        ("logprobs", -2),
        ("prompt_logprobs", -2),
        ("bad_words", [""]),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("allowed_token_ids", [2**32]),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
        ("truncate_prompt_tokens", 2**31),
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
        {"logits_processors": [print]},
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


def test_min_tokens_are_compared_with_a_max_tokens_that_is_given():
    """What it is otherwise the server decides."""
    with pytest.raises(InvalidRequest, match="at most max_tokens, which is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    params = SamplingParams(min_tokens=17)
    assert not params.to_proto().HasField("max_tokens")
    params.max_tokens = 16
    with pytest.raises(InvalidRequest, match="at most max_tokens, which is 16"):
        params.to_proto()


@pytest.mark.parametrize(
    "wrong", [{1: "a"}, {"a": object()}, {"a": [float("nan")]}, {"a": 2**60}, {"a": "\ud800"}, ["a"]]
)
def test_extra_args_are_what_json_expresses(wrong):
    with pytest.raises(InvalidRequest, match=r"sampling_params\.extra_args: .*JSON"):
        SamplingParams(extra_args=wrong)
    given = {"a": [1]}
    params = SamplingParams(extra_args=given)
    given["a"].append(2)
    assert params.extra_args == {"a": [1]}
    assert SamplingParams(extra_args={}).to_proto() == SamplingParams().to_proto()
