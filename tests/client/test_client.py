import asyncio
import gc
import inspect
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from pagewire import AsyncClient, Cancelled, Client, InvalidRequest, SequenceFinished, Started
from pagewire.v1 import inference_pb2 as pb


@pytest.fixture
def client(background_fake):
    with Client(background_fake.target) as client:
        yield client


def wait_until(condition) -> None:
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_the_facade_has_every_method_of_the_core():
    public = {name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if not name.startswith("_")}
    assert public <= set(dir(Client))
    assert inspect.signature(Client.complete) == inspect.signature(AsyncClient.complete)
    assert Client.__init__.__annotations__ == AsyncClient.__init__.__annotations__


def test_calls_wait_for_their_answers(client):
    assert client.complete("a b").outputs.text == " a b"
    assert client.tokenize("a b") == [0, 1]
    assert client.get_model().name == "fake"
    assert client.health()
    assert [output.outputs.text for output in client.complete_many(["a", "b"])] == [" a", " b"]


def test_a_stream_is_an_iterator(client):
    events = list(client.generate("a b"))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], SequenceFinished)
    assert len(events) == 4


def test_errors_are_raised_where_the_answer_is_awaited(background_fake, client):
    async def fail(request, context):
        yield pb.GenerateResponse(started=pb.Started())
        await background_fake.refuse(context, "INVALID_ARGUMENT", "no")

    background_fake.generate = fail
    stream = client.generate("x")
    assert isinstance(next(stream), Started)
    with pytest.raises(InvalidRequest, match="no"):
        next(stream)


@pytest.mark.parametrize("leave", ["close", "collect"])
def test_leaving_a_stream_cancels_the_request(background_fake, client, leave):
    cancelled = []

    async def forever(request, context):
        try:
            while True:
                yield pb.GenerateResponse(delta=pb.Delta(text="x"))
                await asyncio.sleep(0.001)
        finally:
            cancelled.append(1)

    background_fake.generate = forever
    stream = client.generate("x")
    next(stream)
    if leave == "close":
        stream.close()
    del stream
    gc.collect()
    wait_until(lambda: cancelled)


@pytest.mark.parametrize("call", [lambda c: c.complete("x"), lambda c: list(c.generate("x"))])
def test_closing_the_client_ends_the_calls_of_other_threads(background_fake, call):
    async def hang(request, context):
        await asyncio.sleep(60)

    async def hang_stream(request, context):
        await asyncio.sleep(60)
        yield

    background_fake.complete, background_fake.generate = hang, hang_stream
    client = Client(background_fake.target)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call, client)
        wait_until(lambda: background_fake.requests)
        client.close()
        with pytest.raises(Cancelled, match="closed"):
            future.result(timeout=10)


def test_threads_may_share_a_client(client):
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(client.complete, [f"p{i}" for i in range(200)]))
    assert [output.outputs.text for output in outputs] == [f" p{i}" for i in range(200)]
