"""`pagewire bench`: offers a load to a running server, shows latency and throughput, and keeps them as JSON and PNG."""

import argparse
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pagewire.async_client import AsyncClient, bearer
from pagewire.bench import report, workloads
from pagewire.bench.arrivals import arrival_times_s
from pagewire.bench.metrics import RequestOutcome, compute_metrics
from pagewire.bench.options import add_arguments as add_arguments
from pagewire.bench.processes import Target, default_processes, offer_from_processes, run_event_loop
from pagewire.bench.runner import Load, Recording, offer, serialize
from pagewire.bench.workloads import LengthRange, Prompt
from pagewire.cli.server_flags import connection_from
from pagewire.errors import InvalidRequest
from pagewire.sampling_params import SamplingParams
from pagewire.v1 import inference_pb2


def run(args: argparse.Namespace) -> int:
    """Runs one benchmark; the exit status is 1 if no request completed."""
    _check(args)
    console = Console()
    model, outcomes, duration_s = run_event_loop(_measure(args))
    result = describe(args, model) | compute_metrics(outcomes, duration_s, args.metric_percentiles, args.goodput)
    report.print_tables(result, args.metric_percentiles, console)
    report.print_errors(outcomes, console)
    if args.save_result:
        report.write_json(result | (report.details(outcomes) if args.save_detailed else {}), args.save_result)
        console.print(f"Result: {args.save_result}")
    if args.plot:
        report.plot(outcomes, duration_s, _title(args, model), args.plot)
        console.print(f"Plot: {args.plot}")
    return 0 if result["completed"] else 1


def describe(args: argparse.Namespace, model: inference_pb2.Model) -> dict[str, Any]:
    """Returns the settings of the run under the key names of `vllm bench serve`."""
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": "pagewire",
        "endpoint_type": "pagewire",
        "label": None,
        "model_id": model.name,
        "tokenizer_id": model.name,
        "num_prompts": args.num_prompts,
        "dataset_name": args.dataset_name,
        "request_rate": "inf" if args.request_rate == inf else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "client_processes": _num_processes(args),
        **dict(args.metadata),
    }


async def _measure(args: argparse.Namespace) -> tuple[inference_pb2.Model, list[RequestOutcome], float]:
    connection = connection_from(args) | {"timeout_s": None}
    async with AsyncClient(**connection) as client:
        model = await client.get_model()
    rng = random.Random(args.seed)
    # Warm-ups get their own prompts. Otherwise the measured requests would find theirs in the prefix cache.
    prompts = _prompts(args, args.num_warmups + args.num_prompts, model, rng)
    sampling = SamplingParams(
        temperature=args.temperature, ignore_eos=args.ignore_eos, detokenize=args.detokenize, seed=args.seed
    )
    requests = [serialize(prompt, sampling) for prompt in prompts]
    load = Load(
        requests=requests[args.num_warmups :],
        arrivals_s=arrival_times_s(args.num_prompts, args.request_rate, args.burstiness, rng),
        max_concurrency=args.max_concurrency,
        metadata=bearer(connection["api_key"]),
        timeout_s=args.timeout,
    )
    warm_up = replace(load, requests=requests[: args.num_warmups], arrivals_s=[0.0] * args.num_warmups)
    target = Target(args.server, args.tls, args.tls_ca, args.tls_cert, args.tls_key)
    channels = target.connect()
    num_processes = _num_processes(args)
    try:
        await offer(warm_up, channels, on_done=lambda _: None)
        with _progress_bar(args.num_prompts, enabled=not args.no_progress) as on_done:
            if num_processes == 1:
                outcomes, duration_s = await offer(load, channels, on_done)
            else:
                outcomes, duration_s = await offer_from_processes(load, target, num_processes, on_done)
    finally:
        await channels.close()
    return model, outcomes, duration_s


def _prompts(
    args: argparse.Namespace, num_prompts: int, model: inference_pb2.Model, rng: random.Random
) -> list[Prompt]:
    input_len = LengthRange(args.random_input_len, args.random_range_ratio)
    output_len = LengthRange(args.random_output_len, args.random_range_ratio)
    token_ids = range(model.vocab_size)
    match args.dataset_name:
        case "file":
            return workloads.from_file(args.dataset_path, num_prompts, output_len, rng)
        case "shared-prefix":
            prefixes = workloads.Prefixes(args.num_prefixes, args.prefix_len)
            return workloads.shared_prefixes(num_prompts, prefixes, input_len, output_len, token_ids, rng)
        case _:
            return workloads.random_tokens(num_prompts, input_len, output_len, token_ids, rng)


def _check(args: argparse.Namespace) -> None:
    """Raises InvalidRequest for settings that would otherwise fail only after the run."""
    if args.dataset_name == "file" and args.dataset_path is None:
        raise InvalidRequest("--dataset-name file needs --dataset-path")
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequest("--plot needs matplotlib: pip install 'pagewire[bench]'")
    for path in filter(None, (args.save_result, args.plot)):
        if path.is_dir():
            raise InvalidRequest(f"{path} is a folder; a file's name is expected")


def _num_processes(args: argparse.Namespace) -> int:
    """Processes to offer the load from: what was asked for, but none without a request."""
    wanted: int = args.client_processes or default_processes(args.num_prompts, args.max_concurrency)
    num_prompts: int = args.num_prompts
    return min(wanted, num_prompts, args.max_concurrency or wanted)


@contextmanager
def _progress_bar(num_requests: int, *, enabled: bool) -> Iterator[Callable[[Recording | RequestOutcome], None]]:
    """Yields a function to call with each request that ended."""
    if not enabled or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns = (
        TextColumn("Requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}", style="red"),
    )
    # Redrawn only twice a second, because the server often runs on the same machine.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2) as progress:
        task = progress.add_task("Requests", total=num_requests, failures="")
        num_failed = 0

        def advance(done: Recording | RequestOutcome) -> None:
            nonlocal num_failed
            num_failed += bool(done.error)
            progress.update(task, advance=1, failures=f"{num_failed} failed" if num_failed else "")

        yield advance


def _title(args: argparse.Namespace, model: inference_pb2.Model) -> str:
    rate = "closed loop" if args.request_rate == inf else f"{args.request_rate:g} requests/s"
    limit = f", at most {args.max_concurrency} open" if args.max_concurrency else ""
    return f"{model.name}: {args.num_prompts} requests ({args.dataset_name}), {rate}{limit}"
