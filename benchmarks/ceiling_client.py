"""The client process of router_ceiling.py: keeps a number of streams open for a while and counts what they bring."""

import argparse
import asyncio
import json
import random
import resource
import time
from itertools import pairwise
from typing import Any

import grpc.aio
import uvloop
from pagewire.async_client import MAX_MESSAGE_BYTES
from pagewire.bench.grpc_sender import GENERATE, serialize
from pagewire.bench.workloads import LengthRange, Prompt
from pagewire.channels import ChannelPool
from pagewire.sampling_params import SamplingParams
from pagewire.v1 import inference_pb2

VOCAB_SIZE = 2048
MAX_GAPS = 1000


class Streams:
    """Streams in a closed loop: where one ends, the next begins."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._rng = random.Random(args.seed)
        self._channels = ChannelPool(args.server, None, max_message_bytes=MAX_MESSAGE_BYTES)
        self._messages: list[list[tuple[float, bytes]]] = []
        """The messages of each request, with the times at which they came, on the clock of time.time()."""

    async def run(self) -> dict[str, Any]:
        """Reads streams until the end of the window; returns what came within it."""
        begin_s, end_s = self._args.begin_s, self._args.end_s
        tasks = [asyncio.create_task(self._stream()) for _ in range(self._args.num_streams)]
        await asyncio.sleep(begin_s - time.time())
        cpu_s = _cpu_s()
        await asyncio.sleep(end_s - time.time())
        cpu_s = _cpu_s() - cpu_s
        failed = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channels.close()
        if failed:
            raise RuntimeError(f"{len(failed)} streams failed, such as: {failed[0]}")
        return self._count(begin_s, end_s) | {"cpu_s": cpu_s}

    async def _stream(self) -> None:
        length = LengthRange(self._args.output_len, 0.5)
        sampling = SamplingParams(temperature=0.0, ignore_eos=True, detokenize=self._args.detokenize)
        while True:
            prompt = Prompt(self._rng.choices(range(VOCAB_SIZE), k=self._args.input_len), length.draw(self._rng))
            messages: list[tuple[float, bytes]] = []
            self._messages.append(messages)
            with self._channels.lease() as connection:
                generate: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = connection.channel.unary_stream(
                    GENERATE, request_serializer=None, response_deserializer=None
                )
                call = generate(serialize(prompt, sampling))
                while True:
                    payload: Any = await call.read()
                    if payload is grpc.aio.EOF:
                        break
                    messages.append((time.time(), payload))

    def _count(self, begin_s: float, end_s: float) -> dict[str, Any]:
        num_tokens = num_messages = 0
        gaps_ms: list[float] = []
        for messages in self._messages:
            times_s: list[float] = []
            for time_s, payload in messages:
                if not begin_s <= time_s < end_s:
                    continue
                response = inference_pb2.GenerateResponse.FromString(payload)
                if response.delta.token_ids:
                    num_tokens += len(response.delta.token_ids)
                    num_messages += 1
                    times_s.append(time_s)
            gaps_ms += [(later - earlier) * 1000 for earlier, later in pairwise(times_s)]
        return {"num_tokens": num_tokens, "num_messages": num_messages, "gaps_ms": _thinned(gaps_ms)}


def _thinned(values: list[float]) -> list[float]:
    """At most MAX_GAPS of the values, evenly spread over their ranks."""
    ordered = sorted(values)
    step = max(1, len(ordered) // MAX_GAPS)
    return [round(value, 2) for value in ordered[step // 2 :: step]]


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints what came within the window as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--num-streams", type=int, required=True)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--detokenize", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--begin-s", type=float, required=True, help="begin of the window, on the clock of time.time()")
    parser.add_argument("--end-s", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(uvloop.run(Streams(parser.parse_args()).run())), flush=True)


if __name__ == "__main__":
    main()
