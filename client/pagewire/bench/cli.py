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

from pagewire.async_client import AsyncClient
from pagewire.bench import report, workloads
from pagewire.bench.arrivals import arrival_times_s
from pagewire.bench.grpc_sender import GrpcTarget
from pagewire.bench.http_sender import CHAT, COMPLETIONS, HttpSender, HttpTarget
from pagewire.bench.metrics import RequestOutcome, compute_metrics
from pagewire.bench.options import LENGTHS
from pagewire.bench.options import add_arguments as add_arguments
from pagewire.bench.processes import default_processes, offer_from_processes, run_event_loop
from pagewire.bench.runner import Load, offer
from pagewire.bench.sending import Recording, Sender, Session, Target
from pagewire.bench.workloads import LengthRange, Prompt
from pagewire.cli.server_flags import api_key_from, connection_from
from pagewire.errors import InvalidRequest, Unavailable
from pagewire.sampling_params import SamplingParams


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


def describe(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """Returns the settings of the run under the key names of `vllm bench serve`."""
    return {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "endpoint_type": args.backend,
        "label": None,
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": args.num_prompts,
        "dataset_name": args.dataset_name,
        "request_rate": "inf" if args.request_rate == inf else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "client_processes": _num_processes(args),
        **dict(args.metadata),
    }


async def _measure(args: argparse.Namespace) -> tuple[str, list[RequestOutcome], float]:
    target, model, vocab_size = await (_grpc_target(args) if args.backend == "pagewire" else _http_target(args))
    sender = target.connect()
    num_processes = _num_processes(args)
    try:
        load, warm_up = await _loads(args, sender, range(vocab_size))
        await offer(warm_up, sender, on_done=lambda _: None)
        with _progress_bar(_num_requests(args), enabled=not args.no_progress) as on_done:
            if num_processes == 1:
                outcomes, duration_s = await offer(load, sender, on_done)
            else:
                outcomes, duration_s = await offer_from_processes(load, target, num_processes, on_done)
    finally:
        await sender.close()
    return model, outcomes, duration_s


async def _grpc_target(args: argparse.Namespace) -> tuple[Target, str, int]:
    """Returns the server, the model's name, and its number of token ids."""
    connection = connection_from(args) | {"timeout_s": None}
    async with AsyncClient(**connection) as client:
        model = await client.get_model()
    sampling = SamplingParams(
        temperature=args.temperature, ignore_eos=args.ignore_eos, detokenize=args.detokenize, seed=args.seed
    )
    tls = args.tls, args.tls_ca, args.tls_cert, args.tls_key
    target = GrpcTarget(args.server, sampling, *tls, api_key=connection["api_key"], timeout_s=args.timeout)
    return target, model.name, model.vocab_size


async def _http_target(args: argparse.Namespace) -> tuple[Target, str, int]:
    is_chat = args.backend == "openai-chat"
    target = HttpTarget(
        args.base_url.rstrip("/"),
        args.model or "",
        args.endpoint or (CHAT if is_chat else COMPLETIONS),
        is_chat=is_chat,
        fields={"temperature": args.temperature, "ignore_eos": args.ignore_eos, **args.extra_body},
        api_key=api_key_from(args),
        **{name: getattr(args, name) for name in ("tls_ca", "tls_cert", "tls_key")},
        timeout_s=args.timeout,
        needs_token_ids=args.dataset_name == "agent",
    )
    if not target.model:
        sender = target.connect()
        told = await sender.ask("GET", "/v1/models")
        await sender.close()
        target = replace(target, model=told["data"][0]["id"])
    return target, target.model, args.random_vocab_size


async def _loads(args: argparse.Namespace, sender: Sender, token_ids: range) -> tuple[Load, Load]:
    """Returns the load of the run, and that before it, which is not measured.

    Warm-ups get their own prompts. Otherwise the measured requests would find theirs in the prefix cache.
    """
    rng = random.Random(args.seed)
    turns = _turns(args, args.num_warmups + args.num_prompts, token_ids, rng)
    if args.backend == "openai-chat":
        assert isinstance(sender, HttpSender)
        turns = [[await _as_text(prompt, sender) for prompt in prompts] for prompts in turns]
    requests: list[bytes | Session] = [
        sender.serialize(prompts[0].content, prompts[0].max_tokens)
        if len(prompts) == 1
        else Session(prompts, args.turn_delay)
        for prompts in turns
    ]
    load = Load(
        requests=requests[args.num_warmups :],
        arrivals_s=arrival_times_s(args.num_prompts, args.request_rate, args.burstiness, rng),
        max_concurrency=args.max_concurrency,
    )
    return load, replace(load, requests=requests[: args.num_warmups], arrivals_s=[0.0] * args.num_warmups)


async def _as_text(prompt: Prompt, sender: HttpSender) -> Prompt:
    """A prompt of token ids as text, for servers that take text alone. Raises InvalidRequest."""
    if isinstance(prompt.content, str):
        return prompt
    try:
        told = await sender.ask("POST", "/detokenize", {"tokens": prompt.content})
    except Unavailable as error:
        raise InvalidRequest(f"random conversations need /detokenize, or take --dataset-name file: {error}") from None
    return Prompt(str(told["prompt"]), prompt.max_tokens)


def _turns(args: argparse.Namespace, num_prompts: int, token_ids: range, rng: random.Random) -> list[list[Prompt]]:
    """Returns the requests of each session; of most workloads it is one."""
    lengths = LENGTHS.get(args.lengths, {})
    input_len = LengthRange(lengths.get("random_input_len", args.random_input_len), args.random_range_ratio)
    output_len = LengthRange(lengths.get("random_output_len", args.random_output_len), args.random_range_ratio)
    prefixes = workloads.Prefixes(args.num_prefixes, args.prefix_len)
    match args.dataset_name:
        case "file":
            prompts = workloads.from_file(args.dataset_path, num_prompts, output_len, rng)
        case "agent":
            shape = num_prompts, args.num_turns, prefixes, input_len, output_len
            return workloads.agent_sessions(*shape, token_ids, rng)
        case "shared-prefix":
            prompts = workloads.shared_prefixes(num_prompts, prefixes, input_len, output_len, token_ids, rng)
        case _:
            prompts = workloads.random_tokens(num_prompts, input_len, output_len, token_ids, rng)
    return [[prompt] for prompt in prompts]


def _num_requests(args: argparse.Namespace) -> int:
    num_requests: int = args.num_prompts * (args.num_turns if args.dataset_name == "agent" else 1)
    return num_requests


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


def _title(args: argparse.Namespace, model: str) -> str:
    rate = "closed loop" if args.request_rate == inf else f"{args.request_rate:g} requests/s"
    limit = f", at most {args.max_concurrency} open" if args.max_concurrency else ""
    return f"{model}: {_num_requests(args)} requests ({args.dataset_name}), {rate}{limit}"
