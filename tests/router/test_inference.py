"""Requests without a transport: from a message and a Call through admission and a runner to output."""

import asyncio
import contextlib
import gc
import hashlib
import subprocess
import sys
import time
import weakref

import pytest
from pagewire.v1 import inference_pb2
from pagewire_router.admission.api_keys import ApiKeys
from pagewire_router.admission.call import Call
from pagewire_router.admission.credentials import Credentials
from pagewire_router.caller import Caller
from pagewire_router.config import RouterConfig
from pagewire_router.errors import (
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    RequestAlreadyExists,
    StatusCode,
    StepFailed,
    Unauthenticated,
    status_code,
)
from pagewire_router.inference import Inference, failure_of
from pagewire_router.metrics.request_metrics import Metrics
from pagewire_router.output.pacer import Pacer
from pagewire_router.output.sequence_output import Delta
from pagewire_router.output.write_budget import WriteBudget
from pagewire_router.text.tokenizer import Tokenizer
from pagewire_router.timeline import TraceContext

FINISH = inference_pb2.FinishReason


def new_call(**fields):
    return Call(**{"caller": Caller.of("ipv4:10.0.0.1:1000"), "arrival_s": time.monotonic(), **fields})


def inference_over(runner, **config):
    tokenizer = Tokenizer(runner.files, runner.model.vocab_size)
    pacer = Pacer(asyncio.get_running_loop(), max_floor_s=0.05, budget=WriteBudget())
    return Inference(RouterConfig(shards=(), **config), runner, tokenizer, pacer, Metrics())


def script_of(runner, text):
    token_ids = Tokenizer(runner.files, 500).encode_now(text, add_special_tokens=False)
    return lambda request: token_ids


class Client:
    """A writer that keeps what it is given. It takes no more while it does not read."""

    def __init__(self):
        self.outputs, self.num_writes, self.reads, self.waiting = [], 0, True, None

    def write(self, outputs):
        assert self.reads
        self.outputs += outputs
        self.num_writes += 1

    def is_idle(self):
        return self.reads

    def when_idle(self, callback):
        self.waiting = callback

    def read(self):
        self.reads, waiting, self.waiting = True, self.waiting, None
        if waiting is not None:
            waiting()

    async def drain(self):
        pass


async def taken(inference, message, call=None):
    """All that one request yields, in order."""
    client = Client()
    async with inference.generate(message, call or new_call()) as stream:
        await stream.write_to(client)
    return stream.started, client.outputs


def request(text="Hello", **params):
    return inference_pb2.GenerateRequest(text=text, sampling_params=inference_pb2.SamplingParams(**params))


async def test_a_request_streams_text_that_is_certain_and_its_end(new_runner):
    runner = new_runner()
    runner.script = script_of(runner, "The capital of France")
    inference = inference_over(runner)
    message = request(max_tokens=100, stop=["tal of"], n=2, seed=3, logprobs=1)
    started, outputs = await taken(inference, message)
    assert (started.model, started.seed, started.num_prompt_tokens) == ("tiny", 3, len(started.prompt_token_ids) or 4)
    for index in (0, 1):
        deltas = [output for output in outputs if isinstance(output, Delta) and output.index == index]
        assert "".join(delta.text for delta in deltas) == "The capi"
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        assert [entry.token_id for delta in deltas for entry in delta.logprobs] == token_ids
        (end,) = [output for output in outputs if not isinstance(output, Delta) and output.index == index]
        assert (end.finish_reason, end.stop_string) == (FINISH.FINISH_REASON_STOP, "tal of")
        assert end.usage.completion_tokens == len(token_ids)
        assert end.usage.prompt_tokens == started.num_prompt_tokens


async def test_a_whole_answer_equals_the_stream(new_runner):
    runner = new_runner()
    runner.script = script_of(runner, "naïve 世界")
    inference = inference_over(runner)
    completed = await inference.complete(request(max_tokens=64), new_call())
    _, outputs = await taken(inference, request(max_tokens=64))
    (completion,) = completed.completions
    assert completion.text == "".join(output.text for output in outputs if isinstance(output, Delta)) == "naïve 世界"
    assert completion.finished == outputs[-1]


async def test_the_call_decides_deadline_trace_and_arrival(new_runner):
    runner = new_runner()
    inference = inference_over(runner, max_request_time_s=50.0)
    trace_context = TraceContext("00-a-b-01")
    now_s = time.monotonic()
    call = new_call(arrival_s=now_s - 1, deadline_s=now_s + 20, trace_context=trace_context)
    await taken(inference, request(), call)
    await taken(inference, request(), new_call(arrival_s=now_s))
    first, second = runner.requests
    assert (first.arrival_s, first.deadline_s, first.trace_context) == (now_s - 1, now_s + 20, trace_context)
    assert (second.deadline_s, second.trace_context) == (now_s + 50, None)


async def test_a_client_that_goes_away_ends_its_request(new_runner):
    runner = new_runner(step_s=0.005)
    inference = inference_over(runner)
    message = request(max_tokens=200)
    message.request_id = "r1"
    client = Client()
    async with inference.generate(message, new_call()) as stream:
        writing = asyncio.create_task(stream.write_to(client))
        while not client.outputs:
            await asyncio.sleep(0.001)
        with pytest.raises(RequestAlreadyExists):
            await inference.complete(message, new_call())
        writing.cancel()
    assert runner.aborted == runner.requests
    waiting = asyncio.create_task(inference.complete(message, new_call()))
    while len(runner.requests) < 2:
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert runner.aborted == runner.requests


@pytest.mark.parametrize(
    ("message", "refusal", "status"),
    [
        (request(temperature=3), InvalidRequest, StatusCode.INVALID_ARGUMENT),
        (inference_pb2.GenerateRequest(text="x", model="other"), ModelNotFound, StatusCode.NOT_FOUND),
        (inference_pb2.GenerateRequest(), InvalidRequest, StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_refusals_have_a_status(new_runner, message, refusal, status):
    inference = inference_over(new_runner())
    for attempt in (taken(inference, message), inference.complete(message, new_call())):
        with pytest.raises(refusal) as refused:
            await attempt
        assert status_code(refused.value) == status


async def test_a_full_queue_says_when_to_come_back(new_runner):
    inference = inference_over(new_runner(refusal=QueueFull("full", retry_after_s=2.5)))
    with pytest.raises(QueueFull) as refused:
        await taken(inference, request())
    assert (status_code(refused.value), refused.value.retry_after_s) == (StatusCode.RESOURCE_EXHAUSTED, 2.5)


async def test_a_request_that_fails_yields_what_it_has_and_then_the_error(new_runner):
    runner = new_runner(step_s=60)
    inference = inference_over(runner)
    async with inference.generate(request(), new_call()) as stream:
        sink = runner.requests[0].sink
        sink.on_tokens(0, [40], None)
        sink.on_failed(StepFailed("broken"))
        client = Client()
        with pytest.raises(StepFailed):
            await stream.write_to(client)
    (delta,) = client.outputs
    assert delta.token_ids == [40]


async def test_a_client_that_does_not_read_gets_all_at_once_when_it_does(new_runner):
    runner = new_runner(step_s=60)
    inference = inference_over(runner)
    client = Client()
    async with inference.generate(request(max_tokens=9), new_call()) as stream:
        sink = runner.requests[0].sink
        writing = asyncio.create_task(stream.write_to(client))
        client.reads = False
        for token_id in (40, 41, 42):
            sink.on_tokens(0, [token_id], None)
            await asyncio.sleep(0.06)
        assert client.outputs == []
        client.read()
        (delta,) = client.outputs
        assert delta.token_ids == [40, 41, 42]
        sink.on_finished(0, FINISH.FINISH_REASON_LENGTH, None, 0)
        await writing
    assert client.num_writes == 2


class Gone(ConnectionResetError):
    """An error that a weak reference can be taken to."""


async def test_a_write_that_fails_ends_the_stream_and_the_request(new_runner):
    runner = new_runner(step_s=0.001)
    errors = []

    def new_error():
        error = Gone("gone")
        errors.append(weakref.ref(error))
        return error

    class Broken(Client):
        def write(self, outputs):
            raise new_error()

    gc.disable()
    try:
        with contextlib.suppress(Gone):
            async with inference_over(runner).generate(request(max_tokens=100), new_call()) as stream:
                await stream.write_to(Broken())
        assert runner.aborted == runner.requests
        del stream
        await asyncio.sleep(0)  # The event loop lets go of what woke this task.
        assert [error() for error in errors] == [None]  # Nothing is left to the garbage collector.
    finally:
        gc.enable()


async def test_tokenize_and_detokenize_are_inverse(new_runner):
    inference = inference_over(new_runner())
    tokens = await inference.tokenize(inference_pb2.TokenizeRequest(text="héllo 世界"), new_call())
    text = await inference.detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids), new_call())
    assert text.text == "héllo 世界"
    assert inference.get_model().name == "tiny"


def test_a_key_in_a_header_tells_its_owner(tmp_path):
    (tmp_path / "keys").write_text("the-key\n")
    keys = Credentials(ApiKeys(str(tmp_path / "keys")), None)
    keys.read()
    identity = keys.check("Bearer the-key")
    assert identity == (hashlib.sha256(b"the-key").hexdigest(), "")
    assert Caller.of("ipv4:10.0.0.1:1000", identity).owner == Caller.of("ipv4:10.0.0.2:1000", identity).owner
    with pytest.raises(Unauthenticated) as refused:
        keys.check("Bearer another")
    assert status_code(refused.value) == StatusCode.UNAUTHENTICATED


def test_whatever_else_a_call_raises_is_told_as_one_of_our_errors(caplog):
    assert isinstance(failure_of(RecursionError()), InvalidRequest)
    assert not caplog.records
    try:
        raise KeyError("a secret")
    except KeyError as error:
        failure = failure_of(error)
    assert status_code(failure) == StatusCode.INTERNAL
    assert "secret" not in failure.message
    assert "a secret" in caplog.text


def test_all_of_it_loads_without_grpc():
    script = "import sys, pagewire_router.inference; print([name for name in sys.modules if name.startswith('grpc')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.strip() == "[]"
