"""/v1/messages and /v1/messages/count_tokens, by Anthropic's client."""

import anthropic
import httpx2
import pytest
from pagewire_router.errors import QueueFull
from pagewire_router.text.tokenizer import Tokenizer

TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
HELLO = [{"role": "user", "content": "Hello"}]
ASK = {"model": "tiny", "max_tokens": 200, "messages": HELLO}


async def test_a_message_has_text_reason_and_counts(saying):
    async with saying("Paris it is.") as front:
        client = front.anthropic()
        answer = await client.messages.create(**ASK, system="Be brief.")
        assert [(block.type, block.text) for block in answer.content] == [("text", "Paris it is.")]
        assert (answer.role, answer.stop_reason, answer.stop_sequence) == ("assistant", "end_turn", None)
        usage = answer.usage
        counted = await client.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.")
        (request,) = front.runner.requests
    assert counted.input_tokens == len(request.prompt_token_ids)
    assert usage.input_tokens + usage.cache_read_input_tokens == len(request.prompt_token_ids)
    assert usage.cache_read_input_tokens == 3
    assert usage.output_tokens > 3
    prompt = Tokenizer(front.runner.files, 500).decode(request.prompt_token_ids, skip_special_tokens=False)
    assert prompt == "<s><|system|>Be brief.</s><|user|>Hello</s><|assistant|>"


async def test_parameters_arrive_and_stops_are_told(saying):
    async with saying("Paris it is.") as front:
        client = front.anthropic()
        stopped = await client.messages.create(
            **ASK, stop_sequences=[" it"], extra_body={"temperature": 0.5, "top_p": 0.5, "top_k": 4}
        )
        assert (stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence) == (
            "Paris",
            "stop_sequence",
            " it",
        )
        params = front.runner.requests[0].params
        assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.5, 4, 200)
        cut = await client.messages.create(**{**ASK, "max_tokens": 1})
        assert cut.stop_reason == "max_tokens"


async def test_a_stream_is_accumulated_to_the_same_message(saying):
    text = f"<think>They ask.</think>Let me see.{CALL}"
    parsers = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"}
    async with saying(text, **parsers) as front:
        client = front.anthropic()
        fields = {**ASK, "tools": [TOOL], "thinking": {"type": "enabled", "budget_tokens": 1024}}
        whole = await client.messages.create(**fields)
        async with client.messages.stream(**fields) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_message()
        silent = await client.messages.create(**ASK)
    for message in (whole, streamed):
        thinking, said, call = message.content
        assert (thinking.type, thinking.thinking) == ("thinking", "They ask.")
        assert (said.type, said.text.strip()) == ("text", "Let me see.")
        assert (call.type, call.name, call.input) == ("tool_use", "weather", {"city": "Paris"})
        assert message.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    assert all(block.type == "text" for block in silent.content)


async def test_results_of_tools_are_messages_of_the_conversation(saying):
    messages = [
        *HELLO,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "Looking."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    async with saying("ok") as front:
        await front.anthropic().messages.create(**{**ASK, "messages": messages}, tools=[TOOL])
        (request,) = front.runner.requests
    prompt = Tokenizer(front.runner.files, 500).decode(request.prompt_token_ids, skip_special_tokens=False)
    assert prompt.endswith("<|assistant|>Looking.</s><|tool|>sunny</s><|user|>And?</s><|assistant|>")


async def test_what_is_wrong_or_not_served_is_refused_in_its_form(saying):
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    refused = {
        "messages": [],
        "messages[0].role": [{"role": "robot", "content": "a"}],
        "messages[0].content[0].type": [{"role": "user", "content": [image]}],
        "tools[0].input_schema": [{"name": "a"}],
        "tool_choice": {"type": "any"},
        "thinking.type": {"type": "perhaps"},
        "max_tokens": 0,
        "top_p": 7,
        "stop": ["a"],
        "guided_json": {},
    }
    async with saying("ok") as front:
        client = front.anthropic()
        for name, value in refused.items():
            field = name.partition("[")[0].partition(".")[0]
            with pytest.raises(anthropic.BadRequestError) as error:
                await client.messages.create(**ASK, extra_body={field: value})
            assert error.value.body["error"]["type"] == "invalid_request_error"
            assert name in error.value.body["error"]["message"]
        async with httpx2.AsyncClient() as plain:
            answer = await plain.post(f"{front.base_url}/v1/messages", json={"messages": HELLO})
            assert answer.json()["error"]["message"].startswith("max_tokens")
        with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
            await client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})
        with pytest.raises(anthropic.BadRequestError, match="thread: is not served") as stateful:
            await client.messages.create(**ASK, extra_body={"thread": {"type": "create"}})
        assert stateful.value.body["error"]["details"]["error_code"] == "thread_unsupported_request"
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(**{**ASK, "model": "huge"})
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.count_tokens(model="huge", messages=HELLO)
        front.runner.refusal = QueueFull("full", retry_after_s=2.5)
        with pytest.raises(anthropic.RateLimitError) as full:
            await client.messages.create(**ASK)
        assert full.value.response.headers["retry-after"] == "3"
