import asyncio
import json

import grpc
import pytest
from pagewire import (
    AsyncClient,
    DeadlineExceeded,
    InvalidRequest,
    QueueFull,
    SamplingParams,
    SequenceFinished,
    ServerError,
    Started,
    TokenDelta,
    Unavailable,
    Usage,
)
from pagewire.channels import MAX_CHANNELS, STREAMS_PER_CHANNEL
from pagewire.retry import RetryPolicy
from pagewire.v1 import inference_pb2 as pb


@pytest.fixture
async def client(fake):
    async with AsyncClient(fake.target) as client:
        yield client


async def collect(events) -> list:
    return [event async for event in events]


async def test_a_stream_yields_started_deltas_and_finished(client):
    events = await collect(client.generate("one two", request_id="mine"))
    assert events == [
        Started("mine", "fake", 7, 2, []),
        TokenDelta(0, " one", [0], None),
        TokenDelta(0, " two", [1], None),
        SequenceFinished(0, "stop", "!", Usage(3, 2, 1)),
    ]


async def test_complete_gathers_the_whole_answer(client):
    output = await client.complete("one two three")
    assert (output.request_id, output.prompt, output.prompt_token_ids) == ("picked", "one two three", [0, 1, 2])
    assert (output.finished, output.seed, output.num_cached_tokens) == (True, 7, 1)
    [completion] = output.outputs
    assert (completion.text, completion.token_ids) == (" one two three", [0, 1, 2])
    assert (completion.finish_reason, completion.stop_reason, completion.logprobs) == ("stop", "!", None)
    assert output.outputs.text == " one two three"


async def test_what_a_request_says_reaches_the_server(fake, client):
    params = SamplingParams(temperature=0.5, stop="end", max_tokens=None)
    await client.complete(
        {"prompt_token_ids": [5, 6]}, params, model="fake", priority=-2, cache_salt="s", add_special_tokens=False
    )
    [request] = fake.requests
    assert list(request.token_ids.ids) == [5, 6]
    assert (request.model, request.priority, request.cache_salt, request.add_special_tokens) == ("fake", -2, "s", False)
    assert request.sampling_params == pb.SamplingParams(temperature=0.5, stop=["end"], max_tokens=2**31 - 1)


async def test_chat_sends_messages_and_template_options(fake, client):
    messages = [{"role": "user", "content": "hi", "name": "Ada"}, {"role": "assistant", "content": "so"}]
    await client.chat(messages, continue_final_message=True, template_kwargs={"think": True}, tools=[{"type": "x"}])
    chat = fake.requests[0].chat
    assert [(m.role, m.content, m.name) for m in chat.messages] == [("user", "hi", "Ada"), ("assistant", "so", "")]
    assert chat.continue_final_message
    assert chat.add_generation_prompt is False
    assert (chat.template_kwargs_json, chat.tools_json) == ('{"think": true}', '[{"type": "x"}]')


async def test_chat_sends_whole_messages_in_their_own_order(fake, client):
    messages = [
        {"content": "hi", "role": "user"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"z": 1.0, "a": 2**70}}]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "naïve"}]},
    ]
    kwargs = {"b": 1, "a": 1.0}
    await client.chat(messages, tools=None, chat_template_kwargs=kwargs, chat_template_content_format="openai")
    chat = fake.requests[0].chat
    assert [json.loads(m.json) for m in chat.messages] == messages
    assert [list(json.loads(m.json)) for m in chat.messages] == [list(m) for m in messages]
    assert chat.template_kwargs_json == '{"b": 1, "a": 1.0}'
    assert chat.content_format == pb.CHAT_CONTENT_FORMAT_OPENAI
    assert not chat.HasField("tools_json")
    await client.chat(messages, tools=[])
    assert fake.requests[1].chat.tools_json == "[]"


@pytest.mark.parametrize(
    "prompt",
    [
        {"messages": [{"role": "user", "content": "x", "score": float("nan")}]},
        {"messages": [{"role": "user", "content": "x", "raw": b"x"}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [], "chat_template_kwrgs": {}},
        {"messages": [], "template_kwargs": {"a": 1}, "chat_template_kwargs": {"a": 1}},
        {"messages": [], "chat_template_content_format": "text"},
    ],
)
async def test_a_malformed_conversation_is_refused_before_anything_is_sent(fake, client, prompt):
    with pytest.raises(InvalidRequest):
        await client.complete(prompt)
    assert not fake.requests


@pytest.mark.parametrize(
    "prompt", [5, None, {}, {"text": "x"}, {"prompt_token_ids": "abc"}, {"prompt_token_ids": [-1]}]
)
async def test_a_malformed_prompt_is_refused_before_anything_is_sent(fake, client, prompt):
    with pytest.raises(InvalidRequest, match=r"^prompt: .*accepted") as caught:
        await client.complete(prompt)
    assert caught.value.violations[0].field == "prompt"
    assert not fake.requests


async def test_tokenize_and_detokenize(client):
    assert await client.tokenize("a b c") == [0, 1, 2]
    assert await client.tokenize({"messages": [{"role": "user", "content": "a b"}]}) == [0, 1]
    assert await client.detokenize([3, 4]) == "3 4"
    with pytest.raises(InvalidRequest, match="token_ids"):
        await client.detokenize([-1])


async def test_model_and_health(client):
    assert (await client.get_model()).name == "fake"
    assert await client.health()


async def test_health_is_false_where_nobody_answers(tmp_path):
    async with AsyncClient(f"unix:{tmp_path}/none.sock") as client:
        assert not await client.health()


async def test_logprobs_come_by_token_id(fake, client):
    async def complete(request, context):
        texts = {"token_text": " nine", "top_token_texts": [" one", ""]}
        best = {"top_token_ids": [1, 2], "top_logprobs": [-0.5, -1.0]}
        entry = pb.TokenLogprobs(token_id=9, logprob=-2.0, rank=3, **best, **texts)
        other = pb.TokenLogprobs(token_id=1, logprob=-0.25, rank=1, top_token_ids=[1], top_logprobs=[-0.25])
        completion = pb.Completion(token_ids=[9, 1], logprobs=[entry, other], finished=pb.Finished(finish_reason=2))
        return pb.GenerateResult(completions=[completion])

    fake.complete = complete
    [output] = (await client.complete("x")).outputs
    assert [list(entry) for entry in output.logprobs] == [[9, 1, 2], [1]]
    assert (output.logprobs[0][9].logprob, output.logprobs[0][9].rank, output.logprobs[0][2].rank) == (-2.0, 3, 2)
    assert [entry.decoded_token for entry in output.logprobs[0].values()] == [" nine", " one", ""]
    assert output.logprobs[1][1].decoded_token is None, "this message came without a text"
    assert output.cumulative_logprob == -2.25
    assert (output.finish_reason, output.stop_reason) == ("length", None)


async def test_a_full_queue_is_asked_again_after_the_time_it_names(fake, client, monkeypatch):
    waits = []
    real_sleep = asyncio.sleep

    async def sleep(delay_s):
        waits.append(delay_s)
        await real_sleep(0)

    async def refuse_twice(request, context):
        if len(fake.requests) < 3:
            await fake.refuse(context, "RESOURCE_EXHAUSTED", "full", reason="QUEUE_FULL", retry_after_s=0.2)
        async for response in fake.say_words(request, context):
            yield response

    fake.generate = refuse_twice
    monkeypatch.setattr("pagewire.async_client.asyncio.sleep", sleep)
    events = await collect(client.generate("hello"))
    assert isinstance(events[0], Started)
    assert len(fake.requests) == 3
    waits = [wait for wait in waits if wait]
    assert len(waits) == 2
    assert all(0.2 <= wait <= 0.3 for wait in waits)


async def test_a_wait_beyond_the_timeout_is_not_begun(fake, client):
    async def refuse(request, context):
        await fake.refuse(context, "RESOURCE_EXHAUSTED", "full", reason="QUEUE_FULL", retry_after_s=60)

    fake.complete = refuse
    with pytest.raises(QueueFull) as caught:
        await client.complete("x", timeout_s=5)
    assert caught.value.retry_after_s == 60
    assert len(fake.requests) == 1


async def test_a_server_that_stays_away_is_given_up(fake):
    async def refuse(request, context):
        await fake.refuse(context, "UNAVAILABLE", "no shard group serves", reason="UNAVAILABLE", retry_after_s=0.01)

    fake.complete = refuse
    async with AsyncClient(fake.target, retry=RetryPolicy(max_unavailable_attempts=3)) as client:
        with pytest.raises(Unavailable, match="no shard group serves"):
            await client.complete("x")
    assert len(fake.requests) == 3


async def test_a_stream_that_breaks_before_its_first_token_is_asked_for_again_with_its_seed(fake, client):
    async def break_off_twice(request, context):
        yield pb.GenerateResponse(started=pb.Started(request_id="r", seed=len(fake.requests)))
        if len(fake.requests) < 3:
            await fake.refuse(context, "UNAVAILABLE", "lost the shard", reason="UNAVAILABLE", retry_after_s=0.01)
        yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))

    fake.generate = break_off_twice
    events = await collect(client.generate("x"))
    assert [type(event) for event in events] == [Started, TokenDelta]
    assert [request.sampling_params.seed for request in fake.requests] == [0, 1, 1]


async def test_a_stream_that_breaks_is_resumed_with_all_that_was_received(fake, client):
    logprobs = [pb.TokenLogprobs(token_id=5, logprob=-0.25), pb.TokenLogprobs(token_id=6, logprob=-0.5)]
    parts = [
        [
            pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(first_position=1, logprobs=logprobs)),
            pb.GenerateResponse(delta=pb.Delta(index=1, text="a\u20ac", token_ids=[5, 6], logprobs=logprobs)),
            pb.GenerateResponse(delta=pb.Delta(index=0, text="b", token_ids=[7])),
            pb.GenerateResponse(finished=pb.Finished(index=0)),
        ],
        [pb.GenerateResponse(delta=pb.Delta(index=1, text="c", token_ids=[8], logprobs=logprobs[:1]))],
        [pb.GenerateResponse(finished=pb.Finished(index=1))],
    ]

    async def break_off_twice(request, context):
        yield pb.GenerateResponse(
            started=pb.Started(request_id="r", seed=9, model_digest=b"model", prompt_digest=b"prompt")
        )
        for message in parts[len(fake.requests) - 1]:
            yield message
        if len(fake.requests) < 3:
            await fake.refuse(context, "UNAVAILABLE", "the router stops", reason="UNAVAILABLE", retry_after_s=0.01)

    fake.generate = break_off_twice
    events = await collect(client.generate("x", SamplingParams(n=2, logprobs=0)))
    assert [type(event).__name__ for event in events] == [
        *("Started", "PromptLogprobs", "TokenDelta", "TokenDelta", "SequenceFinished"),
        *("TokenDelta", "SequenceFinished"),
    ]
    first, second, third = fake.requests
    assert not first.HasField("resume")
    assert (second.text, second.sampling_params.n) == ("x", 2)
    same = {"model_digest": b"model", "prompt_digest": b"prompt", "seed": 9, "num_prompt_logprobs": 2}
    ended = pb.ResumedSequence(index=0, finished=True)
    received = pb.ResumedSequence(index=1, token_ids=[5, 6], text_bytes_received=4, cumulative_logprob=-0.75)
    assert second.resume == pb.Resume(**same, sequences=[received, ended])
    received = pb.ResumedSequence(index=1, token_ids=[5, 6, 8], text_bytes_received=5, cumulative_logprob=-1.0)
    assert third.resume == pb.Resume(**same, sequences=[received, ended])


async def test_a_stream_is_resumed_until_nothing_comes_for_as_long_as_the_policy_says(fake):
    """Attempts that bring tokens do not count."""

    async def break_off(request, context):
        yield pb.GenerateResponse(started=pb.Started(prompt_digest=b"prompt"))
        if len(fake.requests) <= 6:
            yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))
        await fake.refuse(context, "UNAVAILABLE", "lost the shard", reason="UNAVAILABLE", retry_after_s=0.01)

    fake.generate = break_off
    async with AsyncClient(fake.target, retry=RetryPolicy(max_unavailable_attempts=3)) as client:
        with pytest.raises(Unavailable, match="lost the shard"):
            await collect(client.generate("x"))
    assert len(fake.requests) == 8
    assert list(fake.requests[-1].resume.sequences[0].token_ids) == [1] * 6


async def test_what_a_server_says_of_lost_shards_is_told_the_next_until_something_comes(fake, client):
    async def lose(request, context):
        yield pb.GenerateResponse(started=pb.Started(prompt_digest=b"prompt"))
        number = len(fake.requests)
        if number in (3, 5):
            yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))
        details = {"reason": "UNAVAILABLE"}
        if number not in (2, 5):
            details = {"reason": "SHARD_LOST", "metadata": {"shard_loss_token": f"lost {number}"}}
        if number < 6:
            await fake.refuse(context, "UNAVAILABLE", "the shards are away", retry_after_s=0.01, **details)

    fake.generate = lose
    await collect(client.generate("x"))
    tokens = [request.resume.shard_loss_token for request in fake.requests]
    assert tokens == ["", "lost 1", "lost 1", "lost 3", "lost 4", ""]


async def test_what_a_caller_does_to_events_does_not_change_what_is_resumed(fake, client):
    async def break_off_once(request, context):
        yield pb.GenerateResponse(started=pb.Started(prompt_digest=b"prompt"))
        if len(fake.requests) == 1:
            yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))
            await fake.refuse(context, "UNAVAILABLE", "lost the shard", reason="UNAVAILABLE", retry_after_s=0.01)

    fake.generate = break_off_once
    async for event in client.generate("x"):
        if isinstance(event, TokenDelta):
            event.token_ids.append(99)
    assert list(fake.requests[-1].resume.sequences[0].token_ids) == [1]


async def test_a_stream_that_breaks_after_its_first_token_is_not_repeated_at_a_server_that_cannot_resume(fake, client):
    async def break_off(request, context):
        yield pb.GenerateResponse(started=pb.Started())
        yield pb.GenerateResponse(delta=pb.Delta(text="a", token_ids=[1]))
        await fake.refuse(context, "UNAVAILABLE", "lost the shard", reason="UNAVAILABLE", retry_after_s=0.01)

    fake.generate = break_off
    with pytest.raises(Unavailable, match="lost the shard"):
        await collect(client.generate("x"))
    assert len(fake.requests) == 1


async def test_without_a_timeout_an_absent_server_is_asked_for_as_long_as_the_policy_says(fake):
    async def refuse(request, context):
        await fake.refuse(context, "UNAVAILABLE", "the router drains", reason="UNAVAILABLE", retry_after_s=0.05)

    fake.complete = refuse
    async with AsyncClient(fake.target, retry=RetryPolicy(max_unavailable_s=0.3)) as client:
        with pytest.raises(Unavailable, match="the router drains"):
            await client.complete("x")
        assert 4 <= len(fake.requests) <= 8
        # A timeout takes the place of the policy's.
        with pytest.raises(Unavailable, match="the router drains"):
            await client.complete("x", timeout_s=1.0)
    assert len(fake.requests) > 18


async def test_a_call_that_the_server_drops_is_asked_for_again(fake, client):
    async def drop_once(request, context):
        if len(fake.requests) == 1:
            await fake.refuse(context, "CANCELLED", "dropped")
        return pb.GenerateResult()

    fake.complete = drop_once
    await client.complete("x")
    assert len(fake.requests) == 2


async def test_leaving_the_iteration_cancels_the_request(fake, client, eventually):
    cancelled = []

    async def forever(request, context):
        try:
            while True:
                yield pb.GenerateResponse(delta=pb.Delta(text="x", token_ids=[1]))
                await asyncio.sleep(0.001)
        finally:
            cancelled.append(request.request_id)

    fake.generate = forever
    async for _ in client.generate("x", request_id="left"):
        break
    await eventually(lambda: cancelled == ["left"])

    stream = client.generate("x", request_id="closed")
    await anext(stream)
    await stream.aclose()
    await eventually(lambda: cancelled == ["left", "closed"])

    task = asyncio.create_task(collect(client.generate("x", request_id="task")))
    await eventually(lambda: fake.requests[-1].request_id == "task")
    task.cancel()
    await eventually(lambda: cancelled == ["left", "closed", "task"])


async def test_the_timeout_is_the_requests_deadline(fake, client):
    async def hang(request, context):
        assert context.time_remaining() < 1
        await asyncio.sleep(60)

    fake.complete = hang
    with pytest.raises(DeadlineExceeded):
        await client.complete("x", timeout_s=0.2)


async def test_the_api_key_is_sent_with_every_call(fake):
    async with AsyncClient(fake.target, api_key="secret") as client:
        await client.complete("x")
        await collect(client.generate("x"))
    for context in fake.contexts:
        assert ("authorization", "Bearer secret") in context.invocation_metadata()


async def test_many_streams_spread_over_a_bounded_number_of_connections(fake, client, eventually):
    release = asyncio.Event()

    async def hold(request, context):
        yield pb.GenerateResponse(started=pb.Started())
        await release.wait()

    fake.generate = hold
    tasks = [asyncio.create_task(collect(client.generate("x"))) for _ in range(10 * STREAMS_PER_CHANNEL)]
    await eventually(lambda: len(fake.contexts) == len(tasks))
    peers = [context.peer() for context in fake.contexts]
    assert len(set(peers)) == MAX_CHANNELS
    assert max(peers.count(peer) for peer in set(peers)) <= 10 * STREAMS_PER_CHANNEL // MAX_CHANNELS + 1
    release.set()
    await asyncio.gather(*tasks)


async def test_events_of_a_newer_protocol_are_passed_over(fake, client):
    async def newer(request, context):
        yield pb.GenerateResponse(started=pb.Started(request_id="a"))
        yield pb.GenerateResponse()
        yield pb.GenerateResponse(finished=pb.Finished(finish_reason=1))

    fake.generate = newer
    events = await collect(client.generate("x"))
    assert [type(event) for event in events] == [Started, SequenceFinished]


async def test_a_unix_socket_serves_as_well(fake, tmp_path):
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with AsyncClient(f"unix:{tmp_path}/s.sock") as client:
        with pytest.raises(ServerError, match="UNIMPLEMENTED"):
            await client.get_model()
    await server.stop(0)


async def test_an_id_that_the_broken_attempt_still_holds_is_asked_for_again(fake, client):
    async def break_off_then_hold(request, context):
        if len(fake.requests) == 1:
            yield pb.GenerateResponse(started=pb.Started(request_id="mine"))
            await fake.refuse(context, "UNAVAILABLE", "the connection broke")
        if len(fake.requests) == 2:
            await fake.refuse(context, "ALREADY_EXISTS", "mine is alive", reason="ALREADY_EXISTS")
        async for response in fake.say_words(request, context):
            yield response

    fake.generate = break_off_then_hold
    events = await collect(client.generate("one", request_id="mine"))
    assert [type(event) for event in events] == [Started, TokenDelta, SequenceFinished]
    assert len(fake.requests) == 3
