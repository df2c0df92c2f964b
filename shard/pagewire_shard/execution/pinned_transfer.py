"""Uploads and reports of a GPU, through pinned memory: the host never waits for the device, nor the device for it.

Values go up on the stream that works with them, ahead of that work; reports come down on a stream of their own, beside
the next step.
"""

from dataclasses import dataclass, field

import torch
from pagewire_kernels.append_tokens import FIRST_TOKEN

from pagewire_shard.engine.runner import StepTokens
from pagewire_shard.execution.step_report import StepOutput, step_tokens
from pagewire_shard.slot_tables import Values

NUM_STAGING_BUFFERS = 8
"""Steps whose values may wait to be copied at a time. More than a router keeps in flight, so the host never waits."""
STAGING_BYTES = 1 << 20
"""Bytes for the values of one step. More (many long prompts at once) take temporary pinned memory."""
_ALIGNMENT = 64


class PinnedUplink:
    """Uploads through a ring of pinned buffers, one for each step, all of whose copies a single event guards."""

    def __init__(
        self, device: torch.device, num_buffers: int = NUM_STAGING_BUFFERS, buffer_bytes: int = STAGING_BYTES
    ) -> None:
        self._device = device
        self._buffers = [torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=True) for _ in range(num_buffers)]
        self._copied = [torch.cuda.Event() for _ in range(num_buffers)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._used_bytes = 0

    def begin_step(self) -> None:
        """Takes the next buffer; waits only for a device that is a whole ring of steps behind."""
        self._turn = (self._turn + 1) % len(self._buffers)
        self._used_bytes = 0
        if not self._copied[self._turn].query():  # type: ignore[no-untyped-call]
            self._copied[self._turn].synchronize()

    def end_step(self) -> None:
        """Marks where the device is done with the step's buffer."""
        self._copied[self._turn].record()

    def upload(self, values: Values, dtype: torch.dtype = torch.int64, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Uplink; the copy is ordered before all later work of the current stream."""
        staged = self._take(len(values) * dtype.itemsize).view(dtype)
        staged.numpy()[:] = values
        if out is None:
            return staged.to(self._device, non_blocking=True)
        return out.copy_(staged, non_blocking=True)

    def _take(self, num_bytes: int) -> torch.Tensor:
        buffer, start = self._buffers[self._turn], self._used_bytes
        if start + num_bytes > buffer.numel():
            # torch's allocator of pinned memory knows of copies out of it and does not hand it out again before.
            return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
        self._used_bytes = -(-(start + num_bytes) // _ALIGNMENT) * _ALIGNMENT
        return buffer[start : start + num_bytes]


class _ReportSlot:
    """Pinned memory for one report, and the events of its step."""

    def __init__(self, num_values: int) -> None:
        self.buffer = torch.empty(num_values, dtype=torch.int64, pin_memory=True)
        self.began, self.forwarded, self.sampled, self.copied = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(4)
        )


class PinnedDownlink:
    """Copies reports on a side stream. There are as many places for them as steps were ever in flight at once."""

    def __init__(self, max_rows: int, max_sampled: int = 1) -> None:
        """max_rows: most columns that a report can have; max_sampled: most tokens that a row can sample."""
        self._num_values = (FIRST_TOKEN + max_sampled) * max_rows
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._free: list[_ReportSlot] = []
        self._slot = _ReportSlot(self._num_values)
        """Slot of the step that is being launched."""
        self._last_copied = self._slot.copied

    def begin_step(self) -> None:
        """Marks the time on the device."""
        self._slot.began.record()

    def forwarded(self) -> None:
        """Marks the time on the device."""
        self._slot.forwarded.record()

    def send(self, output: StepOutput, num_rows: int) -> "PendingReport":
        """See Downlink."""
        slot, report = self._slot, output.report
        landed = slot.buffer[: report.numel()].view(report.shape)
        slot.sampled.record()
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.sampled)
            landed.copy_(report, non_blocking=True)
            arriving = output.to_host(landed, _to_pinned)
            slot.copied.record()
        self._last_copied = slot.copied
        self._slot = self._free.pop() if self._free else _ReportSlot(self._num_values)
        return PendingReport(slot, arriving, num_rows, self._free, output)

    def before_next_report(self) -> None:
        """See Downlink."""
        torch.cuda.current_stream().wait_event(self._last_copied)


@dataclass(slots=True, eq=False)
class PendingReport:
    """A report on its way. It keeps what is being copied from being overwritten, until it has been read."""

    _slot: _ReportSlot
    _arriving: StepOutput
    _num_rows: int
    _free: list[_ReportSlot]
    _source: StepOutput | None = field(repr=False)

    def is_ready(self) -> bool:
        """The report is on the host."""
        return bool(self._slot.copied.query())  # type: ignore[no-untyped-call]

    def wait(self) -> StepTokens:
        """Blocks until the report is on the host; to be called once."""
        slot = self._slot
        slot.copied.synchronize()
        forward_us = int(slot.began.elapsed_time(slot.forwarded) * 1e3)
        sample_us = int(slot.forwarded.elapsed_time(slot.copied) * 1e3)
        tokens = step_tokens(self._arriving, self._num_rows, forward_us, sample_us)
        self._source = None
        self._free.append(slot)
        return tokens


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Starts copying to the host."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
