import asyncio
import gc
import inspect
import os
import select
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pagewire import AsyncClient, Cancelled, Client, InvalidRequest, SamplingParams, SequenceFinished, Started
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


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.complete("x"),
        lambda c: list(c.generate("x")),
        lambda c: c.complete_many(["x"]),
        lambda c: c.get_model(),
    ],
    ids=["complete", "generate", "complete_many", "get_model"],
)
def test_a_closed_client_says_so_at_once(background_fake, call):
    client = Client(background_fake.target)
    client.complete("x")
    client.close()
    client.close()
    with pytest.raises(Cancelled, match="closed"):
        call(client)
    assert not client.health()


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("sampling_params", {"sampling_params": {"max_tokens": 3}}),
        ("priority", {"priority": 1.5}),
        ("priority", {"priority": 2**40}),
        ("priority", {"priority": "high"}),
        ("cache_salt", {"cache_salt": 5}),
        ("model", {"model": 5}),
        ("request_id", {"request_id": b"x"}),
        ("timeout_s", {"timeout_s": "5"}),
        ("timeout_s", {"timeout_s": float("nan")}),
    ],
    ids=str,
)
def test_options_of_another_type_are_refused_by_name(client, field, options):
    with pytest.raises(InvalidRequest) as caught:
        client.complete("x", **options)
    assert [violation.field for violation in caught.value.violations] == [field]
    with pytest.raises(InvalidRequest, match=field):
        list(client.generate("x", **options))


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e12, np.float32(60), 60])
def test_a_timeout_may_be_any_number(client, timeout_s):
    assert client.complete("x", timeout_s=timeout_s).outputs.text == " x"


@pytest.mark.parametrize("window", [0, -1, "x"])
def test_a_window_that_is_none_is_refused(client, window):
    with pytest.raises(InvalidRequest, match="window"):
        client.complete_many(["a", "b"], window=window)


@pytest.mark.parametrize("priority", [np.array([1, 2]), (1, 2), iter([1, 2]), np.int64(3), None])
def test_priorities_and_parameters_come_in_any_collection(client, priority):
    params = (SamplingParams(max_tokens=n) for n in (1, 2))
    assert len(client.complete_many(["a", "b"], params, priority=priority)) == 2


def test_a_forked_copy_of_the_process_is_told_so_and_does_not_wait(background_fake, client):
    client.complete("x")
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            for call in (
                client.complete,
                Client(background_fake.target).complete,
                lambda text: next(client.generate(text)),
            ):
                try:
                    call("x")
                except RuntimeError as error:
                    os.write(writer, b"1" if "spawn" in str(error) else b"0")
        finally:
            os._exit(0)
    os.close(writer)
    assert select.select([reader], [], [], 10)[0]
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    assert os.read(reader, 10) == b"111"
    os.close(reader)
    assert client.complete("x").outputs.text == " x"
