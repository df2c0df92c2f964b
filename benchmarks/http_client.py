"""The client process of http_front.py: runs requests over one front, so many at a time, and times what comes."""

import argparse
import asyncio
import json
import random
import time
from itertools import pairwise
from typing import Any

import grpc.aio
import uvloop
from pagewire.bench.grpc_sender import GENERATE, serialize
from pagewire.bench.workloads import Prompt
from pagewire.sampling_params import SamplingParams

VOCAB_SIZE = 2048
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
END = b"data: [DONE]"


class Answer(asyncio.Protocol):
    """One request and its answer as it comes. A connection serves one request: connecting is part of what is timed."""

    def __init__(self, request: bytes, usage: bytes) -> None:
        """usage: part of a whole answer."""
        self._request = request
        self._usage = usage
        self._told: list[bytes] = []
        self.times_s: list[float] = []
        """When each part of the answer with an event has come."""
        self.is_ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._told.append(data)
        if b"data: {" in data:
            self.times_s.append(time.perf_counter())
        if b"data: [DONE]" in data:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        told = b"".join(self._told)
        if exc is None and (END not in told or self._usage not in told):
            exc = RuntimeError(f"the answer is not whole: {told[-300:]!r}")
        if not self.is_ended.done():
            self.is_ended.set_result(None) if exc is None else self.is_ended.set_exception(exc)


async def over_http(server: str, model: str, prompt: list[int], output_len: int) -> list[float]:
    """Runs one request; returns when each part of the stream has come. Raises RuntimeError if it is not whole."""
    host, _, port = server.rpartition(":")
    fields = {"prompt": prompt, "max_tokens": output_len, "ignore_eos": True, "temperature": 0, "stream": True}
    fields |= {"model": model, "stream_options": {"include_usage": True}}
    body, usage = json.dumps(fields).encode(), b'"completion_tokens":%d' % output_len
    loop = asyncio.get_running_loop()
    _, answer = await loop.create_connection(lambda: Answer(HEAD % len(body) + body, usage), host, int(port))
    await answer.is_ended
    return answer.times_s


async def over_grpc(channel: grpc.aio.Channel, prompt: list[int], output_len: int) -> list[float]:
    """The same over gRPC. Messages are not decoded."""
    generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
        GENERATE, request_serializer=None, response_deserializer=None
    )
    call = generate(serialize(Prompt(prompt, output_len), SamplingParams(temperature=0.0, ignore_eos=True)))
    await call.read()  # Started
    times_s = []
    while await call.read() is not grpc.aio.EOF:
        times_s.append(time.perf_counter())
    return times_s


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
                    times_s = await over_http(args.server, args.model, prompt, args.output_len)
                else:
                    times_s = await over_grpc(channel, prompt, args.output_len)
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
    parser.add_argument("--model", default="", help="name of the model, for the HTTP front")
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--num-requests", type=int, required=True)
    parser.add_argument("--input-len", type=int, required=True)
    parser.add_argument("--output-len", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
