"""How a runner's numbers get to its device, and a step's report back.

The seam between a runner and its device. On a CPU nothing has to move; pinned_transfer.py has what a GPU needs.
"""

import time
from array import array
from typing import Protocol

import torch

from pagewire_shard.engine.runner import PendingTokens
from pagewire_shard.execution.step_report import StepOutput, step_tokens
from pagewire_shard.slot_tables import Values


class Uplink(Protocol):
    """Brings values to the device."""

    def begin_step(self) -> None:
        """Before the first upload of a step."""

    def end_step(self) -> None:
        """After the last upload of a step."""

    def upload(self, values: Values, dtype: torch.dtype = torch.int64, out: torch.Tensor | None = None) -> torch.Tensor:
        """The values as a one-dimensional tensor on the device: `out`, of their number, or a new one.

        Args:
            values: If an array.array, its elements are of the dtype, and it is not changed afterwards.
        """


class Downlink(Protocol):
    """Brings reports to the host, and says what steps took."""

    def begin_step(self) -> None:
        """Before a step's first work on the device."""

    def forwarded(self) -> None:
        """Between forward pass and sampling."""

    def send(self, output: StepOutput, num_rows: int) -> PendingTokens:
        """Starts copying a step's results, of num_rows rows."""

    def before_next_report(self) -> None:
        """Lets the device's work from here on wait until the last report has been copied: it will be overwritten."""


class CpuUplink:
    """The device is the host."""

    def begin_step(self) -> None:
        """Nothing to do."""

    def end_step(self) -> None:
        """Nothing to do."""

    def upload(self, values: Values, dtype: torch.dtype = torch.int64, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Uplink."""
        if isinstance(values, array):
            tensor = torch.frombuffer(values, dtype=dtype)
        else:
            tensor = torch.tensor(values, dtype=dtype)
        return tensor if out is None else out.copy_(tensor)


class CpuDownlink:
    """A report is where it has to be, and all work is done when the call that asks for it returns."""

    def __init__(self) -> None:
        self._began_s = self._forwarded_s = 0.0

    def begin_step(self) -> None:
        """Starts the clock."""
        self._began_s = self._forwarded_s = time.perf_counter()

    def forwarded(self) -> None:
        """Takes the time."""
        self._forwarded_s = time.perf_counter()

    def send(self, output: StepOutput, num_rows: int) -> PendingTokens:
        """See Downlink."""
        forward_us = int((self._forwarded_s - self._began_s) * 1e6)
        sample_us = int((time.perf_counter() - self._forwarded_s) * 1e6)
        # Read now: the next step may overwrite the report.
        return step_tokens(output, num_rows, forward_us, sample_us)

    def before_next_report(self) -> None:
        """Nothing to wait for."""
