"""`pagewire demo`: serves the bundled model and completes three prompts, token by token."""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field

from pagewire.cli.streaming import Reply, show
from pagewire.client import Client
from pagewire.events import Event, TokenDelta
from pagewire.sampling_params import SamplingParams
from pagewire.server_process import ServerProcess

NEXT = """
Next, serve it (`make serve`, or `pagewire serve` in the environment), and from another terminal:

  curl -s http://localhost:8000/v1/completions -H 'content-type: application/json' \\
      -d '{"prompt": "The future of AI is", "max_tokens": 32}'

http://localhost:8000 in a browser has a page to talk to the model."""
PROMPTS = ("Hello, my name is", "The capital of France is", "The future of AI is")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommand's arguments."""
    parser.add_argument("--model", default="demo", help="Hugging Face directory or hub id (default: the bundled model)")
    parser.add_argument(
        "--max-tokens", type=int, default=40, metavar="N", help="for each prompt (default: %(default)s)"
    )


@dataclass(slots=True)
class _Totals:
    """Counts and times for the summary line."""

    num_tokens: int = 0
    elapsed_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)

    def summary(self) -> str:
        rate = self.num_tokens / self.elapsed_s if self.elapsed_s else 0.0
        first_ms = 1e3 * statistics.median(self.first_token_s or [0.0])
        return f"{self.num_tokens} tokens, {rate:,.0f} tok/s, time to first token {first_ms:.0f} ms (median)"


def run(args: argparse.Namespace) -> int:
    """Prints prompts dim and their continuations bright, then what to try next."""
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=0, max_tokens=args.max_tokens)
    print(f"Starting a router and a shard with the {args.model} model ...", flush=True)
    started_s = time.perf_counter()
    server = ServerProcess(["--", args.model])
    try:
        with Client(server.address) as client:
            model = client.get_model()
            print(f"Ready after {time.perf_counter() - started_s:.1f} s: {model.architecture}, {model.dtype}.")
            print(f"Tokens come from the shard's sampler through the router, over gRPC at {server.address}.\n")
            totals = _Totals()
            for prompt in PROMPTS:
                _complete(client, prompt, params, totals)
            print(totals.summary())
            print(NEXT)
    finally:
        server.close()
    return 0


def _complete(client: Client, prompt: str, params: SamplingParams, totals: _Totals) -> None:
    dim, bright, plain = ("\x1b[2m", "\x1b[0;1m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")
    print(f"{dim}{prompt}{bright}", end="", flush=True)
    asked_s = time.perf_counter()
    first_token_s: list[float] = []

    def watch(event: Event) -> Event:
        if isinstance(event, TokenDelta) and not first_token_s:
            first_token_s.append(time.perf_counter() - asked_s)
        return event

    try:
        reply = show(map(watch, client.generate(prompt, params)), Reply())
    finally:
        print(f"{plain}\n", flush=True)
    totals.num_tokens += reply.num_tokens
    totals.elapsed_s += time.perf_counter() - asked_s
    totals.first_token_s += first_token_s
