"""vLLM's engine arguments: taken with a meaning, taken without one, or refused by name."""

import json

import numpy as np
import pytest
import torch
from pagewire import InvalidRequest
from pagewire.serve.engine_arguments import (
    ENGINE_ARGUMENTS,
    FLAGS,
    MEANING,
    REFUSED,
    WITHOUT_EFFECT,
    translate,
    without_effect,
)
from pagewire.serve.options import MODEL_OPTIONS, model_flags


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({"dtype": "half"}, {"dtype": "float16"}),
        ({"data_parallel_size": 2}, {"replicas": 2}),
        ({"hf_overrides": {"rope_theta": 1e4}}, {"hf_overrides": '{"rope_theta": 10000.0}'}),
        ({"hf_overrides": {}}, {}),
        ({"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": False}}, {}),
        ({"structured_outputs_config": {"reasoning_parser": "deepseek_r1"}}, {"reasoning_parser": "deepseek_r1"}),
        ({"logits_processors": []}, {}),
        ({"logits_processors": ["a:B", "/c.py:D"]}, {"logits_processors": "a:B,/c.py:D"}),
        ({"logits_processors": [json.JSONDecoder]}, {"logits_processors": "json.decoder:JSONDecoder"}),
        ({"enable_lora": False, "node_rank": 0, "nnodes": 1, "additional_config": {}}, {}),
        ({"enable_chunked_prefill": False, "convert": "auto", "kernel_config": {"enable_jit_warmup": False}}, {}),
        ({"enable_sleep_mode": False, "scheduling_policy": "priority", "logprobs_mode": "raw_logprobs"}, {}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({"dtype": "float"}, {"dtype": "float32"}),
        ({"enforce_eager": True}, {"cuda_graphs": False}),
        ({"max_model_len": -1}, {}),
        ({"max_model_len": "32k"}, {"max_model_len": 32_000}),
        ({"max_model_len": "2K"}, {"max_model_len": 2048}),
        ({"max_model_len": 4096}, {"max_model_len": 4096}),
        ({"kv_cache_memory_bytes": 1 << 30}, {"kv_cache_memory": 1 << 30}),
        ({"served_model_name": "m"}, {"served_model_name": "m"}),
        ({"gpu_memory_utilization": 0.5}, {"gpu_memory_utilization": 0.5}),
        ({"enable_prefix_caching": True, "enable_chunked_prefill": True, "trust_remote_code": True}, {}),
        ({"swap_space": 4, "disable_log_stats": False, "seed": 3}, {"seed": 3}),
        ({"dtype": np.float16}, {"dtype": "float16"}),
        ({"load_format": "safetensors"}, {"load_format": "auto"}),
        ({"load_format": "dummy"}, {"load_format": "dummy"}),
        ({"served_model_name": ["m"]}, {"served_model_name": "m"}),
        (
            {"cpu_offload_gb": np.int64(0), "enable_prefix_caching": np.True_, "enforce_eager": np.False_},
            {"cuda_graphs": True},
        ),
        (
            {"max_num_seqs": np.int32(8), "gpu_memory_utilization": torch.tensor(0.5)},
            {"max_num_seqs": 8, "gpu_memory_utilization": 0.5},
        ),
        ({"max_logprobs": -1, "generation_config": "vllm"}, {"max_logprobs": -1, "generation_config": "vllm"}),
        ({"limit_mm_per_prompt": {"image": 0}}, {}),
        ({"quantization": None, "tokenizer_mode": "auto", "hf_overrides": None}, {}),
    ],
    ids=str,
)
def test_arguments_mean_options(arguments, options):
    assert translate(arguments) == options
    model_flags(options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"quantization": "awq"},
        {"structured_outputs_config": {"enable_in_reasoning": True}},
        {"logits_processors": [print]},
        {"logits_processors": [type("Local", (), {"__qualname__": "f.<locals>.Local"})]},
        {"enable_prefix_caching": False},
        {"enable_lora": True},
        {"max_model_len": "many"},
        {"kv_cache_dtype": "fp8"},
        {"hf_overrides": len},
        {"enable_sleep_mode": True},
        {"logprobs_mode": "raw_logits"},
        {"quantization_config": {"a": 1}},
        {"revision": "main"},
        {"num_gpu_blocks_override": 10},
        {"decode_context_parallel_size": 2},
        {"enforce_eager": "False"},
        {"served_model_name": ["a", "b"]},
        {"served_model_name": 5},
    ],
    ids=str,
)
def test_what_is_not_served_is_refused_by_name(arguments):
    with pytest.raises(InvalidRequest) as caught:
        translate(arguments)
    assert caught.value.violations[0].field in arguments


@pytest.mark.parametrize(
    "options",
    [
        {"max_num_seqs": True},
        {"max_num_seqs": 8.5},
        {"max_num_seqs": [8]},
        {"block_size": -1},
        {"dtype": torch.int8},
        {"device": "tpu"},
        {"load_format": "pt"},
        {"seed": "x"},
        {"gpu_memory_utilization": 2},
        {"kv_cache_memory": "lots"},
        {"cuda_graphs": "no"},
        {"max_logprobs": -2},
        {"generation_config": "./folder"},
    ],
    ids=str,
)
def test_values_that_an_option_does_not_take_are_refused_by_its_name(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        model_flags(translate(options))


def test_unknown_arguments_are_type_errors():
    with pytest.raises(TypeError, match="unknown option 'max_modle_len'"):
        model_flags(translate({"max_modle_len": 3}))


def test_every_argument_may_be_none():
    assert translate(dict.fromkeys(ENGINE_ARGUMENTS)) == {}


def test_meanings_are_options():
    known = {option.name for option in MODEL_OPTIONS}
    assert {"cuda_graphs", "kv_cache_memory", "served_model_name", "replicas", "dtype", "max_model_len"} <= known


def test_arguments_have_one_meaning_each():
    assert not MEANING.keys() & WITHOUT_EFFECT
    assert not REFUSED.keys() & WITHOUT_EFFECT
    assert not REFUSED.keys() & MEANING.keys()
    assert ENGINE_ARGUMENTS.keys() >= FLAGS
    assert without_effect({"swap_space": 4, "disable_log_stats": None, "dtype": "half"}) == ["swap_space"]
