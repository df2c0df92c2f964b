"""Times calls on the device after a warm-up: one cold call by itself, or a call among others in a captured graph."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

NUM_SAMPLES = 25
NUM_WARM_UPS = 3
FLUSH_BYTES = 256 << 20
"""Several times the L2 of any GPU."""
MIN_CYCLES = 400_000
CYCLES_PER_S = 2e9


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call in each sample, or of the average call in each sample."""

    median_s: float
    fastest_s: float
    num_samples: int


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, num_samples: int = NUM_SAMPLES) -> None:
        self._num_samples = num_samples
        self._device = device
        self._flush = torch.zeros(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
        # One stream serves all captures, because libraries keep a workspace for each stream.
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def time(self, call: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> Timing:
        """Times one call on an idle device with a cold cache; compiles and warms up first.

        On a GPU that includes the latency of one launch into an idle device and, up to the size of the L2, writing back
        what the flush left there: for a call that writes this stands for its own lines, which stay behind; a call that
        only reads pays for bytes that are not its own.

        Args:
            prepare: runs before each call, outside the time.
        """
        for _ in range(NUM_WARM_UPS):
            prepare()
            call()
        if self._device.type == "cuda":
            return _timing(self._device_samples_s(call, prepare))
        return _timing(self._host_samples_s([call], prepare))

    def time_in_graph(
        self,
        calls: Sequence[Callable[[], object]],
        num_rounds: int = 1,
        prepare: Callable[[], object] | None = None,
    ) -> Timing:
        """Times one call among others, as in a decode step (steady state). On a GPU all calls are one captured graph.

        A call's dirty lines are written back during the calls behind it, as it writes back those of the calls before
        it, so that every byte counts once. What a call returns has memory of its own.

        Args:
            calls: with inputs of their own, several times the L2 in all, so that none comes from the cache. They
                must not wait for the device.
            num_rounds: how often a graph goes through all calls. The more of them, the less its launch counts.
            prepare: restores inputs that the calls spoil; runs before each replay, outside the time.
        """
        if self._device.type == "cuda":
            return _timing(self._graph_samples_s(calls, num_rounds, prepare))
        prepare = prepare or (lambda: None)
        prepare()
        for call in calls:
            call()
        return _timing(self._host_samples_s([*calls] * num_rounds, prepare))

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

    def _graph_samples_s(
        self, calls: Sequence[Callable[[], object]], num_rounds: int, prepare: Callable[[], object] | None
    ) -> list[float]:
        assert self._flush is not None
        if prepare:
            prepare()
        graph = self._capture(calls, num_rounds)
        events = []
        for _ in range(NUM_WARM_UPS + self._num_samples):
            if prepare:
                prepare()
                # Reading evicts what was restored, with its dirty lines, from the cache.
                self._flush.sum()
            # The device sleeps while the host launches. Without prepare the cache is as the replay before has left it.
            torch.cuda._sleep(MIN_CYCLES)  # type: ignore[no-untyped-call]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            graph.replay()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(self._device)
        # The graph holds the memory of the calls' outputs.
        graph.reset()
        num_calls = len(calls) * num_rounds
        return [start.elapsed_time(end) / 1e3 / num_calls for start, end in events[NUM_WARM_UPS:]]

    def _capture(self, calls: Sequence[Callable[[], object]], num_rounds: int) -> torch.cuda.CUDAGraph:
        """Captures the calls as a graph. Each runs once before, as a capture must not compile, load or build tables."""
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for call in calls:
                call()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            # Outputs are kept until all calls are captured; otherwise calls would share memory, and lines of the cache.
            outputs = [call() for call in [*calls] * num_rounds]
        del outputs
        return graph

    def _host_samples_s(self, calls: Sequence[Callable[[], object]], prepare: Callable[[], object]) -> list[float]:
        samples_s = []
        for _ in range(self._num_samples):
            prepare()
            began_s = perf_counter()
            for call in calls:
                call()
            samples_s.append((perf_counter() - began_s) / len(calls))
        return samples_s


def _timing(samples_s: list[float]) -> Timing:
    return Timing(statistics.median(samples_s), min(samples_s), len(samples_s))
