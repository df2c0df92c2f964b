"""The options of `pagewire serve` that say how to run the model: flags of the CLI, keyword arguments of LLM."""

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagewire.errors import InvalidRequest

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {f"{unit}i": 1024**power for power, unit in enumerate(_UNITS) if unit}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_NUM_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size such as "2GiB", "512MB", "1.5g" or "1000000".

    Raises:
        argparse.ArgumentTypeError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; accepted: bytes, or a number with KB to TB or KiB to TiB"
        )
    unit = (match[2] or "").upper().replace("I", "i")
    return int(float(match[1]) * {**_UNITS, **_BINARY_UNITS}[unit])


def positive(text: str) -> int:
    """Returns a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def num_tokens(text: str) -> int:
    """Returns a number of tokens such as 8192, "32k" (thousands) or "32K" (times 1024), above 0.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    match = _NUM_TOKENS.fullmatch(text)
    value = int(float(match[1]) * _MULTIPLES[match[2]]) if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens; accepted: such as 8192 or 32k")
    return value


def dtype_name(text: str) -> str:
    """Returns the name of an element type; vLLM's half and float are float16 and float32."""
    return {"half": "float16", "float": "float32"}.get(text, text)


def json_object(text: str) -> str:
    """Returns the text of a JSON object.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return text


def count_or_all(text: str) -> int:
    """Returns a whole number from 0, or -1, which means all.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    if text != "-1" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from -1")
    return int(text)


def share(text: str) -> float:
    """Returns a number above 0, at most 1.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, at most 1")
    return value


def seconds(text: str) -> float:
    """Returns a number of seconds from 0.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


@dataclass(frozen=True, slots=True)
class Option:
    """One option: a flag of `pagewire serve` and a keyword argument of LLM."""

    name: str
    help: str
    type: Callable[[str], Any] = str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    dest: str | None = None
    """The field of ServeConfig, if it has another name."""

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return "--" + self.name.replace("_", "-")

    def words(self, value: Any) -> str:
        """Returns the flag that sets this value. Raises InvalidRequest for a value that the option does not take."""
        if self.type is bool:
            if value not in (True, False):
                raise self._refusal(value, "True or False")
            return self.flag if value else self.flag.replace("--", "--no-", 1)
        if isinstance(value, bool):
            raise self._refusal(value, self.help)
        if self.choices is not None and str(value) not in self.choices:
            raise self._refusal(value, ", ".join(self.choices))
        try:
            self.type(str(value))
        except (argparse.ArgumentTypeError, ValueError):
            raise self._refusal(value, self.help) from None
        return f"{self.flag}={value}"

    def _refusal(self, value: Any, accepted: str) -> InvalidRequest:
        return InvalidRequest.of_field(self.name, f"{value!r} given; accepted: {accepted}")


MODEL_OPTIONS: tuple[Option, ...] = (
    Option("served_model_name", "name that clients see (default: MODEL as given)", metavar="NAME"),
    Option("tensor_parallel_size", "shards that share each layer of a replica (default: 1)", positive, "N"),
    Option("pipeline_parallel_size", "stages that a replica's layers are parted into (default: 1)", positive, "M"),
    Option(
        "enable_expert_parallel",
        "give each shard some of a mixture's experts, in place of a part of every expert (default: no)",
        bool,
    ),
    Option("replicas", "copies of the model (default: 1)", positive, "N"),
    Option("device", "where to run (default: auto: a GPU if there is one)", choices=("auto", "cpu", "cuda")),
    Option(
        "dtype",
        "type of the weights (default: auto)",
        dtype_name,
        choices=("auto", "float32", "bfloat16", "float16"),
    ),
    Option("max_model_len", "longest prompt plus output, in tokens (default: the model's)", num_tokens, "N"),
    Option("max_num_seqs", "sequences a shard can hold (default: chosen from device and model)", positive, "N"),
    Option(
        "max_num_batched_tokens", "tokens a step may compute (default: chosen from device and model)", positive, "N"
    ),
    Option("block_size", "tokens in a block of the KV cache (default: 64 on a GPU, 16 on a CPU)", positive, "N"),
    Option(
        "kv_cache_memory",
        "size of a shard's KV cache, such as 2GiB (default: what the device has left)",
        parse_bytes,
        "BYTES",
        dest="kv_cache_memory_bytes",
    ),
    Option(
        "gpu_memory_utilization",
        "share of a GPU's memory to use (default: 0.9)",
        share,
        "SHARE",
    ),
    Option("cuda_graphs", "capture a GPU's steps as CUDA graphs (default: yes)", bool),
    Option(
        "load_format",
        "auto: safetensors, or PyTorch files where there are none; safetensors: those alone; dummy: random weights "
        "(default: auto)",
        choices=("auto", "safetensors", "dummy"),
    ),
    Option("seed", "seeds dummy weights (default: 0)", int, "N"),
    Option(
        "hf_overrides",
        "fields that replace those of the model's config.json; objects are merged (default: none)",
        json_object,
        "JSON",
    ),
    Option(
        "generation_config",
        "defaults of sampling parameters: auto: those of the model's generation_config.json; vllm: vLLM's "
        "(default: auto)",
        choices=("auto", "vllm"),
    ),
    Option(
        "max_logprobs",
        "log-probabilities that a request may ask for of each token; -1: of the whole vocabulary (default: 20)",
        count_or_all,
        "N",
    ),
    Option("structured_outputs", "serve grammars (default: yes)", bool),
    Option(
        "grammar_compile_timeout",
        "longest time for compiling a grammar (default: 2)",
        seconds,
        "S",
        dest="grammar_compile_timeout_s",
    ),
    Option(
        "grammar_compile_memory",
        "most memory for compiling a grammar (default: 512MiB)",
        parse_bytes,
        "BYTES",
        dest="grammar_compile_memory_bytes",
    ),
    Option(
        "grammar_cache_memory",
        "most memory of all compiled grammars of a shard (default: 512MiB)",
        parse_bytes,
        "BYTES",
        dest="grammar_cache_memory_bytes",
    ),
    Option(
        "coerce_one_of",
        "read oneOf of JSON schemas as anyOf where its options cannot be told apart (default: refuse it)",
        bool,
    ),
    Option(
        "lenient_json_schemas",
        "ignore keywords and formats of JSON schemas that are not supported (default: refuse them by name)",
        bool,
    ),
    Option(
        "tool_call_parser", "format of the model's tool calls, such as hermes (default: as its files say)", str, "NAME"
    ),
    Option("reasoning_parser", "format of its reasoning, such as deepseek_r1 (default: as its files say)", str, "NAME"),
    Option(
        "logits_processors",
        "logits processors to run, in this order: MODULE:CLASS or FILE.py:CLASS (default: none)",
        str,
        "NAME,...",
    ),
    Option("cpu_threads", "threads for CPU kernels (default: all cores, less one for a small model)", positive, "N"),
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options as flags. Those that are not given set no attribute: ServeConfig has the defaults."""
    group = parser.add_argument_group("model options")
    for option in MODEL_OPTIONS:
        common: dict[str, Any] = {"dest": option.dest or option.name, "help": option.help}
        common["default"] = argparse.SUPPRESS
        if option.type is bool:
            group.add_argument(option.flag, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(option.flag, type=option.type, metavar=option.metavar, choices=option.choices, **common)


def model_flags(options: dict[str, Any]) -> list[str]:
    """Returns the command line for options given as keyword arguments; None means not given.

    Raises:
        TypeError: an option is not known.
        InvalidRequest: an option does not take its value.
    """
    by_name = {option.name: option for option in MODEL_OPTIONS}
    for name in options:
        if name not in by_name:
            raise TypeError(f"unknown option {name!r}; accepted: {', '.join(by_name)}, and vLLM's engine arguments")
    return [by_name[name].words(value) for name, value in options.items() if value is not None]
