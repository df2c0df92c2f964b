"""The client process of http_front.py: runs requests over one front, so many at a time, and times what comes."""

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import grpc.aio
import uvloop
from pagewire.bench.grpc_sender import GENERATE, serialize
from pagewire.bench.workloads import Prompt
from pagewire.sampling_params import SamplingParams

VOCAB_SIZE = 2048
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
END = b"data: [DONE]\n\n"


async def over_http(server: str, prompt: list[int], output_len: int) -> AsyncIterator[float]:
    """Yields when each chunk of a stream has come. Raises RuntimeError if the answer is not whole."""
    host, _, port = server.rpartition(":")
    fields = {"prompt": prompt, "max_tokens": output_len, "ignore_eos": True, "temperature": 0, "stream": True}
    body = json.dumps(fields).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(HEAD % len(body) + body)
    told = b""
    try:
        while END not in told[-64:]:
            chunk = await reader.read(1 << 16)
            if not chunk:
                raise RuntimeError(f"the answer ended early: {told[-200:]!r}")
            told += chunk
            if b"data: {" in chunk:
                yield time.perf_counter()
    finally:
        writer.close()
    if b'"finish_reason":"length"' not in told:
        raise RuntimeError(f"the answer is not whole: {told[-200:]!r}")


async def over_grpc(channel: grpc.aio.Channel, prompt: list[int], output_len: int) -> AsyncIterator[float]:
    """The same over gRPC. Messages are not decoded."""
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
        GENERATE, request_serializer=None, response_deserializer=None
    )
    call = generate(serialize(Prompt(prompt, output_len), SamplingParams(temperature=0.0, ignore_eos=True)))
    await call.read()  # Started
    while await call.read() is not grpc.aio.EOF:
        yield time.perf_counter()


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all requests; returns their rate and the gaps between messages."""
    rng = random.Random(args.seed)
    left = args.num_requests
    gaps_ms: list[float] = []
    first_ms: list[float] = []
    async with grpc.aio.insecure_channel(args.server) as channel:

        async def worker() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                prompt = rng.choices(range(4, VOCAB_SIZE), k=args.input_len)
                began_s = time.perf_counter()
                if args.front == "http":
                    stream = over_http(args.server, prompt, args.output_len)
                else:
                    stream = over_grpc(channel, prompt, args.output_len)
                times_s = [time_s async for time_s in stream]
                first_ms.append((times_s[0] - began_s) * 1000)
                gaps_ms.extend((later - earlier) * 1000 for earlier, later in pairwise(times_s))

        began_s = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(args.num_streams)))
        elapsed_s = time.perf_counter() - began_s
    gaps_ms.sort()
    first_ms.sort()
    return {
        "tokens_per_s": args.num_requests * args.output_len / elapsed_s,
        "num_messages": len(gaps_ms) + args.num_requests,
        "p50_gap_ms": gaps_ms[len(gaps_ms) // 2],
        "p99_gap_ms": gaps_ms[len(gaps_ms) * 99 // 100],
        "p50_ttft_ms": first_ms[len(first_ms) // 2],
    }


def main() -> None:
    """Prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--front", choices=("http", "grpc"), required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--num-requests", type=int, required=True)
    parser.add_argument("--input-len", type=int, required=True)
    parser.add_argument("--output-len", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
