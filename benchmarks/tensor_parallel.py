"""A model on several devices against the same model on one: greedy tokens, decode steps, and the collectives alone.

On two GPUs, `python benchmarks/tensor_parallel.py` measures all of it in one call, with the shape of Llama-3.1-8B and
dummy weights in bfloat16; on a CPU, --tiny shows that it runs. A decode step is what another token of all sequences
of a batch takes: the difference of a long and a short run, so that starts and prompts cancel out. Greedy tokens are
compared up to the first that differs: in bfloat16 sums of another order may choose the other one of two nearly equal
logits.

The collectives are timed in processes of their own: sums of the sizes that decodes have, on a GPU also within a graph,
and the two ways to agree on sampled tokens: all ranks gather all logits and sample, or rank 0 alone does and tells the
others.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from gpu_parts.shapes import SHAPES, model_directory
from machine import RESULTS, print_table, save_result, spread

SIZES = tuple(1 << power for power in range(13, 25))
"""Bytes of the sums: 8 KiB to 16 MiB."""
BATCHES = (1, 64)
PROMPT_LEN = 64
SHORT, LONG = 32, 160
"""Tokens of the two runs that a step is the difference of."""
NUM_COMPARED = 8
"""Prompts whose greedy tokens are compared."""
REPEATS = 50
GRAPH_SUMS = 20


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--size", type=int, default=2, metavar="N", help="ranks (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of each kind (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows only that the benchmark runs")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store-port", type=int, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measures, prints tables and keeps the result."""
    args = build_parser().parse_args()
    if args.rank is not None:
        print(json.dumps(time_collectives(args)))
        return
    shape = SHAPES[args.shape].tiny() if args.tiny else SHAPES[args.shape]
    with tempfile.TemporaryDirectory() as name:
        directory = model_directory(shape, Path(name))
        runs = {size: measure_model(directory, size, args) for size in (1, args.size)}
    collectives = run_collectives(args)
    result = {"model": {str(size): run for size, run in runs.items()}, "collectives": collectives}
    result["greedy"] = compare(runs[1]["tokens"], runs[args.size]["tokens"])
    show(args, runs, result)
    settings = {"shape": shape.name, "size": args.size, "device": args.device, "tiny": args.tiny}
    save_result(f"tensor-parallel-{shape.name}-{args.size}", settings, result, args.out)


# The model.


def measure_model(directory: Path, size: int, args: argparse.Namespace) -> dict[str, Any]:
    """Greedy tokens of some prompts, and the decode step of each batch in milliseconds."""
    from pagewire import LLM, SamplingParams

    options: dict[str, Any] = {"load_format": "dummy", "device": args.device, "max_model_len": 1024}
    if args.device == "cpu":
        options |= {"dtype": "float32", "cpu_threads": 1, "kv_cache_memory": "256MiB"}
    with LLM(str(directory), tensor_parallel_size=size, **options) as llm:
        runs = count(1)

        def run(batch: int, num_tokens: int) -> tuple[float, list[list[int]]]:
            params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
            # Other prompts in each run: none is found in the prefix cache.
            number = next(runs)
            prompts = [prompt(number, i) for i in range(batch)]
            start_s = perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return perf_counter() - start_s, [output.outputs[0].token_ids for output in outputs]

        tokens = run(NUM_COMPARED, LONG)[1]
        steps = {}
        for batch in BATCHES:
            run(batch, SHORT)
            times = [run(batch, LONG)[0] - run(batch, SHORT)[0] for _ in range(args.rounds)]
            steps[str(batch)] = spread([1000 * each / (LONG - SHORT) for each in times])
    return {"tokens": tokens, "step_ms": steps}


def prompt(run: int, index: int) -> list[int]:
    """Some tokens that are the same in every call."""
    return [1 + (7919 * run + 104_729 * index + 31 * place * (index + 1)) % 590 for place in range(PROMPT_LEN)]


def compare(alone: Sequence[Sequence[int]], shared: Sequence[Sequence[int]]) -> dict[str, Any]:
    """How many answers are equal, and how many tokens the others have in common."""
    common = []
    for a, b in zip(alone, shared, strict=True):
        common.append(next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a)))
    return {"num_equal": sum(n == len(a) for n, a in zip(common, alone, strict=True)), "common_tokens": common}


# The collectives.


def run_collectives(args: argparse.Namespace) -> dict[str, Any]:
    """Times them in one process for each rank. Returns what rank 0 measured."""
    from pagewire_shard.parallel.process_group import dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = []
    for rank in range(args.size):
        words = ["--rank", str(rank), "--store-port", str(store.port), "--size", str(args.size)]
        gpu = {"CUDA_VISIBLE_DEVICES": str(rank)} if args.device == "cuda" else {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--device", args.device, *words]
        ranks.append(subprocess.Popen(command, env=os.environ | gpu, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit("a rank has failed; see above")
    result: dict[str, Any] = json.loads(outputs[0])
    return result


def time_collectives(args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of sums by bytes, and of the two ways to agree on tokens."""
    import torch
    from pagewire_shard.parallel.process_group import dist, process_collectives
    from pagewire_shard.parallel.ranks import Ranks

    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    store, ranks = dist.TCPStore("127.0.0.1", args.store_port), Ranks(args.rank, args.size)
    collectives = process_collectives(store, ranks, device, "127.0.0.1")
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    times: dict[str, Any] = {"eager_us": {}, "in_graph_us": {}, "agree_us": {}}
    for size in SIZES:
        x = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device)
        times["eager_us"][size] = timed(lambda x=x: collectives.all_reduce(x), device)  # type: ignore[misc]
        if args.device == "cuda":
            times["in_graph_us"][size] = in_graph(lambda x=x: collectives.all_reduce(x), device)  # type: ignore[misc]
    for batch in BATCHES:
        logits = torch.zeros(batch, 128_256 // args.size, dtype=dtype, device=device)
        times["agree_us"][batch] = agreements(collectives, logits, device)
    return times


def agreements(collectives: Any, logits: Any, device: Any) -> dict[str, float]:
    """Both end with the most probable token of each row on each rank; the greatest is found in the same way."""
    import torch

    def all_sample() -> None:
        collectives.all_gather(logits).transpose(0, 1).flatten(1).argmax(1)

    ids, size, rank = torch.zeros(len(logits), dtype=torch.int64, device=device), *ranks_of(collectives)
    parts = [[torch.empty_like(logits) for _ in range(size)]] if rank == 0 else []

    def one_samples() -> None:
        collectives._group.gather(parts, [logits]).wait()
        if rank == 0:
            ids.copy_(torch.cat(parts[0], dim=1).argmax(1))
        collectives._group.broadcast(ids, 0).wait()

    return {"all_sample": timed(all_sample, device), "rank_0_samples_and_tells": timed(one_samples, device)}


def ranks_of(collectives: Any) -> tuple[int, int]:
    """The number of ranks, and this one."""
    return collectives.ranks.size, collectives.ranks.rank


def timed(run: Callable[[], object], device: Any, repeats: int = REPEATS) -> float:
    """Microseconds of one call, of which many follow each other."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(5):
        run()
    wait()
    start_s = perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return 1e6 * (perf_counter() - start_s) / repeats


def in_graph(run: Callable[[], object], device: Any) -> float:
    """The same of one call among many in a CUDA graph."""
    import torch

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_SUMS):
            run()
    return timed(graph.replay, device) / GRAPH_SUMS


def show(args: argparse.Namespace, runs: dict[int, dict[str, Any]], result: dict[str, Any]) -> None:
    """Prints the tables."""
    steps = []
    for batch in map(str, BATCHES):
        alone, shared = (runs[size]["step_ms"][batch]["median"] for size in (1, args.size))
        steps.append((batch, alone, shared, shared / alone))
    print_table("decode step, ms", ("batch", "1 rank", f"{args.size} ranks", "share"), steps)
    greedy = result["greedy"]
    print(f"greedy: {greedy['num_equal']} of {NUM_COMPARED} answers equal; common tokens {greedy['common_tokens']}")
    times = result["collectives"]
    sums = [(size, us, times["in_graph_us"].get(size, "")) for size, us in times["eager_us"].items()]
    print_table("sum over all ranks, us", ("bytes", "eager", "in a graph"), sums)
    agree = [(batch, *each.values()) for batch, each in times["agree_us"].items()]
    print_table("agree on tokens, us", ("batch", "all sample", "rank 0 samples and tells"), agree)


if __name__ == "__main__":
    main()
