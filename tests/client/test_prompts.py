"""The forms of prompts that callers may give, and refusals that name the prompt."""

import numpy as np
import pytest
import torch
from pagewire import InvalidRequest, SamplingParams
from pagewire.prompts import as_prompt, as_prompts
from pagewire.wire import RequestOptions, build_request

IDS = {"prompt_token_ids": [1, 2, 3]}


@pytest.mark.parametrize(
    "prompts",
    [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), torch.tensor([1, 2, 3]), {"prompt_token_ids": np.array([1, 2, 3])}],
    ids=lambda value: type(value).__name__,
)
def test_one_prompt_of_token_ids(prompts):
    assert as_prompts(prompts) == [IDS]


@pytest.mark.parametrize(
    "prompts",
    [[[1, 2, 3], [4]], [torch.tensor([1, 2, 3]), [4]], [IDS, {"prompt_token_ids": (4,)}], [np.array([1, 2, 3]), [4]]],
    ids=["lists", "tensor", "mappings", "array"],
)
def test_several_prompts_of_token_ids(prompts):
    assert as_prompts(prompts) == [IDS, {"prompt_token_ids": [4]}]


def test_prompts_are_looked_at_once():
    checked = as_prompts([[1, 2, 3], "abc"])
    assert as_prompts(checked) is checked == [IDS, "abc"]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
@pytest.mark.parametrize("ids", [[[1, 2], [3]], [[1], [3]]], ids=["of several", "of one"])
def test_arrays_in_a_list_are_a_prompt_each(kind, ids):
    assert as_prompts([kind(each) for each in ids]) == [{"prompt_token_ids": each} for each in ids]


@pytest.mark.parametrize("ids", [[np.int64(1), 2, torch.tensor(3)], iter([1, 2, 3]), {1: 0, 2: 0, 3: 0}.keys()])
def test_numbers_of_any_kind_are_one_prompt(ids):
    assert as_prompts(ids) == [IDS]


def test_a_matrix_is_a_prompt_for_each_row():
    assert as_prompts(torch.tensor([[1, 2], [3, 4]])) == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3, 4]}]


def test_token_ids_count_where_a_text_stands_beside_them():
    request = build_request(as_prompt({"prompt": "abc", "prompt_token_ids": [1, 2, 3]}), None, RequestOptions())
    assert list(request.token_ids.ids) == [1, 2, 3]


@pytest.mark.parametrize(
    "prompt",
    [{"prompt": "abc"}, IDS, {"messages": [{"role": "user", "content": "abc"}]}],
    ids=["text", "token ids", "messages"],
)
def test_a_prompt_may_bring_its_own_salt(prompt):
    request = build_request(as_prompt({**prompt, "cache_salt": "mine"}), None, RequestOptions(cache_salt="all"))
    assert request.cache_salt == "mine"
    assert build_request(as_prompt(prompt), None, RequestOptions(cache_salt="all")).cache_salt == "all"


@pytest.mark.parametrize("key", ["multi_modal_data", "mm_processor_kwargs", "prompt_embeds", "negative_prompt"])
def test_keys_that_are_not_served_are_refused_by_name_unless_none(key):
    with pytest.raises(InvalidRequest, match=key):
        as_prompt({"prompt": "abc", key: {"image": 1}})
    assert as_prompt({"prompt": "abc", key: None}) == {"prompt": "abc"}


@pytest.mark.parametrize(
    "prompt",
    [
        {"text": "abc"},
        {"prompt_token_ids": ["a"]},
        {"prompt_token_ids": b"a"},
        {"prompt": b"abc"},
        7,
        np.array(7),
        [1.5, 2],
        [None],
        [True, False],
        [1, True],
        b"abc",
        {1, 2},
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(InvalidRequest, match="accepted: text, a list of token ids"):
        as_prompts(prompt)


@pytest.mark.parametrize(
    ("prompt", "options", "name"),
    [
        ("a\ud800", {}, "prompt"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, {}, "prompt"),
        ("a", {"request_id": "\ud800"}, "request_id"),
        ("a", {"model": "\ud800"}, "model"),
        ("a", {"cache_salt": "\ud800"}, "cache_salt"),
    ],
    ids=["text", "message", "request_id", "model", "cache_salt"],
)
def test_lone_surrogates_are_refused_before_anything_is_sent(prompt, options, name):
    with pytest.raises(InvalidRequest) as caught:
        build_request(as_prompt(prompt), None, RequestOptions(**options))
    assert caught.value.violations[0].field == name


def test_sampling_parameters_take_numbers_of_numpy_and_torch():
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_k=np.int64(4),
        stop_token_ids=torch.tensor([3, 4]),
        logit_bias={np.int64(3): np.float32(0.25)},
        max_tokens=np.int32(7),
    )
    assert params == SamplingParams(temperature=0.5, top_k=4, stop_token_ids=[3, 4], logit_bias={3: 0.25}, max_tokens=7)
    assert params.clone() == params
    with pytest.raises(InvalidRequest, match="stop"):
        SamplingParams(stop="\ud800")
