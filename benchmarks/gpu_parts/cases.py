"""The batch sizes and context lengths that each model runs at."""

from dataclasses import dataclass

from gpu_parts.part import Bench
from gpu_parts.shapes import SHAPES, Shape

K = 1024
ACTIVATION_BYTES = 6 << 30
"""Device memory for activations, logits and graphs."""
BLOCK_SLACK = 64
"""Tokens that the last block of a sequence may leave empty."""


class DoesNotFit(Exception):
    """The case needs more memory than the device has."""


@dataclass(frozen=True, slots=True)
class Case:
    """num_seqs sequences of context tokens."""

    shape_name: str
    num_seqs: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.shape_name}:{self.num_seqs}x{self.context // K}k"

    def shape(self, bench: Bench) -> Shape:
        """The model's shape, tiny in a tiny run."""
        full = SHAPES[self.shape_name]
        return full.tiny() if bench.tiny else full

    def scaled(self, bench: Bench) -> tuple[int, int]:
        """(num_seqs, context) of this run."""
        num_seqs = bench.size(self.num_seqs, {1: 1, 16: 2, 64: 3}.get(self.num_seqs, 4))
        return num_seqs, bench.size(self.context, 32 + self.context // K)

    def kv_bytes(self, bench: Bench, extra_tokens: int) -> int:
        """Returns the KV cache bytes of all sequences, each extra_tokens longer than the context."""
        num_seqs, context = self.scaled(bench)
        per_sequence = context + extra_tokens + BLOCK_SLACK
        # A pool must hold one sequence of the longest length at least.
        num_tokens = max(num_seqs * per_sequence, bench.size(34_000, 1024))
        element_bytes = 2 if bench.device.type == "cuda" else 4
        return num_tokens * self.shape(bench).kv_bytes_per_token // 2 * element_bytes

    def check_fits(self, bench: Bench, extra_tokens: int) -> None:
        """Raises DoesNotFit."""
        if bench.device.type != "cuda":
            return
        import torch

        total = torch.cuda.get_device_properties(bench.device).total_memory
        needed = self.shape(bench).resident_bytes + self.kv_bytes(bench, extra_tokens) + ACTIVATION_BYTES
        if needed > total:
            raise DoesNotFit(f"needs {needed / 2**30:.0f} GiB of {total / 2**30:.0f}")


GRID = tuple(
    Case(name, num_seqs, context * K)
    for name in SHAPES
    for num_seqs, context in ((1, 1), (1, 8), (1, 32), (16, 1), (16, 8), (16, 32), (64, 1), (64, 8), (256, 1))
)
"""The combinations of batch 1, 16, 64, 256 and context 1k, 8k, 32k that one H200 holds; llama-1b has two more."""
EXTRA = (Case("llama-1b", 64, 32 * K), Case("llama-1b", 256, 8 * K))
WORKLOADS = tuple(
    Case(name, num_seqs, K) for name in ("llama-8b", "llama-1b", "qwen3-30b-a3b") for num_seqs in (1, 64, 256)
)
"""Whole workloads: prompts of 1k tokens are computed too."""
