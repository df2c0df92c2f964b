"""Timing on the device: events around a call, after a warm-up, with a second-level cache that holds others' data."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

NUM_SAMPLES = 25
FLUSH_BYTES = 256 << 20
"""Several times the L2 of any GPU. Written, so that its dirty lines have to leave as they would between layers."""
MIN_CYCLES = 400_000
CYCLES_PER_S = 2e9


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    fastest_s: float
    num_samples: int


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, num_samples: int = NUM_SAMPLES) -> None:
        self._num_samples = num_samples
        self._device = device
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Timing:
        """The median over samples of one call each; compiles and warms up first.

        Args:
            prepare: runs before each call, outside the time.
        """
        for _ in range(3):
            prepare()
            call()
        sample = self._device_samples_s if self._device.type == "cuda" else self._host_samples_s
        samples_s = sample(call, prepare)
        return Timing(statistics.median(samples_s), min(samples_s), len(samples_s))

    def _device_samples_s(self, call: Callable[[], object], prepare: Callable[[], object]) -> list[float]:
        assert self._flush is not None
        prepare()
        torch.cuda.synchronize(self._device)
        began_s = perf_counter()
        call()
        launch_s = perf_counter() - began_s
        # The device sleeps while the host launches, so that it finds the whole call queued and launches cost nothing.
        cycles = max(MIN_CYCLES, int(2 * launch_s * CYCLES_PER_S))
        events = []
        for _ in range(self._num_samples):
            prepare()
            self._flush.zero_()
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            call()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def _host_samples_s(self, call: Callable[[], object], prepare: Callable[[], object]) -> list[float]:
        samples_s = []
        for _ in range(self._num_samples):
            prepare()
            began_s = perf_counter()
            call()
            samples_s.append(perf_counter() - began_s)
        return samples_s
