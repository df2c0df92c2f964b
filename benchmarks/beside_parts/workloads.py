"""What both engines run: the same token ids, lengths and sampling parameters, from a case's name and the repetition.

A case's name is part of its seed: figures of different days stay comparable as long as the names do.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

GREEDY: dict[str, Any] = {"temperature": 0.0}
TEMPERATURE: dict[str, Any] = {"temperature": 0.8}
TOP_P: dict[str, Any] = TEMPERATURE | {"top_p": 0.95}
TOP_K_TOP_P: dict[str, Any] = TOP_P | {"top_k": 50}
LENGTHS_SEED = 20261130
MIXED_PROMPTS, MIXED_OUTPUTS = (200, 1.0, 2048), (150, 0.9, 1024)
"""Median, sigma and greatest of the log-normal lengths of mixed requests; the least is 4."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of one run of a case."""

    prompts: list[list[int]]
    max_tokens: list[int]
    """Tokens that each request generates, whatever they are."""
    sampling: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """Sizes of the model and of the requests."""

    vocab_size: int
    divisor: int = 1
    """Divides the numbers of requests and of tokens, for a test of the benchmark itself."""

    def of(self, count: int) -> int:
        """A number of requests or tokens."""
        return max(1, count // self.divisor)


MakeBatch = Callable[[np.random.Generator, Size], Batch]


@dataclass(frozen=True, slots=True)
class Case:
    """One workload."""

    title: str
    make: MakeBatch
    is_latency: bool = False
    """Its figure is the time of the call, not the output tokens per second."""
    is_warm_up: bool = False
    """It is run, and not reported."""

    def batch(self, name: str, repetition: int, size: Size) -> Batch:
        """The requests of a repetition: -1 and less warm up."""
        return self.make(np.random.default_rng([zlib.crc32(name.encode()), repetition + 1000]), size)


def mixed_lengths(num_requests: int) -> tuple[list[int], list[int]]:
    """Prompt and output lengths, the same in every repetition."""
    rng = np.random.default_rng(LENGTHS_SEED)
    return _log_normal(rng, num_requests, *MIXED_PROMPTS), _log_normal(rng, num_requests, *MIXED_OUTPUTS)


def _log_normal(rng: np.random.Generator, count: int, median: int, sigma: float, greatest: int) -> list[int]:
    values: npt.NDArray[np.float64] = np.exp(rng.normal(np.log(median), sigma, count)).round()
    lengths: list[int] = np.clip(values.astype(int), 4, greatest).tolist()
    return lengths


def token_ids(rng: np.random.Generator, count: int, size: Size) -> list[int]:
    """Random ids."""
    ids: list[int] = rng.integers(1, size.vocab_size - 1, count).tolist()
    return ids


def _fixed(num_requests: int, prompt_len: int, output_len: int, sampling: dict[str, Any]) -> MakeBatch:
    def make(rng: np.random.Generator, size: Size) -> Batch:
        num = size.of(num_requests)
        prompts = [token_ids(rng, size.of(prompt_len), size) for _ in range(num)]
        return Batch(prompts, [size.of(output_len)] * num, sampling)

    return make


def _mixed(num_requests: int) -> MakeBatch:
    def make(rng: np.random.Generator, size: Size) -> Batch:
        prompt_lens, output_lens = mixed_lengths(size.of(num_requests))
        prompts = [token_ids(rng, size.of(length), size) for length in prompt_lens]
        return Batch(prompts, [size.of(length) for length in output_lens], GREEDY)

    return make


def _shared_prefix(output_len: int) -> MakeBatch:
    def make(rng: np.random.Generator, size: Size) -> Batch:
        prefix = token_ids(rng, size.of(2048), size)
        prompts = [prefix + token_ids(rng, size.of(128), size) for _ in range(size.of(256))]
        return Batch(prompts, [size.of(output_len)] * len(prompts), GREEDY)

    return make


def _tree(rng: np.random.Generator, size: Size) -> Batch:
    """8 system prompts of 1,536 tokens, 4 conversations of 512 more under each, 8 requests of 64 more in each."""
    systems = [token_ids(rng, size.of(1536), size) for _ in range(size.of(8))]
    stems = [system + token_ids(rng, size.of(512), size) for system in systems for _ in range(4)]
    prompts = [stem + token_ids(rng, size.of(64), size) for stem in stems for _ in range(size.of(8))]
    return Batch(prompts, [size.of(64)] * len(prompts), GREEDY)


def _case(title: str, num: int, prompt_len: int, output_len: int, sampling: dict[str, Any] = GREEDY) -> Case:
    lengths = f"{num:,} x {prompt_len:,} → {output_len:,}"
    is_latency = num == 1 or output_len == 1
    return Case(f"{lengths}{title}", _fixed(num, prompt_len, output_len, sampling), is_latency)


def _warm_up(num: int, prompt_len: int, output_len: int, sampling: dict[str, Any] = GREEDY) -> Case:
    return Case("warm-up", _fixed(num, prompt_len, output_len, sampling), is_warm_up=True)


CASES: dict[str, Case] = {
    "w-256x256-16": _warm_up(256, 256, 16),
    "w-top_p-256x64-8": _warm_up(256, 64, 8, TOP_P),
    "w-top_kp-256x64-8": _warm_up(256, 64, 8, TOP_K_TOP_P),
    "c-mixed": Case("1,000 requests of mixed lengths", _mixed(1000)),
    "d-prefix": Case("256 x (2,048 in common + 128) → 64", _shared_prefix(64)),
    "d-prefix-1": Case("256 x (2,048 in common + 128) → 1", _shared_prefix(1), is_latency=True),
    "d-tree": Case("256 x (1,536 + 512 in a tree + 64) → 64", _tree),
    "a-1x1024-1": _case(", first token", 1, 1024, 1),
    "a-1x1024-128": _case("", 1, 1024, 128),
    "a-1x8000-1": _case(", first token", 1, 8000, 1),
    "b-16x1024-128": _case("", 16, 1024, 128),
    "b-64x1024-128": _case("", 64, 1024, 128),
    "b-256x1024-128": _case("", 256, 1024, 128),
    "b-256x128-512": _case("", 256, 128, 512),
    "e-greedy-256x128-256": _case("", 256, 128, 256),
    "e-top_p-1x128-128": _case(", top_p 0.95", 1, 128, 128, TOP_P),
    "e-top_p-256x128-256": _case(", top_p 0.95", 256, 128, 256, TOP_P),
    "e-top_kp-256x128-256": _case(", top_k 50 and top_p 0.95", 256, 128, 256, TOP_K_TOP_P),
    "e-top_p-256x1024-128": _case(", top_p 0.95", 256, 1024, 128, TOP_P),
}
"""In the order in which they are run and shown."""
DEFAULT_REPETITIONS = {"w": 2, "a": 3, "b": 3, "c": 3, "d": 3, "e": 2}
"""Measured runs of each kind of case; one more of each but the long ones warms up."""
NO_WARM_UP = ("w", "c")
