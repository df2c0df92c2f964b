"""A place at which a kernel is compared with float64: a device, a dtype, and the size of its inputs."""

from dataclasses import dataclass

import float64
import torch

MAX_ERRORS = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Largest relative errors in the Euclidean norm; bfloat16 rounds to within 4e-3."""


@dataclass(frozen=True, slots=True)
class Site:
    """One device and dtype, with sizes as served on a GPU and tiny ones on a CPU."""

    device: torch.device
    dtype: torch.dtype

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def size(self, served: int, tiny: int) -> int:
        """A size, by the device."""
        return served if self.is_gpu else tiny

    def random(self, *shape: int) -> torch.Tensor:
        """Normally distributed, of this dtype."""
        return torch.randn(*shape, dtype=self.dtype, device=self.device)

    def check(self, out: torch.Tensor, expected: torch.Tensor, what: str = "output") -> None:
        """Asserts that the relative error is within the dtype's bound."""
        error, bound = float64.relative_error(out, expected), MAX_ERRORS[self.dtype]
        # Not `error > bound`: NaN is wrong too.
        assert error <= bound, f"{what}: relative error {error:.2e}, at most {bound:.0e}"
