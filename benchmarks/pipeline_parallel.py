"""What plans in flight do for a pipeline of two stages: throughput with one plan at a time, and with three.

The shards, the router and what goes between them are real; what a stage computes is a tiny model and a sleep that takes
as long as a large one would. Its length is made up of a time for each token, which is what arithmetic takes, and of a
time for each step, which is what reading the weights takes. Plans in flight that decode different requests share the
first out, not the second: where a step takes the same time whatever it computes, two half batches at a time are as fast
as one whole one.

Each stage notes when it computed. From that come the share of the time that it did, and a trace for chrome://tracing or
https://ui.perfetto.dev, with the bubbles between its steps.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import RESULTS, print_table, save_result, spread
from models import LLAMA_1M, model_directory
from servers import ROUTER, start

NUM_STAGES = 2
INFLIGHT = {"one plan": 1, "three plans": 2}
"""By name: the router's --max-inflight, to which it adds one for each further stage unless it is 1."""
MAX_TRACED_S = 2.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage's step takes, in milliseconds."""

    name: str
    step_ms: float
    token_ms: float


COSTS = (Cost("arithmetic", 0.0, 4.0), Cost("arithmetic and weights", 32.0, 2.0), Cost("weights", 64.0, 0.0))
"""Long enough that what a busy machine adds to each step is little beside them."""


@dataclass(frozen=True, slots=True)
class Work:
    """One step of a stage."""

    stage: int
    began_s: float
    ended_s: float
    num_tokens: int


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=32, metavar="N", help="requests at a time (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=24, metavar="N", help="tokens of an answer (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="runs of each kind (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="where the result goes")
    return parser


def main() -> None:
    """Measures, prints a table and keeps result and trace."""
    if sys.argv[1:2] == ["--stage"]:
        sys.exit(run_stage(*sys.argv[2:]))
    args = build_parser().parse_args()
    result: dict[str, Any] = {}
    events: list[dict[str, Any]] = []
    for cost in COSTS:
        runs = {name: measure(cost, inflight, args) for name, inflight in INFLIGHT.items()}
        alone, pipelined = (run["tokens_per_s"]["median"] for run in runs.values())
        result[cost.name] = {"cost": asdict(cost), "runs": runs, "speedup": pipelined / alone}
        for name, run in runs.items():
            events += trace_events(f"{cost.name}, {name}", len(events), run.pop("work"))
    show(result)
    save_result(
        "pipeline-parallel", {"streams": args.streams, "tokens": args.tokens, "rounds": args.rounds}, result, args.out
    )
    trace = args.out / "pipeline-parallel-trace.json"
    trace.write_text(json.dumps({"traceEvents": events}) + "\n")
    print(f"Trace: {trace}")


# A stage: a shard whose steps take longer.


def run_stage(log: str, step_ms: str, token_ms: str, *words: str) -> int:
    """Runs a shard with these arguments, which notes its steps in a file."""
    from pagewire_shard.cli import main as shard
    from pagewire_shard.models.decoder import Decoder

    forward = Decoder.forward
    with open(log, "w") as notes:

        def longer(self: Decoder, batch: Any, *args: Any) -> Any:
            began_s = time.monotonic()
            result = forward(self, batch, *args)
            num_tokens = int(batch.query_start_loc[-1])
            end_s = began_s + (float(step_ms) + num_tokens * float(token_ms)) / 1e3
            time.sleep(max(0.0, end_s - time.monotonic()))
            work = Work(self.spec.stage.index, began_s, time.monotonic(), num_tokens)
            notes.write(json.dumps(asdict(work)) + "\n")
            notes.flush()
            return result

        Decoder.forward = longer  # type: ignore[method-assign, assignment]
        return shard(words)


@contextlib.contextmanager
def service(cost: Cost, max_inflight: int, folder: Path) -> Iterator[str]:
    """A group of two stages and a router. Yields the router's address."""
    model = str(model_directory(LLAMA_1M))
    with contextlib.ExitStack() as stack:
        shards = []
        # The last stage is rank 0, which the others look for.
        for stage in reversed(range(NUM_STAGES)):
            listen = f"unix:{folder}/shard-{stage}.sock"
            shards.append(listen)
            words = [
                "--model",
                model,
                "--device",
                "cpu",
                "--dtype",
                "float32",
                "--cpu-threads",
                "1",
                "--listen",
                listen,
            ]
            words += [
                "--pp-size",
                str(NUM_STAGES),
                "--pp-rank",
                str(stage),
                "--rendezvous",
                f"unix:{folder}/group.sock",
            ]
            words += ["--max-num-batched-tokens", "512", "--kv-cache-memory", "64MiB", "--no-structured-outputs"]
            log = str(folder / f"stage-{stage}.jsonl")
            command = [sys.executable, __file__, "--stage", log, str(cost.step_ms), str(cost.token_ms), *words]
            stack.enter_context(start_soon(command))
        router = [ROUTER, "--shards", ",".join(shards), "--listen", "127.0.0.1:0", "--max-inflight", str(max_inflight)]
        yield stack.enter_context(start(router)).address


@contextlib.contextmanager
def start_soon(command: Sequence[str]) -> Iterator[None]:
    """Runs a shard, which is ready only when the other one has come: the router waits for both."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


# What is measured.


def measure(cost: Cost, max_inflight: int, args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of all streams together, and what the stages did in the last round."""
    with tempfile.TemporaryDirectory() as name, service(cost, max_inflight, Path(name)) as address:
        rounds = asyncio.run(run_rounds(address, args))
        work = [
            Work(**json.loads(line))
            for stage in range(NUM_STAGES)
            for line in (Path(name) / f"stage-{stage}.jsonl").read_text().splitlines()
        ]
    began_s, ended_s = rounds[-1]
    last = [each for each in work if began_s <= each.began_s and each.ended_s <= ended_s]
    num_tokens = args.streams * args.tokens
    return {
        "tokens_per_s": spread([num_tokens / (end - begin) for begin, end in rounds]),
        "busy_share": [busy_share([each for each in last if each.stage == stage]) for stage in range(NUM_STAGES)],
        "bubble_ms": [bubble_ms([each for each in last if each.stage == stage]) for stage in range(NUM_STAGES)],
        "work": last,
    }


async def run_rounds(address: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Begin and end of each round, after one that does not count."""
    from pagewire import AsyncClient, SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=args.tokens, ignore_eos=True)
    rounds = []
    async with AsyncClient(address, timeout_s=600) as client:
        for number in range(args.rounds + 1):
            prompts = [[1 + number, 2 + index, 3, 4] for index in range(args.streams)]
            began_s = time.monotonic()
            await asyncio.gather(*(client.complete({"prompt_token_ids": prompt}, params) for prompt in prompts))
            rounds.append((began_s, time.monotonic()))
    return rounds[1:]


def busy_share(work: Sequence[Work]) -> float:
    """Share of the time from its first step to its last that a stage computed."""
    return sum(each.ended_s - each.began_s for each in work) / (work[-1].ended_s - work[0].began_s)


def bubble_ms(work: Sequence[Work]) -> float:
    """Time between two steps of a stage, on average."""
    gaps = [after.began_s - before.ended_s for before, after in pairwise(work)]
    return 1e3 * sum(gaps) / len(gaps)


def trace_events(name: str, number: int, work: Sequence[Work]) -> list[dict[str, Any]]:
    """A run as a process of a Chrome trace, its stages as threads; the middle of the round."""
    first_s = min(each.began_s for each in work)
    middle_s = (first_s + max(each.ended_s for each in work)) / 2
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}}]
    for each in work:
        if middle_s <= each.began_s < middle_s + MAX_TRACED_S:
            times = {"ts": 1e6 * (each.began_s - first_s), "dur": 1e6 * (each.ended_s - each.began_s)}
            what = {"name": f"{each.num_tokens} tokens", "ph": "X", "pid": number, "tid": each.stage}
            events.append(what | {key: round(value) for key, value in times.items()})
    return events


def show(result: dict[str, Any]) -> None:
    """Prints the table."""
    rows = []
    for name, each in result.items():
        for inflight, run in each["runs"].items():
            busy = ", ".join(f"{share:.0%}" for share in run["busy_share"])
            rows.append((f"{name}: {inflight}", run["tokens_per_s"]["median"], busy))
        rows.append((f"{name}: times as fast", each["speedup"], ""))
    print_table("two stages", ("a step takes", "tokens/s", "stages busy"), rows)


if __name__ == "__main__":
    main()
