"""Offers token-id prompts to an OpenAI server and records when tokens come; needs nothing but aiohttp.

Standard input has {"url", "model", "prompts", "max_tokens", "arrivals_s", "max_concurrency"}; standard output gets
{"duration_s", "outcomes": [{"start_s", "end_s", "times_s", "error"}]}: one time for each event that carries a token, in
seconds from the start of the run. Events that are read at once have the same time.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

DATA, WITH_CHOICE, ERROR = b"data: {", b'"choices":[{', b'"error"'


async def send(session: aiohttp.ClientSession, url: str, body: bytes, outcome: dict[str, Any], origin_s: float) -> None:
    """Sends one request and records its stream."""
    outcome["start_s"] = time.perf_counter() - origin_s
    rest = b""
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                outcome["error"] = f"{response.status} {(await response.text())[:200]}"
            async for chunk in response.content.iter_any():
                now_s = time.perf_counter() - origin_s
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    if event.startswith(DATA) and WITH_CHOICE in event:
                        outcome["times_s"].append(now_s)
                    elif ERROR in event:
                        outcome["error"] = event[:200].decode(errors="replace")
    except (aiohttp.ClientError, OSError) as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    outcome["end_s"] = time.perf_counter() - origin_s


async def offer(load: dict[str, Any]) -> dict[str, Any]:
    """Sends every request at its time, at most max_concurrency at once."""
    common = {"model": load["model"], "temperature": 0, "ignore_eos": True, "stream": True}
    pairs = zip(load["prompts"], load["max_tokens"], strict=True)
    bodies = [json.dumps(common | {"prompt": ids, "max_tokens": count}).encode() for ids, count in pairs]
    outcomes: list[dict[str, Any]] = [{"times_s": [], "error": ""} for _ in bodies]
    gate = asyncio.Semaphore(load["max_concurrency"] or max(1, len(bodies)))
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        origin_s = time.perf_counter()

        async def send_in_turn(body: bytes, outcome: dict[str, Any]) -> None:
            async with gate:
                await send(session, load["url"], body, outcome, origin_s)

        async with asyncio.TaskGroup() as tasks:
            for body, arrival_s, outcome in zip(bodies, load["arrivals_s"], outcomes, strict=True):
                delay_s = origin_s + arrival_s - time.perf_counter()
                if delay_s > 0:
                    await asyncio.sleep(delay_s)
                tasks.create_task(send_in_turn(body, outcome))
        duration_s = time.perf_counter() - origin_s
    return {"duration_s": duration_s, "outcomes": outcomes}


def main() -> None:
    """Runs on uvloop if it is installed, as pagewire's client does."""
    load = json.load(sys.stdin)
    try:
        import uvloop
    except ImportError:
        result = asyncio.run(offer(load))
    else:
        result = uvloop.run(offer(load))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
