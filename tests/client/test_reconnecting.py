"""How often a client looks for a server that is away, and how long it gives one that is slow to answer."""

import asyncio

from faulty_proxy import faulty_proxy
from pagewire import AsyncClient

LONG_AWAY_S = 3.0
"""gRPC's waits between attempts have grown to their longest by then."""
WATCHED_S = 5.0


async def test_a_server_that_comes_back_is_found_within_about_a_second():
    """Until then a listener hangs up on every connection, as a proxy before a server that is away does."""
    loop = asyncio.get_running_loop()
    attempts_s = []

    async def hang_up(_reader, writer):
        attempts_s.append(loop.time())
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener, AsyncClient(f"127.0.0.1:{port}") as client:
        waiting = asyncio.create_task(client.complete("x"))
        await asyncio.sleep(LONG_AWAY_S + WATCHED_S)
        waiting.cancel()
    late = [time_s for time_s in attempts_s if time_s >= attempts_s[0] + LONG_AWAY_S]
    assert 3 <= len(late) <= 8


async def test_a_connection_that_is_slow_to_be_made_is_waited_for(fake):
    async with faulty_proxy(int(fake.target.rpartition(":")[2])) as proxy:
        proxy.cut()
        async with AsyncClient(proxy.address) as client:
            answer = asyncio.create_task(client.complete("x", timeout_s=60))
            await asyncio.sleep(1.5)
            proxy.mend()
            assert (await answer).finished
    assert proxy.num_connections == 1
