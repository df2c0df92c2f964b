"""/v1/chat/completions, by OpenAI's client."""

import json

import openai
import pytest
from pagewire_router.text.tokenizer import Tokenizer

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris", "days": 2}}</tool_call>'
HELLO = [{"role": "user", "content": "Hello"}]


async def chunks(stream):
    return [chunk async for chunk in stream]


def text_of(chunks, index=0, name="content"):
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(getattr(choice.delta, name, None) or "" for choice in choices)


async def test_a_conversation_is_rendered_and_answered(saying):
    async with saying("Paris it is.") as front:
        client = front.openai()
        answer = await client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "The capital"}, {"type": "text", "text": "?"}]},
            ],
            extra_body={"return_token_ids": True},
        )
        prompt = Tokenizer(front.runner.files, 500).decode(answer.prompt_token_ids, skip_special_tokens=False)
        assert prompt == "<s><|system|>Be brief.</s><|user|>The capital\n?</s><|assistant|>"
        (choice,) = answer.choices
        assert (choice.message.role, choice.message.content) == ("assistant", "Paris it is.")
        assert choice.message.tool_calls is None
        assert choice.finish_reason == "stop"
        assert answer.usage.completion_tokens == len(choice.token_ids)
        (request,) = front.runner.requests
        assert request.params.max_tokens == 256 - len(answer.prompt_token_ids)


async def test_a_stream_begins_with_the_role_and_ends_with_the_counts(saying):
    async with saying("Paris it is.") as front:
        stream = await front.openai().chat.completions.create(
            model="tiny", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        *told, last = await chunks(stream)
    for index in (0, 1):
        mine = [choice for chunk in told for choice in chunk.choices if choice.index == index]
        assert mine[0].delta.role == "assistant"
        assert all(choice.delta.role is None for choice in mine[1:])
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert text_of(told, index) == "Paris it is."
    assert last.choices == []
    assert last.usage.completion_tokens > 2 * 3
    assert {chunk.object for chunk in told} == {"chat.completion.chunk"}


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_of_each_token(saying, stream):
    async with saying("Paris") as front:
        answer = await front.openai().chat.completions.create(
            model="tiny", messages=HELLO, logprobs=True, top_logprobs=1, stream=stream
        )
        told = await chunks(answer) if stream else [answer]
    entries = [entry for chunk in told for entry in chunk.choices[0].logprobs.content]
    assert "".join(entry.token for entry in entries).startswith("Paris")
    assert all(entry.logprob == -0.5 for entry in entries)
    assert all(bytes(entry.bytes).decode() == entry.token for entry in entries)
    assert [[top.token for top in entry.top_logprobs] for entry in entries] == [["&"]] * len(entries)


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_and_reasoning_are_told_apart(saying, stream):
    text = f"<think>They ask.</think>Let me see.{CALL}{CALL}"
    async with saying(text, tool_call_parser="hermes", reasoning_parser="qwen3") as front:
        answer = await front.openai().chat.completions.create(
            model="tiny", messages=HELLO, tools=[TOOL], stream=stream, max_tokens=200
        )
        told = await chunks(answer) if stream else [answer]
    if stream:
        calls = {}
        for chunk in told:
            for call in chunk.choices[0].delta.tool_calls or ():
                known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                known["arguments"] += call.function.arguments
        calls = list(calls.values())
        content, reasoning = text_of(told), text_of(told, name="reasoning_content")
    else:
        message = answer.choices[0].message
        calls = [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}
            for call in message.tool_calls
        ]
        content, reasoning = message.content, message.reasoning_content
    assert reasoning == "They ask."
    assert content.strip() == "Let me see."
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("weather", {"city": "Paris", "days": 2})
    ] * 2
    assert len({call["id"] for call in calls}) == 2
    assert told[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_counted(saying, stream):
    async with saying("<think>They ask.</think>Paris", reasoning_parser="qwen3") as front:
        fields = {"model": "tiny", "messages": HELLO, "max_tokens": 200}
        if stream:
            options = {"include_usage": True, "continuous_usage_stats": True}
            told = await chunks(
                await front.openai().chat.completions.create(**fields, stream=True, stream_options=options)
            )
            *running, last = [chunk.usage for chunk in told]
            counts = [usage.completion_tokens_details.reasoning_tokens for usage in running]
            assert counts == sorted(counts)
            assert {usage.prompt_tokens for usage in running} == {last.prompt_tokens}
            # What is cached is known at the end.
            assert running[0].prompt_tokens_details is None
            assert running[-1].prompt_tokens_details.cached_tokens == last.prompt_tokens_details.cached_tokens == 3
        else:
            last = (await front.openai().chat.completions.create(**fields)).usage
        silent = await front.openai().chat.completions.create(**fields, extra_body={"include_reasoning": False})
        plain = await front.openai().chat.completions.create(**fields, max_completion_tokens=2)
    assert 3 < last.completion_tokens_details.reasoning_tokens < last.completion_tokens - 3
    assert silent.usage.completion_tokens_details.reasoning_tokens > 3
    assert plain.system_fingerprint.startswith("fp_")


async def test_the_helper_of_openai_s_client_is_told_when_each_call_is_done(saying, byte_level_files):
    """It ends a call at the next chunk, so that the last call must not come with what ends the stream."""
    num_tokens = len(Tokenizer(byte_level_files, 500).encode_now(CALL + CALL, add_special_tokens=False))
    async with saying(CALL + CALL, tool_call_parser="hermes") as front:
        async with front.openai().chat.completions.stream(
            model="tiny", messages=HELLO, tools=[TOOL], max_tokens=num_tokens, logprobs=True
        ) as stream:
            done = [event.index async for event in stream if event.type == "tool_calls.function.arguments.done"]
            (choice,) = stream.current_completion_snapshot.choices
    assert done == [0, 1]
    assert choice.finish_reason == "length"
    assert "".join(entry.token for entry in choice.logprobs.content) == CALL + CALL


async def test_calls_and_reasoning_can_be_left_out(saying):
    text = f"<think>They ask.</think>{CALL}{CALL}"
    async with saying(text, tool_call_parser="hermes", reasoning_parser="qwen3") as front:
        client = front.openai()
        fields = {"model": "tiny", "messages": HELLO, "tools": [TOOL], "max_tokens": 200}
        one = await client.chat.completions.create(**fields, parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls) == 1
        silent = await client.chat.completions.create(**fields, extra_body={"include_reasoning": False})
        assert silent.choices[0].message.reasoning_content is None
        none = await client.chat.completions.create(**fields, tool_choice="none")
        assert none.choices[0].message.tool_calls is None
        assert none.choices[0].finish_reason == "stop"


async def test_what_the_template_needs_arrives(serve_http, byte_level_files):
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments.city }}"
        "{% endfor %}{% endfor %}|{{ tools[0].function.name }}|{{ reasoning_effort }}|{{ enable_thinking }}|"
        "{{ documents[0].text }}|{{ add_generation_prompt }}"
    )
    config = {**json.loads(byte_level_files["tokenizer_config.json"]), "chat_template": template}
    files = {**byte_level_files, "tokenizer_config.json": json.dumps(config).encode()}
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    async with serve_http(files=files) as front:
        answer = await front.openai().chat.completions.create(
            model="tiny",
            messages=[*HELLO, {"role": "assistant", "content": "", "tool_calls": [call]}],
            tools=[TOOL],
            reasoning_effort="low",
            max_completion_tokens=2,
            extra_body={
                "chat_template_kwargs": {"enable_thinking": False},
                "documents": [{"text": "facts"}],
                "add_generation_prompt": False,
                "return_token_ids": True,
            },
        )
        prompt = Tokenizer(files, 500).decode(answer.prompt_token_ids, skip_special_tokens=False)
        assert prompt == "user:Helloassistant:Rome|weather|low|False|facts|False"
        assert front.runner.requests[0].params.max_tokens == 2


REFUSED = {
    "messages": [],
    "messages[1].role": [*HELLO, {"content": "a"}],
    "messages[0].content[0]": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    "messages[0]": ["Hello"],
    "tools[0].type": [{"type": "retrieval"}],
    "tools[0].function.name": [{"type": "function", "function": {}}],
    "tool_choice": "required",
    "top_logprobs": 3,
    "audio": {},
    "functions": [],
    "modalities": ["audio"],
    "max_completion_tokens": 0,
    "chat_template": "{{ messages }}",
    "chat_template_kwargs.messages": {"messages": []},
    "response_format.type": {"type": "xml"},
    "response_format.json_schema": {"type": "json_schema"},
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_wrong_or_not_served_is_refused_by_name(serve_http, name):
    field = name.partition("[")[0].partition(".")[0]
    async with serve_http() as front:
        with pytest.raises(openai.BadRequestError) as refused:
            await front.openai().chat.completions.create(
                model="tiny", messages=HELLO, extra_body={field: REFUSED[name]}
            )
    assert refused.value.param == name
    assert name in refused.value.body["message"]


async def test_a_constraint_that_cannot_be_served_is_refused_by_name(serve_http):
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True}}
    async with serve_http() as front:
        client = front.openai()
        named = {"type": "function", "function": {"name": "weather"}}
        for field, fields in (
            ("response_format", {"response_format": {"type": "json_object"}}),
            ("response_format", {"response_format": schema}),
            ("structured_outputs", {"structured_outputs": {"regex": "a+"}}),
            ("tool_choice", {"tools": [TOOL], "tool_choice": named}),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.chat.completions.create(model="tiny", messages=HELLO, extra_body=fields)
            assert refused.value.param == field
        answer = await client.chat.completions.create(
            model="tiny", messages=HELLO, response_format={"type": "text"}, max_tokens=2
        )
        assert answer.choices[0].finish_reason == "length"
