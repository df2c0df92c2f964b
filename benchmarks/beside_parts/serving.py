"""Each server alone on the device, under the same load: the same prompts at the same times, the same arithmetic."""

import json
import math
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
from machine import spread
from pagewire.bench.arrivals import arrival_times_s
from pagewire.bench.grpc_sender import GrpcTarget, serialize
from pagewire.bench.metrics import RequestOutcome, compute_metrics
from pagewire.bench.runner import Load, offer
from pagewire.bench.workloads import Prompt
from pagewire.sampling_params import SamplingParams
from servers import free_port, start

from beside_parts.entrant import EngineDied, Entrant, gpu_state
from beside_parts.workloads import Size, mixed_lengths, token_ids

LOAD = Path(__file__).with_name("openai_load.py")
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
FIGURES = (
    "output_throughput",
    *(f"{point}_{name}_ms" for name in ("ttft", "tpot", "itl", "token_itl") for point in ("p50", "p99")),
)
"""Keys of pagewire.bench.metrics that are kept of each run."""
FIRST_SEED = 7


@dataclass(frozen=True, slots=True)
class ServedLoad:
    """Requests that are offered to a server."""

    title: str
    num_requests: int
    lengths: tuple[int, int] | None
    """Prompt and output tokens of every request; None: mixed."""
    max_concurrency: int | None = None
    requests_per_s: float = math.inf
    num_runs: int = 1


LOADS = {
    "warm": ServedLoad("warm-up", 64, (1024, 128), 64),
    "closed256-1024-128": ServedLoad("256 streams, 1,024 → 128", 512, (1024, 128), 256, num_runs=2),
    "closed256-mixed": ServedLoad("256 streams, mixed lengths", 700, None, 256),
    "rate24-1024-128": ServedLoad("24 requests a second, 1,024 → 128", 480, (1024, 128), requests_per_s=24.0),
    "closed1-1024-128": ServedLoad("1 stream, 1,024 → 128", 6, (1024, 128), 1),
}
"""As with cases, a name is part of what the prompts are drawn from."""
WARM_UP, WARM_UP_SEED = "warm", 99


@dataclass(frozen=True, slots=True)
class Offered:
    """One run's requests and when they are sent."""

    prompts: list[list[int]]
    max_tokens: list[int]
    arrivals_s: list[float]
    max_concurrency: int | None

    @classmethod
    def of(cls, name: str, seed: int, size: Size) -> "Offered":
        """The same for every server."""
        load = LOADS[name]
        num = size.of(load.num_requests)
        rng = np.random.default_rng([seed, load.num_requests, len(name)])
        prompt_lens, output_lens = mixed_lengths(num) if load.lengths is None else ([n] * num for n in load.lengths)
        return cls(
            prompts=[token_ids(rng, size.of(length), size) for length in prompt_lens],
            max_tokens=[size.of(length) for length in output_lens],
            arrivals_s=arrival_times_s(num, load.requests_per_s, 1.0, random.Random(seed)),
            max_concurrency=load.max_concurrency,
        )


@dataclass(slots=True)
class Served:
    """The runs of all loads, as they come."""

    entrants: Sequence[Entrant]
    size: Size
    log_folder: Path
    starts: dict[str, Any] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def measure(self, names: Sequence[str]) -> None:
        """Starts one server after another and offers it every load. Raises EngineDied."""
        for entrant in self.entrants:
            log = self.log_folder / f"{entrant.label}.serve.log"
            began_s = time.perf_counter()
            with server(entrant, log) as process_and_address:
                process, address = process_and_address
                self.starts[entrant.label] = {"ready_s": time.perf_counter() - began_s, "gpu": gpu_state()}
                self._offer(entrant, process, address, WARM_UP, WARM_UP_SEED)
                for name in names:
                    for run in range(LOADS[name].num_runs):
                        self.runs.append(self._offer(entrant, process, address, name, FIRST_SEED + run))

    def _offer(self, entrant: Entrant, process: "Process", address: str, name: str, seed: int) -> dict[str, Any]:
        offered = Offered.of(name, seed, self.size)
        offer_to = _offer_vllm if entrant.kind == "vllm" else _offer_pagewire
        outcomes, duration_s = offer_to(entrant, address, offered)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        if errors or not process.is_running():
            raise EngineDied(f"{entrant.label}, {name}: {len(errors)} of {len(outcomes)} requests failed: {errors[:1]}")
        num_tokens = sum(outcome.num_output_tokens for outcome in outcomes)
        if num_tokens != sum(offered.max_tokens):
            raise EngineDied(f"{entrant.label}, {name}: {num_tokens} of {sum(offered.max_tokens)} tokens came")
        figures = compute_metrics(outcomes, duration_s)
        print(f"{entrant.label:12} {name:22} {figures['output_throughput']:10,.0f} tok/s", flush=True)
        kept = {key: figures[key] for key in FIGURES}
        return {"load": name, "entrant": entrant.label, "seed": seed, "gpu": gpu_state()} | kept

    def rows(self) -> list[dict[str, Any]]:
        """One for each load that every entrant has served."""
        rows = []
        for name, load in LOADS.items():
            runs = {
                e.label: [r for r in self.runs if (r["load"], r["entrant"]) == (name, e.label)] for e in self.entrants
            }
            if all(runs.values()):
                figures = {
                    label: {key: spread([run[key] for run in own]) for key in FIGURES} for label, own in runs.items()
                }
                rows.append({"load": name, "title": load.title, "num_runs": load.num_runs, "figures": figures})
        return rows


class Process:
    """A server's process, however it was started."""

    def __init__(self, pid: int, poll: "subprocess.Popen[Any] | None" = None) -> None:
        self._pid, self._poll = pid, poll

    def is_running(self) -> bool:
        """False once it has ended."""
        return self._poll.poll() is None if self._poll else psutil.pid_exists(self._pid)


def flags(options: dict[str, Any]) -> list[str]:
    """Options of an LLM as flags of the server."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, str(value)]
    return words


@contextmanager
def server(entrant: Entrant, log: Path) -> Iterator[tuple[Process, str]]:
    """The entrant's server until the context is left: its process and its address. Raises EngineDied."""
    options = dict(entrant.options)
    model = options.pop("model")
    if entrant.kind == "vllm":
        options.pop("skip_tokenizer_init", None)
        with _vllm_server(entrant.python, model, options, log) as running:
            yield running
    else:
        command = [entrant.python, "-m", "pagewire", "serve", model, "--port", "0", "--metrics-port", str(free_port())]
        try:
            with start([*command, *flags(options)]) as running:
                yield Process(running.process.pid), running.address
        except RuntimeError as error:
            raise EngineDied(str(error)) from error


@contextmanager
def _vllm_server(python: str, model: str, options: dict[str, Any], log: Path) -> Iterator[tuple[Process, str]]:
    port = free_port()
    place = ["--port", str(port), "--served-model-name", "m", "--disable-uvicorn-access-log"]
    command = [python, "-m", "vllm.entrypoints.cli.main", "serve", model, *place, *flags(options)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        _wait_until_healthy(process, port, log)
        yield Process(process.pid, process), f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end_s:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise EngineDied(f"vllm serve did not become healthy (status {process.poll()}); its log: {log}")


def _offer_vllm(entrant: Entrant, address: str, offered: Offered) -> tuple[list[RequestOutcome], float]:
    load: dict[str, Any] = {"url": f"{address}/v1/completions", "model": "m", "prompts": offered.prompts}
    load |= {"max_tokens": offered.max_tokens, "arrivals_s": offered.arrivals_s}
    load |= {"max_concurrency": offered.max_concurrency}
    command = [entrant.python, str(LOAD)]
    done = subprocess.run(command, input=json.dumps(load), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise EngineDied(f"{entrant.label}: the load generator ended with status {done.returncode}")
    result = json.loads(done.stdout)
    pairs = zip(result["outcomes"], offered.max_tokens, strict=True)
    return [_outcome(recorded, count) for recorded, count in pairs], result["duration_s"]


def _outcome(recorded: dict[str, Any], num_tokens: int) -> RequestOutcome:
    """Events that were read at once are one message. An event may carry more than one token: what is missing at the end
    is counted to the last message."""
    messages = [(time_s, len(list(events))) for time_s, events in groupby(recorded["times_s"])]
    counts = [count for _, count in messages]
    if counts and not recorded["error"]:
        counts[-1] += num_tokens - sum(counts)
    return RequestOutcome(
        start_s=recorded["start_s"],
        end_s=recorded["end_s"],
        message_times_s=tuple(time_s for time_s, _ in messages),
        message_tokens=tuple(counts),
        error=recorded["error"],
    )


def _offer_pagewire(entrant: Entrant, address: str, offered: Offered) -> tuple[list[RequestOutcome], float]:
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    pairs = zip(offered.prompts, offered.max_tokens, strict=True)
    requests = [serialize(Prompt(ids, count), sampling) for ids, count in pairs]
    return uvloop.run(_send(address, Load(requests, offered.arrivals_s, offered.max_concurrency)))


async def _send(address: str, load: Load) -> tuple[list[RequestOutcome], float]:
    sender = GrpcTarget(address).connect()
    try:
        return await offer(load, sender, on_done=lambda _: None)
    finally:
        await sender.close()
