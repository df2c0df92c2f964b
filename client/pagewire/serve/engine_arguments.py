"""vLLM's engine arguments of LLM and `pagewire serve`: each is translated into an option of pagewire, taken without
effect, or refused by name.

An argument that is None counts as not given.
"""

import json
import os
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import Any

from pagewire.errors import InvalidRequest
from pagewire.serve.options import dtype_name, num_tokens

Translation = Callable[[Any], Mapping[str, Any]]
"""Translates an argument's value into options of `pagewire serve`. Raises InvalidRequest if it is not served."""


def translate(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options that the engine arguments mean; other arguments pass unchanged.

    Raises:
        InvalidRequest: an argument asks for what is not served.
    """
    options: dict[str, Any] = {}
    for name, value in arguments.items():
        plain = _plain(value)
        if name not in ENGINE_ARGUMENTS:
            options[name] = plain
        elif plain is not None:
            options |= _named(name, plain)
    return options


def without_effect(arguments: Mapping[str, Any]) -> list[str]:
    """Returns the names of arguments that were given, and change nothing."""
    return [name for name, value in arguments.items() if name in WITHOUT_EFFECT and value is not None]


def _plain(value: Any) -> Any:
    """Converts a number of numpy or torch to Python's."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def _named(name: str, value: Any) -> Mapping[str, Any]:
    try:
        return ENGINE_ARGUMENTS[name](value)
    except InvalidRequest:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidRequest.of_field(name, f"{value!r} given; {error}") from None


def _unused(_value: Any) -> Mapping[str, Any]:
    """Accepts any value: what the argument tunes works differently here."""
    return {}


def _renamed(option: str) -> Translation:
    return lambda value: {option: value}


def _names(text: str) -> list[str]:
    return text.split()


def _only(*accepted: Any, why: str) -> Translation:
    def check(value: Any) -> Mapping[str, Any]:
        if not any(value == one and type(value) is type(one) for one in accepted):
            shown = ", ".join(map(repr, accepted))
            raise ValueError(f"accepted: None{', ' if accepted else ''}{shown}: {why}")
        return {}

    return check


def _unserved(value: Any) -> Mapping[str, Any]:
    """Accepts what says that a feature is not used: false, an empty object, a group of one."""
    if value is True or value not in (False, 1, {}):
        raise ValueError(f"accepted: None or False: {_NOT_SERVED}")
    return {}


def _dtype(value: Any) -> Mapping[str, Any]:
    name = value.__name__ if isinstance(value, type) else str(value).removeprefix("torch.")  # numpy's are types
    return {"dtype": dtype_name(name)}


def _max_model_len(value: Any) -> Mapping[str, Any]:
    if value in (-1, "-1", "auto"):
        return {}
    try:
        return {"max_model_len": num_tokens(str(value))}
    except ArgumentTypeError:
        raise ValueError('accepted: a number of tokens, such as 8192 or "32k"; -1 or None: what fits') from None


def _hf_overrides(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, str | Mapping):
        raise ValueError("accepted: a dictionary of fields of config.json; functions are not")
    return {"hf_overrides": value if isinstance(value, str) else json.dumps(dict(value))} if value else {}


def _flag(option: str, *, inverted: bool = False) -> Translation:
    def check(value: Any) -> Mapping[str, Any]:
        if value not in (True, False):
            raise ValueError("accepted: True, False or None")
        return {option: bool(value) is not inverted}

    return check


def _load_format(value: Any) -> Mapping[str, Any]:
    """Maps vLLM's names of formats that `auto` reads to `auto`."""
    return {"load_format": "auto" if value in ("safetensors", "hf") else value}


def _logits_processors(value: Any) -> Mapping[str, Any]:
    """Names classes, so that shards can load them."""
    listed = [value] if isinstance(value, str | type) else list(value)
    return {"logits_processors": ",".join(map(_name_of_class, listed))} if listed else {}


def _name_of_class(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, type):
        raise ValueError("accepted: classes, and names as MODULE:CLASS or FILE.py:CLASS")
    if "<locals>" in value.__qualname__:
        raise ValueError("it is defined within a function, where shards cannot find it; accepted: classes of a module")
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    if file is None:
        raise ValueError("its module has no file, from which shards could load it; accepted: classes of a module")
    # By its file, unless it is part of a package: a shard may look for modules in other folders.
    place = value.__module__ if "." in value.__module__ else os.path.abspath(file)
    return f"{place}:{value.__qualname__}"


def _structured_outputs_config(value: Any) -> Mapping[str, Any]:
    """Takes vLLM's object or dictionary, as far as it asks for nothing that requests say here."""
    given = dict(value if isinstance(value, Mapping) else vars(value))
    given.pop("backend", None)  # There is one.
    options = {"reasoning_parser": given.pop("reasoning_parser", None)}
    if wrong := sorted(name for name, asked in given.items() if asked):
        raise ValueError(f"{', '.join(wrong)} is not served; structured_outputs of a request have such fields")
    return {name: asked for name, asked in options.items() if asked}


def _served_model_name(value: Any) -> Mapping[str, Any]:
    names = [value] if isinstance(value, str) else list(value)
    if len(names) != 1 or not isinstance(names[0], str):
        raise ValueError("accepted: one name")
    return {"served_model_name": names[0]}


_NO_REMOTE_CODE = "code from model repositories is never run"
_SAME_FOLDER = "the tokenizer is the one in the model's folder"
_ENVIRONMENT = "the hub's settings are taken from the environment, as HF_TOKEN and HF_HOME"
_NOT_SERVED = "not served"

MEANING: dict[str, Translation] = {
    "data_parallel_size": _renamed("replicas"),
    "dtype": _dtype,
    "hf_overrides": _hf_overrides,
    "enforce_eager": _flag("cuda_graphs", inverted=True),
    "kv_cache_memory_bytes": _renamed("kv_cache_memory"),
    "load_format": _load_format,
    "logits_processors": _logits_processors,
    "max_model_len": _max_model_len,
    "served_model_name": _served_model_name,
    "structured_outputs_config": _structured_outputs_config,
}
"""Arguments that an option of pagewire expresses."""

WITHOUT_EFFECT = tuple(
    _names(
        """
        aggregate_engine_logging all2all_backend async_scheduling attention_backend attention_config
        compilation_config cpu_distributed_timeout_seconds cudagraph_capture_sizes cudagraph_metrics
        custom_histogram_buckets disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
        disable_hybrid_kv_cache_manager disable_log_requests disable_log_stats disable_nccl_for_dp_synchronization
        distributed_executor_backend distributed_timeout_seconds enable_chunked_prefill enable_cumem_allocator
        enable_flashinfer_autotune enable_layerwise_nvtx_tracing enable_log_requests
        enable_logging_iteration_details enable_mfu_metrics enable_mm_processor_stats enable_shm_tensor_arena
        fully_sharded_loras ir_op_priority jit_monitor_mode jit_monitor_verbose kernel_config kv_cache_metrics
        kv_cache_metrics_sample limit_mm_per_prompt linear_backend long_prefill_token_threshold
        long_prefill_token_threshold_adaptive lora_dtype max_cpu_loras max_cudagraph_capture_size max_lora_rank
        max_loras max_num_partial_prefills max_parallel_loading_workers max_seq_len_to_capture mm_processor_cache_gb
        mm_processor_cache_type mm_shm_cache_max_object_size_mb moe_backend numa_bind numa_bind_cpus numa_bind_nodes
        optimization_level performance_mode prefix_caching_hash_algo pt_load_map_location ray_workers_use_nsight
        renderer_num_workers safetensors_load_strategy safetensors_prefetch_block_size
        safetensors_prefetch_num_threads scheduler_reserve_full_isl show_hidden_metrics_for_version
        skip_mm_profiling skip_tokenizer_init stream_interval swap_space trust_remote_code use_fp64_gumbel
        use_tqdm_on_load
        """
    )
)
"""Arguments that change no output: what they tune works differently here, or is not there to be tuned."""

REFUSED: dict[str, Translation] = {
    "code_revision": _only(why=_NO_REMOTE_CODE),
    "collect_detailed_traces": _only(why="requests are traced as a whole"),
    "config_format": _only("auto", "hf", why="config.json is read"),
    "convert": _only("auto", "none", why="text generation is served"),
    "cpu_offload_gb": _only(0, 0.0, why=_NOT_SERVED),
    "download_dir": _only(why=_ENVIRONMENT),
    "enable_prefix_caching": _only(True, why="prefixes are always cached; requests of different cache_salt share none"),
    "hf_config_path": _only(why="the configuration is the one in the model's folder"),
    "hf_token": _only(why=_ENVIRONMENT),
    "kv_cache_dtype": _only("auto", why="keys and values have the type of the activations"),
    "logprobs_mode": _only("raw_logprobs", why="log-probabilities are of the model's own distribution"),
    "mm_processor_kwargs": _only({}, why="prompts are text"),
    "model_impl": _only("auto", "vllm", why="models are pagewire's own"),
    "num_gpu_blocks_override": _only(why="give kv_cache_memory, the size of the pool"),
    "otlp_traces_endpoint": _only(why="set the environment's OTEL_EXPORTER_OTLP_ENDPOINT"),
    "override_generation_config": _only({}, why="give SamplingParams"),
    "quantization": _only(why="weights in float32, float16 or bfloat16 are served"),
    "revision": _only(why="give the folder of a snapshot"),
    "runner": _only("auto", "generate", why="text generation is served"),
    "scheduling_policy": _only("fcfs", "priority", why="requests run by priority, then in the order they came"),
    "task": _only("auto", "generate", why="text generation is served"),
    "tokenizer_mode": _only("auto", "hf", "fast", why=_SAME_FOLDER),
    "tokenizer_revision": _only(why=_SAME_FOLDER),
    **dict.fromkeys(
        _names(
            """
        additional_config allowed_local_media_path decode_context_parallel_size device_ids disable_sliding_window
        enable_dbo enable_elastic_ep enable_eplb enable_fault_tolerance enable_lora
        enable_mm_embeds enable_prompt_embeds enable_return_routed_experts enable_sleep_mode kv_events_config
        kv_offloading_size kv_sharing_fast_prefill kv_transfer_config model_loader_extra_config node_rank nnodes
        pooler_config prefill_context_parallel_size profiler_config quantization_config reasoning_config
        scheduler_cls spec_method spec_model spec_tokens speculative_config
        weight_transfer_config worker_cls worker_extension_cls
        """
        ),
        _unserved,
    ),
}
"""Arguments that are refused, except for values that describe what is done anyway."""

ENGINE_ARGUMENTS = {**MEANING, **dict.fromkeys(WITHOUT_EFFECT, _unused), **REFUSED}
FLAGS = frozenset(
    name
    for name in ENGINE_ARGUMENTS
    if name.startswith(("enable_", "disable_"))
    or name
    in _names(
        """
        async_scheduling cudagraph_metrics enforce_eager fully_sharded_loras jit_monitor_verbose kv_cache_metrics
        kv_sharing_fast_prefill numa_bind ray_workers_use_nsight scheduler_reserve_full_isl skip_mm_profiling
        skip_tokenizer_init trust_remote_code use_fp64_gumbel use_tqdm_on_load
        """
    )
)
"""Arguments that are true or false: flags without a value on the command line."""
