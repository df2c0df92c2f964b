"""What START says of a shard: its options, without those that say where it serves, and what was made of them."""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from pagewire_shard.config import ShardConfig
from pagewire_shard.engine.engine import Engine

REPLAYED = (
    "model",
    "model_name",
    "device",
    "dtype",
    "cuda_graphs",
    "load_format",
    "seed",
    "hf_overrides",
    "cpu_threads",
    "logits_processors",
    "structured_outputs",
    "coerce_one_of",
    "lenient_json_schemas",
)
"""Options that a replay takes over."""


def shard_facts(config: ShardConfig, engine: Engine) -> dict[str, Any]:
    """The payload of START."""
    info = engine.info
    return {
        "config": {name: value for name, value in asdict(config).items() if name in REPLAYED},
        "limits": {
            "max_model_len": info.max_model_len,
            "max_num_seqs": info.max_num_seqs,
            "max_num_batched_tokens": info.max_num_batched_tokens,
            "block_size": info.block_size,
            "kv_cache_memory_bytes": engine.cache_bytes,
        },
        "device": info.device,
        "model_digest": info.model_digest.hex(),
        "num_blocks": list(info.num_blocks),
        "tp_size": info.tp_size,
    }


def replay_config(facts: Mapping[str, Any], *, model: str | None, device: str | None) -> ShardConfig:
    """The configuration of a shard that runs the same again; model and device in place of the recorded ones."""
    known = {field.name for field in fields(ShardConfig)}
    values = {name: value for name, value in {**facts["config"], **facts["limits"]}.items() if name in known}
    values["logits_processors"] = tuple(values["logits_processors"])
    config = ShardConfig(**values)
    return replace(config, model=model or config.model, device=device or config.device)  # type: ignore[arg-type]
