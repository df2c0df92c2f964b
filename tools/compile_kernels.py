"""Compiles the CPU kernels for the bundled demo model, so that the first server starts as fast as the second.

The set-up calls it. Kernels of other models are compiled when they are first served; compiled kernels stay on disk.
"""

from pathlib import Path

from pagewire_shard.config import Dtype, ShardConfig
from pagewire_shard.loading.model_source import resolve_model
from pagewire_shard.startup import build_engine

DTYPES: tuple[Dtype, ...] = ("auto", "float32")
"""The demo model's own type, and one that is multiplied by our own kernel where the processor has AVX-512."""


def main() -> None:
    """Builds an engine for each type, which runs every kernel."""
    directory = Path(resolve_model("demo"))
    for dtype in DTYPES:
        config = ShardConfig(model="demo", model_name="demo", device="cpu", dtype=dtype, kv_cache_memory_bytes=64 << 20)
        build_engine(config, directory, b"")


if __name__ == "__main__":
    main()
