"""The engine's greedy output on this device beside transformers': the bundled model, 64 prompts, 64 tokens each.

transformers computes the logits of what the engine generated. A token is a tie if its logit is within the tolerance of
the largest: two correct implementations round differently, and then choose differently.
"""

from functools import partial
from typing import Any, Literal

import torch
from pagewire_shard.config import ShardConfig
from pagewire_shard.loading.model_source import resolve_model
from pagewire_shard.startup import build_engine

from gpu_parts.engine_driver import Driver
from gpu_parts.part import Bench, Part, Row

DtypeName = Literal["float32", "bfloat16"]
TIES: dict[DtypeName, float] = {"float32": 1e-3, "bfloat16": 0.13}
"""Largest gap of a tie. Logits of 8 to 16 are 2**-4 apart in bfloat16: two roundings."""
LEAST_SHARE: dict[DtypeName, float] = {"float32": 1.0, "bfloat16": 0.95}
NUM_PROMPTS, NUM_TOKENS = 64, 64
MAX_MODEL_LEN = 256
KV_CACHE_BYTES = 1 << 28


def compare(dtype: DtypeName, bench: Bench) -> list[Row]:
    """The share of prompts whose every token is transformers' choice, and of those that are up to ties."""
    bench.release_model()
    num_prompts, num_tokens = bench.size(NUM_PROMPTS, 6), bench.size(NUM_TOKENS, 8)
    path = resolve_model("demo")
    generated = _generate(path, dtype, num_prompts, num_tokens, bench)
    model = _load(path, dtype, bench)
    gaps = [_gaps(model, token_ids, num_tokens, bench) for token_ids in generated]
    equal, tied = (sum(bool((g <= limit).all()) for g in gaps) / num_prompts for limit in (0.0, TIES[dtype]))
    return [
        {
            "name": f"greedy, {dtype}, {num_prompts} prompts x {num_tokens} tokens",
            "equal": equal,
            "equal_up_to_ties": tied,
            "largest_gap": max(float(g.max()) for g in gaps),
            "limit": LEAST_SHARE[dtype],
            "ok": tied >= LEAST_SHARE[dtype],
        }
    ]


def _generate(path: Any, dtype: DtypeName, num_prompts: int, num_tokens: int, bench: Bench) -> list[list[int]]:
    """Prompts of different lengths, all at once, each with its output."""
    config = ShardConfig(
        model=str(path),
        model_name="demo",
        device="cuda" if bench.device.type == "cuda" else "cpu",
        dtype=dtype,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
    )
    driver = Driver(build_engine(config, path, b""))
    groups = [driver.add(3 + index, num_tokens) for index in range(num_prompts)]
    while driver.step() is not None:
        pass
    driver.close()
    return [group.sequences[0].token_ids for group in groups]


def _load(path: Any, dtype: DtypeName, bench: Bench) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(bench.device).eval()


@torch.inference_mode()
def _gaps(model: Any, token_ids: list[int], num_tokens: int, bench: Bench) -> torch.Tensor:
    """[num_tokens]: how far each generated token's logit lies below the largest."""
    ids = torch.tensor([token_ids], device=bench.device)
    logits: torch.Tensor = model(ids).logits[0, -num_tokens - 1 : -1].float()
    chosen: torch.Tensor = logits.gather(1, ids[0, -num_tokens:, None])[:, 0]
    return torch.amax(logits, -1) - chosen


PARTS = tuple(Part(f"equality:{dtype}", partial(compare, dtype), 120.0) for dtype in TIES)
