"""The service over real gRPC on loopback, with a runner that says what it is told."""

import asyncio
import gc

import grpc
import pytest
from google.protobuf import struct_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pagewire_router.errors import DeadlineExceeded, QueueFull, RouterError, Unavailable
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.text.tokenizer import Tokenizer
from pagewire_router.timeline import TraceContext

FINISH = inference_pb2.FinishReason


def text_of(responses, index=0):
    return "".join(r.delta.text for r in responses if r.HasField("delta") and r.delta.index == index)


def token_ids_of(responses, index=0):
    return [i for r in responses if r.HasField("delta") and r.delta.index == index for i in r.delta.token_ids]


def finished_of(responses):
    return {r.finished.index: r.finished for r in responses if r.HasField("finished")}


def script_of(files, text):
    token_ids = Tokenizer(files, 500).encode_now(text, add_special_tokens=False)
    return lambda request: token_ids


def detail(error, kind):
    status = rpc_status.from_call(error)
    message = kind()
    found = [entry for entry in status.details if entry.Is(kind.DESCRIPTOR)]
    assert found, f"no {kind.DESCRIPTOR.full_name}"
    found[0].Unpack(message)
    return message


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_stream_starts_brings_increments_and_finishes(serve, byte_level_files):
    text = "naïve 😀 世界 and the capital of France"
    async with serve(script_of(byte_level_files, text)) as router:
        responses = await router.generate(
            request_id="r1",
            text="Hello",
            sampling_params=inference_pb2.SamplingParams(max_tokens=100, seed=7),
            return_prompt_token_ids=True,
        )
    started = responses[0].started
    assert (started.request_id, started.model, started.model_digest, started.seed) == ("r1", "tiny", b"digest", 7)
    prompt = list(started.prompt_token_ids)
    assert prompt[0] == 0
    assert started.num_prompt_tokens == len(prompt)
    assert text_of(responses) == text
    finished = responses[-1].finished
    assert finished.finish_reason == FINISH.FINISH_REASON_LENGTH
    assert finished.usage.prompt_tokens == len(prompt)
    assert finished.usage.completion_tokens == len(token_ids_of(responses))
    assert all("\N{REPLACEMENT CHARACTER}" not in r.delta.text for r in responses)


async def test_low_load_brings_every_token_in_its_own_message(serve):
    async with serve(step_s=0.005) as router:
        responses = await router.generate(text="x", sampling_params=inference_pb2.SamplingParams(max_tokens=8))
    deltas = [r for r in responses if r.HasField("delta")]
    assert [len(r.delta.token_ids) for r in deltas] == [1] * 8


async def test_complete_equals_the_concatenated_stream(serve, byte_level_files):
    request = inference_pb2.GenerateRequest(
        text="x", sampling_params=inference_pb2.SamplingParams(n=3, seed=1, max_tokens=64, logprobs=1)
    )
    async with serve(script_of(byte_level_files, "日本語 and more")) as router:
        result = await router.stub.Complete(request)
        responses = [response async for response in router.stub.Generate(request)]
    assert [c.index for c in result.completions] == [0, 1, 2]
    for completion in result.completions:
        assert completion.text == text_of(responses, completion.index) == "日本語 and more"
        assert list(completion.token_ids) == token_ids_of(responses, completion.index)
        assert [entry.token_id for entry in completion.logprobs] == list(completion.token_ids)
        assert completion.finished == finished_of(responses)[completion.index]


async def test_stop_string_ends_the_text_before_it(serve, byte_level_files):
    async with serve(script_of(byte_level_files, "The capital of France")) as router:
        params = inference_pb2.SamplingParams(max_tokens=100, stop=["tal of", "zzz"])
        responses = await router.generate(text="x", sampling_params=params)
        params.include_stop_str_in_output = True
        included = await router.generate(text="x", sampling_params=params)
    assert text_of(responses) == "The capi"
    assert text_of(included) == "The capital of"
    assert finished_of(responses)[0].stop_string == "tal of"
    assert finished_of(responses)[0].finish_reason == FINISH.FINISH_REASON_STOP


async def test_stop_token_is_reported_and_its_text_left_out(serve):
    async with serve(lambda request: [40, 41, 42, 43]) as router:
        params = inference_pb2.SamplingParams(stop_token_ids=[42])
        responses = await router.generate(text="x", sampling_params=params)
        whole = await router.generate(text="x", sampling_params=inference_pb2.SamplingParams(max_tokens=2))
        end = await router.generate(token_ids=inference_pb2.TokenIds(ids=[5]))
    assert token_ids_of(responses) == [40, 41, 42]
    assert text_of(responses) == text_of(whole)
    assert finished_of(responses)[0].stop_token_id == 42
    assert end


async def test_end_of_sequence_has_no_stop_reason_unless_it_is_ignored(serve):
    async with serve(lambda request: [40, 1, 41]) as router:
        ended = await router.generate(text="x")
        ignored = await router.generate(text="x", sampling_params=inference_pb2.SamplingParams(ignore_eos=True))
    assert token_ids_of(ended) == [40, 1]
    assert finished_of(ended)[0].WhichOneof("stop_reason") is None
    assert finished_of(ended)[0].finish_reason == FINISH.FINISH_REASON_STOP
    assert token_ids_of(ignored) == [40, 1, 41]


async def test_without_detokenization_there_is_no_text(serve):
    async with serve() as router:
        responses = await router.generate(text="x", sampling_params=inference_pb2.SamplingParams(detokenize=False))
    assert text_of(responses) == ""
    assert len(token_ids_of(responses)) == 16


async def test_the_request_carries_what_the_client_said(serve):
    async with serve() as router:
        request = inference_pb2.GenerateRequest(text="x", priority=-3, cache_salt="tenant")
        call = router.stub.Generate(request, timeout=50, metadata=(("traceparent", "00-a-b-01"), ("tracestate", "k=v")))
        async for _ in call:
            pass
        seen = router.runner.requests[0]
        assert (seen.priority, seen.cache_salt) == (-3, "tenant")
        assert seen.trace_context == TraceContext("00-a-b-01", "k=v")
        assert 40 < seen.deadline_s - asyncio.get_running_loop().time() < 52
        await router.generate(text="x")
        assert router.runner.requests[1].deadline_s is None
        assert router.runner.requests[0].params.seed != router.runner.requests[1].params.seed


async def test_max_tokens_ends_at_the_context(serve):
    async with serve() as router:
        await router.generate(
            token_ids=inference_pb2.TokenIds(ids=[5] * 250), sampling_params=inference_pb2.SamplingParams(max_tokens=99)
        )
        assert router.runner.requests[0].params.max_tokens == 6


async def test_chat_is_rendered_with_the_models_template(serve):
    chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content="Hi")])
    async with serve() as router:
        answer = await router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat))
        await router.generate(chat=chat)
        assert answer.text == "<s><|user|>Hi</s><|assistant|>"
        assert router.runner.requests[0].prompt_token_ids == list(answer.token_ids)
        # The template wrote <s> itself.
        assert list(answer.token_ids).count(0) == 1


async def test_chat_template_kwargs_keep_whole_numbers_whole(serve):
    kwargs = struct_pb2.Struct()
    kwargs.update({"k": 3, "deep": [1.5, None, {"a": True}]})
    chat = inference_pb2.ChatPrompt(
        messages=[inference_pb2.ChatMessage(role="user", content="Hi")],
        chat_template="{{ k }} {{ deep | tojson }}",
        template_kwargs=kwargs,
    )
    async with serve(config={"trust_request_chat_template": True}) as router:
        answer = await router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat))
    assert answer.text == '3 [1.5, null, {"a": true}]'


async def test_tokenize_and_detokenize_are_inverse(serve):
    async with serve() as router:
        tokens = await router.stub.Tokenize(inference_pb2.TokenizeRequest(text="héllo 世界"))
        bare = await router.stub.Tokenize(inference_pb2.TokenizeRequest(text="héllo 世界", add_special_tokens=False))
        assert list(tokens.token_ids) == [0, *bare.token_ids]
        plain = await router.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids))
        special = await router.stub.Detokenize(
            inference_pb2.DetokenizeRequest(token_ids=tokens.token_ids, skip_special_tokens=False)
        )
    assert plain.text == "héllo 世界"
    assert special.text == "<s>héllo 世界"


async def test_get_model_tells_the_limits(serve):
    async with serve(config={"max_n": 5, "max_queued_requests": 9}) as router:
        model = await router.stub.GetModel(inference_pb2.GetModelRequest())
    assert (model.name, model.digest, model.max_model_len, model.vocab_size) == ("tiny", b"digest", 256, 500)
    assert (model.max_n, model.max_logprobs, model.max_queued_requests) == (5, 20, 9)
    assert model.supports_chat
    assert list(model.eos_token_ids) == [1]


async def test_a_model_without_tokenizer_serves_token_ids_alone(serve):
    async with serve(files={}) as router:
        responses = await router.generate(token_ids=inference_pb2.TokenIds(ids=[5]))
        assert len(token_ids_of(responses)) == 16
        assert text_of(responses) == ""
        assert not (await router.stub.GetModel(inference_pb2.GetModelRequest())).supports_chat
        chat = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content="x")])
        stops = inference_pb2.SamplingParams(stop=["x"])
        for call, field in (
            (router.generate(text="x"), "text"),
            (router.generate(chat=chat), "chat"),
            (router.generate(token_ids=inference_pb2.TokenIds(ids=[5]), sampling_params=stops), "sampling_params.stop"),
            (router.stub.Tokenize(inference_pb2.TokenizeRequest(text="x")), "text"),
            (router.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[5])), "token_ids"),
        ):
            error = await refusal(call)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
            assert violation.field == field
            assert "needs a tokenizer" in violation.description


BAD_REQUESTS = {
    "no prompt": ({}, "prompt"),
    "empty prompt": ({"token_ids": inference_pb2.TokenIds()}, "token_ids"),
    "empty text without special tokens": ({"text": "", "add_special_tokens": False}, "text"),
    "over-long prompt": ({"token_ids": inference_pb2.TokenIds(ids=[5] * 256)}, "token_ids"),
    "over-long text": ({"text": "word " * 2000}, "text"),
    "text too long to encode": ({"text": "x" * 1_000_000}, "text"),
    "unknown token": ({"token_ids": inference_pb2.TokenIds(ids=[5, 500])}, "token_ids.ids[1]"),
    "huge n": ({"text": "x", "sampling_params": inference_pb2.SamplingParams(n=2**31 - 1)}, "sampling_params.n"),
    "empty chat": ({"chat": inference_pb2.ChatPrompt()}, "chat.messages"),
    "broken template": (
        {
            "chat": inference_pb2.ChatPrompt(
                messages=[inference_pb2.ChatMessage(role="user", content="x")], chat_template="{% for %}"
            )
        },
        "chat.chat_template",
    ),
    "beam search": ({"text": "x", "beam_search_params": inference_pb2.BeamSearchParams()}, "beam_search_params"),
    "adapter": ({"text": "x", "adapter": "a"}, "adapter"),
    "long id": ({"text": "x", "request_id": "i" * 300}, "request_id"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
async def test_bad_requests_are_refused_by_field(serve, case):
    fields, field = BAD_REQUESTS[case]
    async with serve() as router:
        for call in (router.generate(**fields), router.stub.Complete(inference_pb2.GenerateRequest(**fields))):
            error = await refusal(call)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert [v.field for v in detail(error, error_details_pb2.BadRequest).field_violations] == [field]
            assert detail(error, error_details_pb2.ErrorInfo).domain == "pagewire"
            assert "Traceback" not in error.details()
        assert not router.runner.requests
        assert await router.generate(text="still alive")


async def test_invalid_utf8_is_an_invalid_argument_that_names_the_field(serve):
    good = inference_pb2.GenerateRequest(
        chat=inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content="ab")])
    )
    bad = good.SerializeToString().replace(b"ab", b"a\xff")
    async with serve() as router:
        for method, kind in (("Generate", "unary_stream"), ("Complete", "unary_unary"), ("Tokenize", "unary_unary")):
            call = getattr(router.channel, kind)(f"/pagewire.v1.Inference/{method}")
            data = bad if method != "Tokenize" else b"\x0a\x02a\xff"
            error = await refusal(call(data).read() if kind == "unary_stream" else call(data))
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            violation = detail(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == ("chat.messages.content" if method != "Tokenize" else "text")
            assert "UTF-8" in violation.description
        error = await refusal(router.channel.unary_unary("/pagewire.v1.Inference/Complete")(b"\xff\xff"))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert await router.generate(text="still alive")


async def test_a_message_of_100_mb_is_refused_and_the_server_lives_on(serve):
    async with serve() as router:
        error = await refusal(router.generate(text="x" * 100_000_000))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await router.generate(text="still alive")


async def test_a_message_larger_than_the_model_can_need_is_refused_and_told_the_limit(serve):
    async with serve() as router:
        error = await refusal(router.generate(text="x" * 2_000_000))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert detail(error, error_details_pb2.ErrorInfo).reason == "REQUEST_TOO_LONG"
        assert f"accepted: up to {(1 << 20) + 16 * 256} (--max-receive-message-bytes)" in error.details()
    async with serve(config={"max_receive_message_bytes": 3_000_000}) as router:
        error = await refusal(router.generate(text="x" * 2_000_000))
        assert [v.field for v in detail(error, error_details_pb2.BadRequest).field_violations] == ["text"]


LISTS_BEYOND_EVERY_BOUND = {
    "token ids": ({"token_ids": inference_pb2.TokenIds(ids=[5] * 500_000)}, "token_ids"),
    "stop strings": ({"stop": ["a"] * 200_000}, "sampling_params.stop"),
    "stop tokens": ({"stop_token_ids": [5] * 500_000}, "sampling_params.stop_token_ids"),
    "allowed tokens": ({"allowed_token_ids": [5] * 500_000}, "sampling_params.allowed_token_ids"),
    "bias": ({"logit_bias": dict.fromkeys(range(50_000), 1.0)}, "sampling_params.logit_bias"),
    "bad words": ({"bad_words": ["a"] * 200_000}, "sampling_params.bad_words"),
    "grammar": (
        {"structured_outputs": inference_pb2.StructuredOutputs(grammar="a" * 900_000)},
        "sampling_params.structured_outputs",
    ),
    "id": ({"request_id": "i" * 900_000}, "request_id"),
    "salt": ({"cache_salt": "s" * 900_000}, "cache_salt"),
}


@pytest.mark.parametrize("case", LISTS_BEYOND_EVERY_BOUND)
async def test_what_is_too_long_is_refused_by_name(serve, case):
    fields, name = LISTS_BEYOND_EVERY_BOUND[case]
    if name.startswith("sampling_params."):
        fields = {"sampling_params": inference_pb2.SamplingParams(**fields)}
    prompt = {} if "token_ids" in fields else {"text": "x"}
    async with serve() as router:
        error = await refusal(router.generate(**prompt, **fields))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert [v.field for v in detail(error, error_details_pb2.BadRequest).field_violations] == [name]


async def test_more_tokens_than_the_context_holds_are_not_detokenized(serve):
    async with serve() as router:
        assert (await router.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[40] * 256))).text
        error = await refusal(router.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[40] * 257)))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "token_ids"


async def test_sequences_that_wait_share_their_prompt(serve):
    """A request of many sequences keeps one copy of its prompt until it runs."""
    request = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=[40] * 200), sampling_params=inference_pb2.SamplingParams(n=50)
    )
    async with serve() as router:
        await router.stub.Complete(request)
        group = SequenceGroup(router.runner.requests[0], 256)
        assert {id(sequence.token_ids) for sequence in group.sequences} == {id(group.request.prompt_token_ids)}
        first = group.sequences[0]
        first.enter_shard(1, num_computed_tokens=0, num_tokens=200)
        first.append([41], 200)
        assert len(first.token_ids) == 201
        assert len(group.request.prompt_token_ids) == len(group.sequences[1].token_ids) == 200
        first.enter_shard(2, num_computed_tokens=0, num_tokens=201)
        assert len(first.token_ids) == 201


async def test_another_model_is_not_found(serve):
    async with serve() as router:
        error = await refusal(router.generate(text="x", model="other"))
        assert error.code() == grpc.StatusCode.NOT_FOUND
        assert detail(error, error_details_pb2.ErrorInfo).reason == "MODEL_NOT_FOUND"
        assert await router.generate(text="x", model="tiny")


async def test_an_id_is_free_again_when_its_request_has_ended(serve):
    async with serve(step_s=0.05) as router:
        call = router.stub.Generate(inference_pb2.GenerateRequest(text="x", request_id="same"))
        await call.read()
        error = await refusal(router.generate(text="x", request_id="same"))
        assert error.code() == grpc.StatusCode.ALREADY_EXISTS
        call.cancel()
        while not router.runner.aborted:
            await asyncio.sleep(0.01)
        router.runner.step_s = 0
        assert await router.generate(text="x", request_id="same")


async def test_a_client_that_goes_away_aborts_its_request(serve):
    async with serve(step_s=0.02) as router:
        call = router.stub.Generate(inference_pb2.GenerateRequest(text="x"))
        await call.read()
        await call.read()
        call.cancel()
        async with asyncio.timeout(5):
            while not router.runner.aborted:
                await asyncio.sleep(0.01)
        assert router.runner.aborted == router.runner.requests
        unary = router.stub.Complete(inference_pb2.GenerateRequest(text="x"))
        async with asyncio.timeout(5):
            while len(router.runner.requests) < 2:
                await asyncio.sleep(0.01)
            unary.cancel()
            while len(router.runner.aborted) < 2:
                await asyncio.sleep(0.01)


async def test_a_full_queue_tells_when_to_come_back(serve):
    async with serve(refusal=QueueFull("4 requests wait already", retry_after_s=1.5)) as router:
        error = await refusal(router.generate(text="x"))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
    assert detail(error, error_details_pb2.ErrorInfo).reason == "QUEUE_FULL"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (DeadlineExceeded("late"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (Unavailable("gone", retry_after_s=1), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_a_failure_in_the_middle_ends_the_stream_with_its_status(serve, failure, code):
    def script(request):
        asyncio.get_running_loop().call_later(0.03, request.sink.on_failed, failure)
        return [40]

    async with serve(script, step_s=0.1) as router:
        call = router.stub.Generate(inference_pb2.GenerateRequest(text="x"))
        assert (await call.read()).HasField("started")
        error = await refusal(call.read())
        assert error.code() == code
        assert not router.runner.aborted


async def test_a_bug_of_ours_is_internal_without_a_traceback(serve, caplog):
    async with serve(refusal=ZeroDivisionError("secret")) as router:
        error = await refusal(router.generate(text="x"))
        assert error.code() == grpc.StatusCode.INTERNAL
        assert "secret" not in error.details()
        assert "ZeroDivisionError" in caplog.text
        router.runner.refusal = None
        assert await router.generate(text="x")


def num_errors_alive():
    return sum(issubclass(type(thing), (RouterError, grpc.aio.AbortError)) for thing in gc.get_objects())


@pytest.mark.parametrize("method", ["Generate", "Complete"])
@pytest.mark.parametrize("cause", ["validation", "runner", "output"])
async def test_refused_calls_leave_nothing_to_the_garbage_collector(serve, method, cause):
    """Their messages would stay in memory until it comes, some tens of MB under a flood of them."""

    def script(request):
        if cause == "output":
            request.sink.on_failed(Unavailable("gone"))
            raise asyncio.CancelledError  # Nothing more comes.
        return [40]

    params = inference_pb2.SamplingParams(temperature=-1.0 if cause == "validation" else 1.0)
    message = inference_pb2.GenerateRequest(text="x", sampling_params=params).SerializeToString()
    async with serve(script) as router:
        gc.collect()
        before = num_errors_alive()
        gc.disable()
        try:
            for _ in range(10):
                router.runner.refusal = QueueFull("full") if cause == "runner" else None
                with pytest.raises(grpc.aio.AioRpcError):
                    async for _ in router.channel.unary_stream(f"/pagewire.v1.Inference/{method}")(message):
                        pass
            router.runner.refusal = None
            router.runner.requests.clear()
            await asyncio.sleep(0.1)  # The handler ends after its client has the status.
            # gRPC remembers the last call or two.
            assert num_errors_alive() - before <= 4
        finally:
            gc.enable()


async def test_many_violations_fit_in_a_header(serve):
    params = inference_pb2.SamplingParams(stop=[""] * 60 + ["語" * 2000], temperature=9, top_p=0, n=0, logprobs=99)
    async with serve() as router:
        error = await refusal(router.generate(text="x", sampling_params=params))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        metadata = dict(error.trailing_metadata())
        assert len(metadata["grpc-status-details-bin"]) * 4 / 3 + len(error.details()) < 4096
        assert detail(error, error_details_pb2.BadRequest).field_violations[0].field == "sampling_params.n"


async def test_500_streams_at_once_all_finish(serve, byte_level_files):
    text = "The future of AI is what people make of it"
    async with serve(script_of(byte_level_files, text), step_s=0.01) as router:
        params = inference_pb2.SamplingParams(max_tokens=100)
        answers = await asyncio.gather(*(router.generate(text="x", sampling_params=params) for _ in range(500)))
        assert all(text_of(responses) == text for responses in answers)
        assert not router.runner.aborted
        # Under such load tokens share messages.
        assert sum(map(len, answers)) < 500 * len(token_ids_of(answers[0]))


@pytest.mark.parametrize(
    ("prompt", "field", "named"),
    [
        ({"text": "Hello <tool> world"}, "text", "'<tool>'"),
        ({"chat": {"messages": [{"role": "user", "content": "use <tool>"}]}}, "chat", "'<tool>'"),
        ({"token_ids": {"ids": [3, 420]}}, "token_ids.ids[1]", "420"),
    ],
    ids=["text", "chat", "token_ids"],
)
async def test_a_token_that_the_model_has_no_embedding_for_is_refused(serve, new_runner, prompt, field, named):
    """The tokenizer has 421 tokens, the last of them added; the model knows 420."""
    model = new_runner().model
    model.vocab_size = 420
    model.eos_token_ids[:] = [1, 420]
    async with serve(model=model) as router:
        request = inference_pb2.GenerateRequest(**prompt)
        for call in (router.stub.Complete(request), router.stub.Generate(request).read()):
            error = await refusal(call)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            violation = detail(error, error_details_pb2.BadRequest).field_violations[0]
            assert violation.field == field
            assert named in violation.description
            assert "420" in violation.description
        assert router.runner.requests == []
        await router.generate(text="Hello", sampling_params=inference_pb2.SamplingParams(max_tokens=1))
        assert router.runner.requests[0].eos_token_ids == (1,), "no token the model could sample"


async def test_a_client_that_does_not_read_is_given_up_with_what_waits_for_it(serve, monkeypatch):
    """gRPC's core takes a few messages for it. Others are not kept waiting meanwhile."""
    monkeypatch.setattr("pagewire_router.grpc_front.message_writer.UNREAD_S", 0.4)
    async with serve(step_s=0.001) as router:
        options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
        params = inference_pb2.SamplingParams(max_tokens=200, n=8, logprobs=1, ignore_eos=True)
        message = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[5]), sampling_params=params)
        async with grpc.aio.insecure_channel(router.address, options=options) as channel:
            call = inference_pb2_grpc.InferenceStub(channel).Generate(message)
            async with asyncio.timeout(30):
                while not router.server._metrics.num_calls["Generate", "ABORTED"]:
                    await asyncio.sleep(0.01)
            assert router.server._metrics.num_open == 0
            assert (await router.generate(text="x"))[-1].HasField("finished")
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                [message async for message in call]
            assert cut.value.code() == grpc.StatusCode.ABORTED
            assert "read nothing" in cut.value.details()
