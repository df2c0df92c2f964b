"""Measures the effect of an attack on other clients: the time of health checks, and the gaps of an endless stream.

`python fuzz_probe.py ADDRESS` measures until its standard input ends, and prints one line of JSON.
"""

import asyncio
import json
import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pagewire import AsyncClient, PagewireError, SamplingParams, TokenDelta

PERIOD_S = 0.02


class Probe:
    """The longest times so far, in seconds."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.health_s: list[float] = []
        self.gaps_s: list[float] = []
        self.own_lag_s: list[float] = []
        self.errors: list[str] = []

    async def check_health(self) -> None:
        """Asks 50 times in a second."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while True:
                began_s = time.monotonic()
                try:
                    await stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
                except grpc.aio.AioRpcError as error:
                    self.errors.append(f"health {error.code().name}")
                self.health_s.append(time.monotonic() - began_s)
                await asyncio.sleep(PERIOD_S)

    async def stream(self) -> None:
        """Generates again and again, before all others."""
        params = SamplingParams(temperature=0.0, max_tokens=1500, ignore_eos=True)
        async with AsyncClient(self._address) as client:
            while True:
                last_s = None
                try:
                    async for event in client.generate("Once upon a time", params, priority=-1000, timeout_s=120):
                        if isinstance(event, TokenDelta):
                            now_s = time.monotonic()
                            if last_s is not None:
                                self.gaps_s.append(now_s - last_s)
                            last_s = now_s
                except PagewireError as error:
                    self.errors.append(f"stream {type(error).__name__}")
                    await asyncio.sleep(0.2)

    async def watch_itself(self) -> None:
        """How late this process itself is: what a busy machine costs."""
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(PERIOD_S)
            self.own_lag_s.append(time.monotonic() - began_s - PERIOD_S)

    def summary(self) -> dict[str, object]:
        """Milliseconds and counts."""
        longest = {"health": self.health_s, "gap": self.gaps_s, "own_lag": self.own_lag_s}
        figures: dict[str, object] = {f"{name}_max_ms": round(1e3 * max(s, default=0.0)) for name, s in longest.items()}
        ordered = sorted(self.health_s)
        p99_s = ordered[len(ordered) * 99 // 100] if ordered else 0.0
        return {
            **figures,
            "health_p99_ms": round(1e3 * p99_s),
            "num_checks": len(self.health_s),
            "num_deltas": len(self.gaps_s),
            "errors": {error: self.errors.count(error) for error in set(self.errors)},
        }


async def main(address: str) -> None:
    """Measures until standard input ends."""
    probe = Probe(address)
    tasks = [asyncio.create_task(work()) for work in (probe.check_health, probe.stream, probe.watch_itself)]
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(probe.summary()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
