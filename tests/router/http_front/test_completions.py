"""/v1/completions, by OpenAI's client."""

import asyncio
import json

import httpx2
import openai
import pytest
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_router.errors import StepFailed
from pagewire_router.http_front import completion_answer
from pagewire_router.http_front.chunks import AnswerOptions
from pagewire_router.http_front.completion_answer import CompletionAnswer
from pagewire_router.http_front.errors import HttpError
from pagewire_router.http_front.logprobs import LogprobsWriter
from pagewire_router.inference import CompletedRequest


async def chunks(stream):
    return [chunk async for chunk in stream]


def text_of(chunks, index=0):
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_a_completion_has_text_reason_and_counts(serve_http):
    async with serve_http() as front:
        answer = await front.openai().completions.create(model="tiny", prompt="Hello", max_tokens=5)
        (request,) = front.runner.requests
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "GHIJK", "length")
    assert answer.usage.prompt_tokens == len(request.prompt_token_ids) == 4
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == 9
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_a_stream_has_the_same_text_and_ends_with_the_counts(serve_http):
    async with serve_http() as front:
        client = front.openai()
        stream = await client.completions.create(
            model="tiny", prompt="Hello", max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
        *told, last = await chunks(stream)
        assert text_of(told) == "GHIJK"
        assert [choice.finish_reason for chunk in told for choice in chunk.choices][-1] == "length"
        assert last.choices == []
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 5)
        assert len({chunk.id for chunk in (*told, last)}) == 1
        without = await chunks(await client.completions.create(model="tiny", prompt="Hello", max_tokens=5, stream=True))
    assert text_of(without) == "GHIJK"
    assert all(chunk.usage is None for chunk in without)


async def test_every_step_of_a_stream_is_a_chunk(serve_http):
    async with serve_http(step_s=0.01) as front:
        stream = await front.openai().completions.create(model="tiny", prompt="Hello", max_tokens=6, stream=True)
        told = await chunks(stream)
    assert [chunk.choices[0].text for chunk in told] == list("GHIJKL")


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_of_all_kinds_are_answered_in_order(serve_http, stream):
    prompts = ["Hello", [3, 4, 5]], [[3, 4], [5]], ["a", "b"]
    async with serve_http(script=lambda r: [40 + len(r.prompt_token_ids)] * 2) as front:
        client = front.openai()
        for prompt in prompts:
            answer = await client.completions.create(
                model="tiny", prompt=prompt, max_tokens=2, n=2, temperature=1, stream=stream, logit_bias={"7": 1}
            )
            told = await chunks(answer) if stream else [answer]
            lengths = [len(request.prompt_token_ids) for request in front.runner.requests]
            front.runner.requests.clear()
            for number, length in enumerate(lengths):
                expected = chr(ord("G") + length) * 2
                assert text_of(told, 2 * number) == text_of(told, 2 * number + 1) == expected
        ids = await client.completions.create(model="tiny", prompt=[3, 4, 5], max_tokens=1)
        assert ids.usage.prompt_tokens == 3


async def test_sampling_parameters_arrive(serve_http):
    fields = {
        "temperature": 0.5,
        "top_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "seed": 7,
        "stop": ["x", "y"],
        "max_tokens": 9,
    }
    extra = {
        "top_k": 3,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [9],
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "include_stop_str_in_output": True,
    }
    async with serve_http() as front:
        client = front.openai()
        await client.completions.create(
            model="tiny",
            prompt="Hello",
            n=2,
            logit_bias={"7": -1.0},
            user="someone",
            **fields,
            extra_body={**extra, "priority": -3, "cache_salt": "salt", "request_id": "mine"},
        )
        (request,) = front.runner.requests
        params = request.params
        assert {name: getattr(params, name) for name in fields} == fields
        assert {name: getattr(params, name) for name in extra} == extra
        assert dict(params.logit_bias) == {7: -1.0}
        assert params.n == 2
        assert (request.priority, request.cache_salt, request.request_id) == (-3, "salt", "mine")
        await client.completions.create(model="tiny", prompt="Hello", stop="z")
        params = front.runner.requests[-1].params
    assert (list(params.stop), params.max_tokens, params.temperature) == (["z"], 16, 1.0)


async def test_a_stop_string_and_a_stop_token_are_told(serve_http):
    async with serve_http() as front:
        client = front.openai()
        answer = await client.completions.create(model="tiny", prompt="Hello", stop="IJ", max_tokens=9)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("GH", "stop")
        assert answer.choices[0].stop_reason == "IJ"
        stream = await client.completions.create(
            model="tiny", prompt="Hello", max_tokens=9, stream=True, extra_body={"stop_token_ids": [42]}
        )
        told = await chunks(stream)
    assert text_of(told) == "GH"
    assert told[-1].choices[0].stop_reason == 42


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_of_each_token(serve_http, stream):
    async with serve_http() as front:
        answer = await front.openai().completions.create(
            model="tiny", prompt="Hello", max_tokens=3, logprobs=1, stream=stream
        )
        told = await chunks(answer) if stream else [answer]
    parts = [chunk.choices[0].logprobs for chunk in told]
    assert [token for part in parts for token in part.tokens] == ["G", "H", "I"]
    assert [offset for part in parts for offset in part.text_offset] == [0, 1, 2]
    assert [value for part in parts for value in part.token_logprobs] == [-0.5] * 3
    assert [top for part in parts for top in part.top_logprobs] == [{"&": -0.5, token: -0.5} for token in "GHI"]


async def test_echo_puts_the_prompt_before_the_text(serve_http):
    async with serve_http() as front:
        client = front.openai()
        answer = await client.completions.create(model="tiny", prompt=["Hello", [40, 41]], max_tokens=2, echo=True)
        assert [choice.text for choice in answer.choices] == ["HelloGH", "GHGH"]
        stream = await client.completions.create(model="tiny", prompt="Hello", max_tokens=2, echo=True, stream=True)
        assert text_of(await chunks(stream)) == "HelloGH"


async def test_log_probabilities_of_the_prompt_are_made_once_and_bounded_for_all_sequences(monkeypatch):
    made = []
    for_prompt = LogprobsWriter.for_prompt
    monkeypatch.setattr(LogprobsWriter, "for_prompt", lambda *given: made.append(1) or for_prompt(*given))
    entries = [inference_pb2.TokenLogprobs(token_id=6, token_text="b", logprob=-0.5)]
    started = inference_pb2.Started(num_prompt_tokens=2, prompt_token_ids=[5, 6])
    ends = [inference_pb2.Finished(index=index) for index in range(3)]
    completions = [inference_pb2.Completion(index=index, text="c", finished=ends[index]) for index in range(3)]

    async def told():
        completed = CompletedRequest(started, iter([inference_pb2.PromptLogprobs(logprobs=entries)]), iter(completions))
        options = AnswerOptions.of({"n": 3}, has_logprobs=True)
        answer = CompletionAnswer({}, options, ["ab"], lambda token_id: "a", is_echo_alone=False, num_echoed=2)
        return json.loads(await answer.whole([completed]))["choices"]

    choices = await told()
    assert [choice["text"] for choice in choices] == ["abc"] * 3
    assert [choice["logprobs"]["tokens"] for choice in choices] == [["a", "b"]] * 3
    assert made == [1]
    monkeypatch.setattr(completion_answer, "MAX_ECHOED_LOGPROBS", 11)
    with pytest.raises(HttpError, match="12 together; accepted: up to 11") as refused:
        await told()
    assert refused.value.param == "n"


@pytest.mark.parametrize("stream", [False, True])
async def test_token_ids_are_returned_if_asked_for(serve_http, stream):
    async with serve_http() as front:
        answer = await front.openai().completions.create(
            model="tiny", prompt=[5, 6], max_tokens=3, stream=stream, extra_body={"return_token_ids": True}
        )
        told = await chunks(answer) if stream else [answer]
    assert told[0].choices[0].prompt_token_ids == [5, 6]
    assert [token for chunk in told for token in chunk.choices[0].token_ids] == [40, 41, 42]


REFUSED = {
    "suffix": "b",
    "best_of": 3,
    "top_p": 3,
    "n": 0,
    "stop": [""],
    "max_tokens": "many",
    "temperature": [1],
    "seed": 1 << 70,
    "logit_bias": {"x": 1},
    "stream_options": {"include_usage": True},
    "guided_json": {},
    "typical_p": 0.5,
    "prompt_logprobs": 99,
    "use_beam_search": True,
    "length_penalty": 2.0,
    "early_stopping": "never",
    "logprob_token_ids": [1],
    "truncation_side": "right",
    "watermarking": True,
    "response_format": {"type": "xml"},
    "logprobs": 99,
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_wrong_or_not_served_is_refused_by_name(serve_http, name):
    async with serve_http() as front:
        with pytest.raises(openai.BadRequestError) as refused:
            await front.openai().completions.create(model="tiny", prompt="Hello", extra_body={name: REFUSED[name]})
    body = refused.value.body
    assert body["param"].startswith(name)
    assert name in body["message"]
    assert body["type"] == "invalid_request_error"


async def test_what_a_search_cannot_do_is_refused_by_name(serve_http):
    params = {"use_beam_search": True, "n": 3, "temperature": 0, "seed": 4}
    refused = {
        "stream": {"stream": True},
        "logprobs": {"logprobs": 1},
        "stop": {"stop": ["a"]},
        "presence_penalty": {"presence_penalty": 1},
        "n": {"n": 99},
        "length_penalty": {"length_penalty": 99},
    }
    model = shard_pb2.ShardInfo(model="tiny", vocab_size=500, max_model_len=256, max_num_seqs=64, max_scores=500)
    async with serve_http(model=model) as front:
        client = front.openai()
        for name, fields in refused.items():
            with pytest.raises(openai.BadRequestError) as error:
                await client.completions.create(model="tiny", prompt="Hello", extra_body={**params, **fields})
            assert error.value.param == name


async def test_prompt_log_probabilities_are_not_streamed(serve_http):
    async with serve_http() as front:
        for create, prompt in (
            (front.openai().completions.create, {"prompt": "Hello"}),
            (front.openai().chat.completions.create, {"messages": [{"role": "user", "content": "a"}]}),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await create(model="tiny", **prompt, stream=True, extra_body={"prompt_logprobs": 1})
            assert refused.value.param == "prompt_logprobs"


async def test_fields_that_are_not_known_are_ignored_and_named(serve_http):
    extra = {"max_token": 3, "thinking": {"type": "enabled"}, "a b": 1, "\n": 2, "stop": None}
    async with serve_http() as front:
        client = front.openai().completions.with_raw_response
        answer = await client.create(model="tiny", prompt="Hello", max_tokens=2, extra_body=extra)
        assert answer.headers["x-pagewire-ignored-fields"] == "max_token, thinking"
        assert answer.parse().choices[0].text == "GH"
        stream_options = {"include_usage": True, "new": 1}
        answer = await client.create(model="tiny", prompt="Hello", max_tokens=2, stream=True, extra_body={"new": 1})
        assert answer.headers["x-pagewire-ignored-fields"] == "new"
        answer = await client.create(
            model="tiny", prompt="Hello", max_tokens=2, stream=True, stream_options=stream_options
        )
        assert "x-pagewire-ignored-fields" not in answer.headers
        with pytest.raises(openai.BadRequestError, match=r"structured_outputs\.jsn"):
            await client.create(model="tiny", prompt="Hello", extra_body={"structured_outputs": {"jsn": {}}})


async def test_prompts_that_cannot_be_served_are_refused(serve_http):
    async with serve_http() as front:
        client = front.openai()
        for prompt in (None, [], [[]], [-1], [1 << 40], [499, 500], ["a", 3], 7, [["a"]], {"a": 1}):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.completions.create(model="tiny", prompt=prompt)
            assert refused.value.param.startswith("prompt"), prompt
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="tiny", prompt=[5] * 256)
        assert refused.value.code == "context_length_exceeded"
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="huge", prompt="Hello")
        assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")


async def test_the_model_is_listed(serve_http):
    async with serve_http() as front:
        models = await front.openai().models.list()
    assert [(model.id, model.max_model_len) for model in models.data] == [("tiny", 256)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels(serve_http, stream):
    async with serve_http(step_s=0.02, script=lambda r: [40] * 200) as front:
        async with asyncio.timeout(10):
            async with httpx2.AsyncClient() as client:
                sending = asyncio.create_task(
                    client.post(
                        f"{front.base_url}/v1/completions",
                        json={"prompt": "Hello", "max_tokens": 200, "n": 2, "stream": stream},
                    )
                )
                while not front.runner.requests:
                    await asyncio.sleep(0.01)
                sending.cancel()
            while not front.runner.aborted:
                await asyncio.sleep(0.01)
        page = front.router.server._metrics.render().decode()
    assert 'pagewire_http_requests_total{route="/v1/completions",status="499"} 1.0' in page
    assert front.runner.aborted == front.runner.requests


async def test_one_failing_prompt_ends_the_others(serve_http):
    def script(request):
        if len(request.prompt_token_ids) == 1:
            raise AssertionError("not reached")
        return [40] * 100

    async with serve_http(step_s=0.02, script=script) as front:
        client = front.openai()
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="tiny", prompt=[[5, 6], [7, 8], [9, 499, 500]], stream=True)
        assert len(front.runner.aborted) == len(front.runner.requests) == 2


async def test_a_request_that_fails_amid_its_stream_ends_with_an_error_event(serve_http):
    async with serve_http(step_s=0.02, script=lambda r: [40] * 200) as front:
        stream = await front.openai().completions.create(model="tiny", prompt="Hello", max_tokens=200, stream=True)
        told = [await anext(stream), await anext(stream)]
        (request,) = front.runner.requests
        request.sink.on_failed(StepFailed("the step failed"))
        with pytest.raises(openai.APIError) as failed:
            told += await chunks(stream)
    assert failed.value.code == "step_failed"
    assert "the step failed" in failed.value.message
