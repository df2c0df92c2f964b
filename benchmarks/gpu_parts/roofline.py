"""A timed call beside its roofline: in a graph over several copies of its inputs and outputs, and by itself."""

from collections.abc import Callable
from functools import cache, partial

import torch

from gpu_parts.clock import Clock
from gpu_parts.part import Bench, Row

Call = Callable[[], object]

ROTATED_BYTES = 512 << 20
"""Least bytes that the copies touch together, if MAX_COPIES reach it: several times the L2 of any GPU."""
MIN_COPIES, MAX_COPIES = 3, 64
MAX_ROTATED_BYTES = 12 << 30
"""Most bytes that the copies touch; a larger call flushes the cache by itself."""
REPLAY_BYTES = 2 << 30
"""Bytes that a replay touches in all its rounds: half a millisecond, in which a graph's launch is negligible."""
LEAST_COPY_BYTES = 16 << 20
"""Least bytes of a copy to compare with; smaller copies are dominated by their launch."""
ROOM_BYTES = 20 << 30
"""Device memory for the copies."""


def num_copies(num_bytes: float, at_most: int = MAX_COPIES) -> int:
    """Copies of what a call touches, num_bytes, so that nothing is in the cache when its turn comes again."""
    wanted = max(-(-ROTATED_BYTES // max(1, int(num_bytes))), MIN_COPIES)
    return max(1, min(wanted, at_most, MAX_ROTATED_BYTES // max(1, int(num_bytes))))


def num_rounds(num_bytes: float, copies: int) -> int:
    """Rounds through the copies in one replay; MAX_COPIES calls are enough in any case."""
    wanted = -(-REPLAY_BYTES // max(1, int(num_bytes) * copies))
    return max(1, min(wanted, MAX_COPIES // copies))


def row(
    bench: Bench,
    name: str,
    make: Callable[[], Call],
    num_bytes: float,
    num_flops: float = 0.0,
    *,
    prepare: Callable[[], object] | None = None,
    max_copies: int = MAX_COPIES,
) -> Row:
    """Times a call that must move num_bytes (every input once, every output once) and do num_flops.

    Every figure but alone_us is the steady state: of a call in a graph that goes through the copies.

    of_roofline: the time that the ceilings allow, over the time taken. of_copy: a copy that moves as many bytes, timed
    the same way, over the time taken; small copies reach less than large ones. None where operations decide, and for a
    few megabytes.
    alone_us: one call by itself, as Clock.time has it.

    Args:
        make: makes the call anew, with inputs of its own.
        prepare: restores the inputs of all calls made, if they spoil them; runs outside the time.
        max_copies: fewer do for a call that is bound by its operations.
    """
    assert bench.ceilings is not None
    bench.make_room(ROOM_BYTES)
    copies = bench.size(num_copies(num_bytes, max_copies), MIN_COPIES)
    calls = [make() for _ in range(copies)]
    # Inputs that a call changes serve for one round only.
    rounds = 1 if prepare or bench.tiny else num_rounds(num_bytes, copies)
    timing = bench.clock.time_in_graph(calls, rounds, prepare)
    alone = bench.clock.time(calls[0], prepare or (lambda: None))
    calls.clear()
    ceiling_s = bench.ceilings.seconds(num_bytes, num_flops)
    is_memory_bound = ceiling_s == num_bytes / bench.ceilings.copy_bytes_per_s
    compares = is_memory_bound and num_bytes >= LEAST_COPY_BYTES
    copy_s = _copy_s(bench.clock, bench.device, int(num_bytes), copies, rounds) if compares else None
    return {
        "name": name,
        "median_us": timing.median_s * 1e6,
        "fastest_us": timing.fastest_s * 1e6,
        "alone_us": alone.median_s * 1e6,
        "gbytes_per_s": num_bytes / timing.median_s / 1e9,
        "tflops": num_flops / timing.median_s / 1e12,
        "of_roofline": ceiling_s / timing.median_s,
        "of_copy": None if copy_s is None else copy_s / timing.median_s,
        "num_copies": copies,
    }


@cache
def _copy_s(clock: Clock, device: torch.device, num_bytes: int, copies: int, rounds: int) -> float:
    """Seconds of a copy that reads and writes num_bytes together, in the steady state."""
    size = max(1, num_bytes // 2)
    sources = [torch.empty(size, dtype=torch.int8, device=device).random_(0, 100) for _ in range(copies)]
    return clock.time_in_graph([partial(torch.empty_like(x).copy_, x) for x in sources], rounds).median_s
