"""Compiles the CPU kernels for the bundled demo model, so that the first server starts as fast as the second.

The set-up calls it. Kernels of other models are compiled when they are first served; compiled kernels stay on disk.
"""

from pathlib import Path

from pagewire_shard.config import ShardConfig
from pagewire_shard.loading.model_source import resolve_model
from pagewire_shard.startup import build_engine


def main() -> None:
    """Builds the engine once, which runs every kernel."""
    config = ShardConfig(model="demo", model_name="demo", device="cpu", kv_cache_memory_bytes=64 << 20)
    build_engine(config, Path(resolve_model("demo")), b"")


if __name__ == "__main__":
    main()
