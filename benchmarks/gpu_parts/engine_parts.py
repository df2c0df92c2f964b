"""The whole engine against its roofline: time per output token of decode steps, prompts, whole workloads."""

import statistics
from collections.abc import Iterable, Iterator
from functools import partial
from time import perf_counter

import torch
from pagewire_shard.engine.engine import Engine

from gpu_parts import engine_driver
from gpu_parts.cases import EXTRA, GRID, WORKLOADS, Case, K
from gpu_parts.engine_driver import Driver, decode_steps, median_host_s, step_times_s
from gpu_parts.part import Bench, Part, Row

NUM_STEPS = 40
NUM_PROFILED = 5
NUM_PROFILE_ROWS = 25
NUM_NAME_CHARS = 90


def engine_for(bench: Bench, case: Case, extra_tokens: int) -> Engine:
    """The engine of the case's model with room for it; one with too small a pool is replaced."""
    case.check_fits(bench, extra_tokens)
    needed = case.kv_bytes(bench, extra_tokens)
    shape = case.shape(bench)

    def load() -> tuple[Engine, int]:
        # The pool is large enough for the model's other cases, since loading takes longer than anything else.
        sizes = [c.kv_bytes(bench, extra_tokens) for c in (*GRID, *EXTRA) if c.shape_name == case.shape_name]
        free = torch.cuda.mem_get_info(bench.device)[0] if bench.device.type == "cuda" else 1 << 40
        room = int(0.9 * free) - shape.resident_bytes - (4 << 30)
        pool_bytes = max([needed, *(size for size in sizes if size <= room)])
        return engine_driver.build(bench, shape, pool_bytes), pool_bytes

    engine, pool_bytes = bench.model(f"engine:{shape.name}", load)
    if pool_bytes < needed:
        # Two engines do not fit, so that nothing may refer to the previous one.
        del engine
        bench.release_model()
        engine, _ = bench.model(f"engine:{shape.name}", load)
    return engine  # type: ignore[no-any-return]


def start(shape_name: str, bench: Bench) -> list[Row]:
    """Times an engine's start: weights, warm-up, and the capture of all graphs."""
    case = next(case for case in GRID if case.shape_name == shape_name)
    bench.release_model()
    began_s = perf_counter()
    engine = engine_for(bench, case, 6 * (NUM_STEPS + 8))
    took_s = perf_counter() - began_s
    graphs = getattr(engine._runner, "graphs", None)
    capture_s = graphs.capture_s if graphs else []
    return [
        {
            "name": f"{shape_name}, dummy weights",
            "start_s": took_s,
            "capture_s": sum(capture_s),
            "first_capture_s": capture_s[0] if capture_s else None,
            "num_graphs": max(0, len(capture_s) - 1),
        }
    ]


def decode(case: Case, bench: Bench) -> list[Row]:
    """Time per output token beside what the ceilings allow: products with weights, bound by their bytes or, from some
    190 rows on, by their operations; then keys and values by their bytes."""
    assert bench.ceilings is not None
    num_steps = bench.size(NUM_STEPS, 4)
    engine = engine_for(bench, case, 6 * (num_steps + 8))
    num_seqs, context = case.scaled(bench)
    times_s = step_times_s(steps := decode_steps(Driver(engine), num_seqs, context, num_steps))
    shape = case.shape(bench)
    weight_bytes, kv_bytes = shape.weight_bytes(num_seqs), num_seqs * context * shape.kv_bytes_per_token
    num_flops = num_seqs * (shape.flops_per_token(0) + 2 * shape.vocab_size * shape.hidden_size)
    products_s, kv_s = bench.ceilings.seconds(weight_bytes, num_flops), bench.ceilings.seconds(kv_bytes, 0.0)
    roofline_s = products_s + kv_s
    tpot_s = statistics.median(times_s)
    return [
        {
            "name": f"{shape.name}, {num_seqs} x {context}",
            "tpot_ms": tpot_s * 1e3,
            "slowest_ms": max(times_s) * 1e3,
            "roofline_ms": roofline_s * 1e3,
            "over_roofline": tpot_s / roofline_s,
            "over_bytes": tpot_s / bench.ceilings.seconds(weight_bytes + kv_bytes, 0.0),
            "tokens_per_s": num_seqs / tpot_s,
            "host_ms": median_host_s(steps) * 1e3,
            "wait_ms": statistics.median(step.wait_s for step in steps) * 1e3,
            "weight_gbytes": weight_bytes / 1e9,
            "kv_gbytes": kv_bytes / 1e9,
        }
    ]


def prefill(case: Case, bench: Bench) -> list[Row]:
    """Time to the first token of one prompt beside its operations over the matmul rate."""
    assert bench.ceilings is not None
    engine = engine_for(bench, case, 2)
    _, context = case.scaled(bench)
    times_s = []
    for seed in range(4):
        driver = Driver(engine, seed)
        driver.add(context, 1)
        began_s = perf_counter()
        _drain(driver)
        times_s.append(perf_counter() - began_s)
        driver.close()
    shape = case.shape(bench)
    num_flops = context * shape.flops_per_token((context - 1) / 2)
    took_s = statistics.median(times_s[1:])
    return [
        {
            "name": f"{shape.name}, prompt of {context}",
            "ttft_ms": took_s * 1e3,
            "tokens_per_s": context / took_s,
            "tflops": num_flops / took_s / 1e12,
            "of_matmul": num_flops / took_s / bench.ceilings.matmul_flops_per_s,
        }
    ]


def offline(case: Case, bench: Bench) -> list[Row]:
    """A whole workload without the wire: num_seqs prompts at once, each generates output_len tokens."""
    engine = engine_for(bench, case, bench.output_len)
    num_seqs, context = case.scaled(bench)
    # The first run is the warm-up.
    for seed in range(2):
        driver = Driver(engine, seed)
        groups = [driver.add(context, bench.output_len) for _ in range(num_seqs)]
        began_s = perf_counter()
        steps = _drain(driver)
        took_s = perf_counter() - began_s
        driver.close()
    num_tokens = sum(len(sequence.token_ids) - context for group in groups for sequence in group.sequences)
    assert num_tokens == num_seqs * bench.output_len, num_tokens
    decodes_s = [t for t, step in zip(step_times_s(steps), steps[1:], strict=True) if step.num_sampled == num_seqs]
    return [
        {
            "name": f"engine, {case.shape_name}, {num_seqs} x {context} -> {bench.output_len}",
            "output_tokens_per_s": num_tokens / took_s,
            "duration_s": took_s,
            "tpot_ms": statistics.median(decodes_s) * 1e3 if decodes_s else None,
        }
    ]


def profile(case: Case, bench: Bench) -> list[Row]:
    """Which kernels decode steps spend their time in."""
    engine = engine_for(bench, case, 512)
    num_seqs, context = case.scaled(bench)
    driver = Driver(engine)
    block_size = engine.info.block_size
    for _ in range(num_seqs):
        driver.add(max(1, context // block_size * block_size - block_size) + 1, 64, cached=True)
    for _ in range(16):
        driver.step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(NUM_PROFILED):
            driver.step()
    driver.close()
    return profile_rows(_kernels(profiler, bench.device.type))


def _kernels(profiler: torch.profiler.profile, device_type: str) -> Iterator[tuple[str, float, int]]:
    """Returns (name, total microseconds, number of calls) of each kernel that ran on the device."""
    for entry in profiler.key_averages():
        total_us = entry.self_device_time_total if device_type == "cuda" else entry.self_cpu_time_total
        if str(entry.device_type).lower().endswith(device_type) and total_us > 0:
            yield entry.key, float(total_us), int(entry.count)


def profile_rows(kernels: Iterable[tuple[str, float, int]]) -> list[Row]:
    """One row for each name, as far as it is shown, the longest in all first: of a step, and of one call on average.

    A kernel that is launched early is on the device while it waits for the one before: that time counts in both, and
    the sum may exceed the step.

    Args:
        kernels: (name, microseconds, calls) in NUM_PROFILED steps; a name may occur several times.
    """
    totals: dict[str, tuple[float, int]] = {}
    for key, us, count in kernels:
        name = key[:NUM_NAME_CHARS]
        before_us, before = totals.get(name, (0.0, 0))
        totals[name] = (before_us + us, before + count)
    rows: list[Row] = [
        {
            "name": name,
            "us_per_step": us / NUM_PROFILED,
            "calls_per_step": count / NUM_PROFILED,
            "us_per_call": us / count,
        }
        for name, (us, count) in sorted(totals.items(), key=lambda item: -item[1][0])
    ]
    rest_us, sum_us = (sum(row["us_per_step"] for row in part) for part in (rows[NUM_PROFILE_ROWS:], rows))
    return [
        *rows[:NUM_PROFILE_ROWS],
        {"name": "the rest", "us_per_step": rest_us},
        {"name": "sum", "us_per_step": sum_us},
    ]


def _drain(driver: Driver) -> list[engine_driver.Step]:
    steps = []
    while (step := driver.step()) is not None:
        steps.append(step)
    return steps


DECODES = tuple(Part(f"engine:{case.name}", partial(decode, case), 120.0) for case in (*GRID, *EXTRA))
PREFILLS = tuple(
    Part(f"prompt:{case.name}", partial(prefill, case), 120.0)
    for case in (Case("llama-8b", 1, K), Case("llama-8b", 1, 8 * K), Case("qwen3-30b-a3b", 1, 8 * K))
)
OFFLINE = tuple(Part(f"offline:{case.name}", partial(offline, case), 180.0) for case in WORKLOADS)
PROFILES = tuple(
    Part(f"profile:{case.name}", partial(profile, case), 120.0)
    for case in GRID
    if (case.num_seqs, case.context) in ((1, K), (64, 8 * K), (256, K))
)
STARTS = tuple(
    Part(f"start:{name}", partial(start, name), 120.0) for name in dict.fromkeys(case.shape_name for case in GRID)
)
PARTS = (*STARTS, *DECODES, *PREFILLS, *OFFLINE, *PROFILES)
