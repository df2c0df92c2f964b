"""vLLM's engine arguments of LLM: each is translated into an option of pagewire, ignored, or refused by name.

An argument that is None counts as not given.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from pagewire.errors import InvalidRequest

_DTYPES = {"half": "float16", "float": "float32"}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}

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


def _only(*accepted: Any, why: str) -> Translation:
    def check(value: Any) -> Mapping[str, Any]:
        if not any(value == one and type(value) is type(one) for one in accepted):
            shown = ", ".join(map(repr, accepted))
            raise ValueError(f"accepted: None{', ' if accepted else ''}{shown}: {why}")
        return {}

    return check


def _dtype(value: Any) -> Mapping[str, Any]:
    name = value.__name__ if isinstance(value, type) else str(value).removeprefix("torch.")  # numpy's are types
    return {"dtype": _DTYPES.get(name, name)}


def _max_model_len(value: Any) -> Mapping[str, Any]:
    if value in (-1, "-1", "auto"):
        return {}
    match = _LENGTH.fullmatch(str(value))
    if match is None:
        raise ValueError('accepted: a number of tokens, such as 8192 or "32k"; -1 or None: what fits')
    return {"max_model_len": int(float(match[1]) * _MULTIPLES[match[2]])}


def _flag(option: str, *, inverted: bool = False) -> Translation:
    def check(value: Any) -> Mapping[str, Any]:
        if value not in (True, False):
            raise ValueError("accepted: True, False or None")
        return {option: bool(value) is not inverted}

    return check


def _load_format(value: Any) -> Mapping[str, Any]:
    """Maps vLLM's names of formats that `auto` reads to `auto`."""
    return {"load_format": "auto" if value in ("safetensors", "hf") else value}


def _served_model_name(value: Any) -> Mapping[str, Any]:
    names = [value] if isinstance(value, str) else list(value)
    if len(names) != 1 or not isinstance(names[0], str):
        raise ValueError("accepted: one name")
    return {"served_model_name": names[0]}


_NO_REMOTE_CODE = "code from model repositories is never run"
_SAME_FOLDER = "the tokenizer is the one in the model's folder"
_ENVIRONMENT = "the hub's settings are taken from the environment, as HF_TOKEN and HF_HOME"
_NOT_SERVED = "not served"

ENGINE_ARGUMENTS: dict[str, Translation] = {
    # Arguments that an option of pagewire expresses.
    "dtype": _dtype,
    "enforce_eager": _flag("cuda_graphs", inverted=True),
    "kv_cache_memory_bytes": _renamed("kv_cache_memory"),
    "load_format": _load_format,
    "max_model_len": _max_model_len,
    "served_model_name": _served_model_name,
    # Arguments that change nothing for the caller.
    "async_scheduling": _unused,
    "attention_backend": _unused,
    "compilation_config": _unused,
    "cpu_offload_gb": _only(0, 0.0, why=_NOT_SERVED),
    "disable_cascade_attn": _unused,
    "disable_custom_all_reduce": _unused,
    "disable_log_stats": _unused,
    "distributed_executor_backend": _unused,
    "enable_chunked_prefill": _only(True, why="prompts are always computed in chunks"),
    "enable_prefix_caching": _only(True, why="prefixes are always cached; requests of different cache_salt share none"),
    "limit_mm_per_prompt": _unused,  # prompts are text alone
    "max_seq_len_to_capture": _unused,
    "swap_space": _unused,
    "trust_remote_code": _unused,  # no code of a repository is needed or run
    # Arguments that are refused, except for values that describe what is done anyway.
    "code_revision": _only(why=_NO_REMOTE_CODE),
    "data_parallel_size": _renamed("replicas"),
    "download_dir": _only(why=_ENVIRONMENT),
    "enable_expert_parallel": _only(False, why=_NOT_SERVED),
    "enable_lora": _only(False, why=_NOT_SERVED),
    "hf_overrides": _only({}, why="edit the model's config.json"),
    "hf_token": _only(why=_ENVIRONMENT),
    "kv_cache_dtype": _only("auto", why="keys and values have the type of the activations"),
    "kv_transfer_config": _only(why=_NOT_SERVED),
    "logits_processors": _only([], why=_NOT_SERVED),
    "mm_processor_kwargs": _only({}, why="prompts are text"),
    "num_gpu_blocks_override": _only(why="give kv_cache_memory, the size of the pool"),
    "override_generation_config": _only({}, why="give SamplingParams"),
    "pipeline_parallel_size": _only(1, why=_NOT_SERVED),
    "quantization": _only(why="weights in float32, float16 or bfloat16 are served"),
    "revision": _only(why="give the folder of a snapshot"),
    "runner": _only("auto", "generate", why="text generation is served"),
    "skip_tokenizer_init": _only(False, why="the server tokenizes"),
    "speculative_config": _only(why=_NOT_SERVED),
    "structured_outputs_config": _only(why=_NOT_SERVED),
    "task": _only("auto", "generate", why="text generation is served"),
    "tokenizer_mode": _only("auto", "hf", why=_SAME_FOLDER),
    "tokenizer_revision": _only(why=_SAME_FOLDER),
}
