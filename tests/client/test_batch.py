import asyncio

import pytest
from pagewire import AsyncClient, InvalidRequest, SamplingParams
from pagewire.batch import MAX_WINDOW, run_windowed, window_for
from pagewire.v1 import inference_pb2 as pb
from pagewire_shard.limits import MAX_SEQS

MAX_WAITING = 64


@pytest.fixture
async def client(fake):
    async with AsyncClient(fake.target) as client:
        yield client


class BoundedServer:
    """Runs 32 requests at a time, lets 64 wait and refuses the rest."""

    def __init__(self, fake, service_s):
        self.fake = fake
        self.service_s = service_s
        self.running = asyncio.Semaphore(32)
        self.num_waiting = 0
        self.num_refused = 0

    async def complete(self, request, context):
        if self.num_waiting >= MAX_WAITING:
            self.num_refused += 1
            await self.fake.refuse(context, "RESOURCE_EXHAUSTED", "full", reason="QUEUE_FULL", retry_after_s=0.02)
        self.num_waiting += 1
        async with self.running:
            self.num_waiting -= 1
            await asyncio.sleep(self.service_s)
            return await self.fake.all_words(request, context)


async def test_two_thousand_prompts_pass_a_bounded_queue_in_order(fake, client):
    server = BoundedServer(fake, service_s=0.001)
    fake.complete = server.complete
    seen = []
    outputs = await client.complete_many([f"p{i}" for i in range(2000)], on_output=seen.append)
    assert [output.outputs.text for output in outputs] == [f" p{i}" for i in range(2000)]
    assert len(seen) == 2000
    assert server.num_refused == 0


async def test_a_queue_smaller_than_the_window_only_delays(fake, client):
    server = BoundedServer(fake, service_s=0.05)
    fake.complete = server.complete
    outputs = await client.complete_many([f"p{i}" for i in range(600)], window=256)
    assert [output.outputs.text for output in outputs] == [f" p{i}" for i in range(600)]
    assert server.num_refused > 0


async def test_a_request_is_on_its_way_before_the_next_is_encoded():
    events = []

    async def complete(prompt, params, priority):
        events.append(("encoded", prompt))
        await asyncio.sleep(0)
        events.append(("sent", prompt))

    await run_windowed(complete, [(prompt, None, 0) for prompt in "abcdef"], window=6)
    assert events.index(("sent", "a")) < events.index(("encoded", "c"))


async def test_parameters_are_one_or_one_for_each(fake, client):
    each = [SamplingParams(max_tokens=i + 1) for i in range(3)]
    await client.complete_many(["a", "b", "c"], each)
    assert {r.text: r.sampling_params.max_tokens for r in fake.requests} == {"a": 1, "b": 2, "c": 3}
    with pytest.raises(InvalidRequest, match="2 given for 3 prompts"):
        await client.complete_many(["a", "b", "c"], each[:2])


async def test_one_prompt_and_none(client):
    [output] = await client.complete_many("alone")
    assert output.outputs.text == " alone"
    assert await client.complete_many([]) == []


async def test_the_first_error_ends_the_batch_and_cancels_the_rest(fake, client, eventually):
    cancelled = []

    async def complete(request, context):
        if request.text == "bad":
            await asyncio.sleep(0.05)
            await fake.refuse(context, "INVALID_ARGUMENT", "bad prompt")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request.text)
            raise

    fake.complete = complete
    with pytest.raises(InvalidRequest, match="bad prompt"):
        await client.complete_many(["a", "bad", "b", "c", "d"], window=3)
    await eventually(lambda: sorted(cancelled) == ["a", "b"])
    assert {request.text for request in fake.requests} == {"a", "bad", "b"}


def test_the_window_keeps_the_batches_of_the_largest_shard_full():
    assert window_for(pb.Model(max_queued_requests=4096)) >= 2 * max(MAX_SEQS.values())


@pytest.mark.parametrize(("queued", "window"), [(0, MAX_WINDOW), (1, 1), (64, 64), (100_000, MAX_WINDOW)])
def test_the_window_is_what_the_queue_takes(queued, window):
    assert window_for(pb.Model(max_queued_requests=queued)) == window
