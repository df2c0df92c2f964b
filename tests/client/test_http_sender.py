"""What a benchmark makes of the answers of servers over HTTP."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from contextlib import suppress

import pytest
from pagewire import InvalidRequest, Unavailable
from pagewire.bench.http_sender import HttpSender, HttpTarget
from pagewire.bench.runner import Load, offer
from pagewire.bench.sending import Recording

USAGE = {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 2}}
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[object, object, None]]


def sse(*events: object) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def text(said: str, **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": said, **more}]}


def delta(**said: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": said}]}


def recorded(*parts: bytes) -> Recording:
    return Recording(10.0, 20.0, [11.0 + number for number in range(len(parts))], list(parts))


def sender(url: str = "http://localhost:1", **fields: object) -> HttpSender:
    return HttpTarget(url, "m", **fields).connect()  # type: ignore[arg-type]


def test_messages_have_the_times_at_which_they_were_complete():
    stream = sse(text("ab"), text(""), text("c", finish_reason="stop"), {"choices": [], "usage": USAGE})
    for cut in (1, 7, len(stream) // 2, len(stream) - 20):
        outcome = sender().outcome(recorded(stream[:cut], stream[cut:]), origin_s=10.0)
        assert outcome.text == "abc"
        assert outcome.message_tokens == (3, 3)
        assert all(time_s in (1.0, 2.0) for time_s in outcome.message_times_s)
        assert (outcome.num_prompt_tokens, outcome.num_cached_tokens) == (5, 2)
        assert (outcome.start_s, outcome.end_s, outcome.error) == (0.0, 10.0, "")


def test_token_ids_tell_how_many_tokens_a_message_has():
    stream = sse(text("ab", token_ids=[1]), text("c", token_ids=[2, 3, 4, 5, 6]), {"choices": [], "usage": USAGE})
    assert sender().outcome(recorded(stream), 0.0).message_tokens == (1, 5)


def test_tokens_without_text_came_with_the_first_chunk():
    outcome = sender().outcome(recorded(sse(text("")), sse({"choices": [], "usage": USAGE})), 10.0)
    assert (outcome.message_times_s, outcome.message_tokens) == ((1.0,), (6,))


def test_conversations_say_content_reasoning_and_calls():
    call = {"index": 0, "function": {"arguments": "{}"}}
    said = (delta(role="assistant", content=""), delta(reasoning_content="r"), delta(content="c"))
    stream = sse(*said, delta(tool_calls=[call]), {"choices": [], "usage": USAGE})
    outcome = sender(is_chat=True).outcome(recorded(stream), 0.0)
    assert outcome.text == "rc{}"
    assert outcome.message_tokens == (2, 2, 2)


def test_an_error_within_a_stream_is_one():
    assert "boom" in sender().outcome(recorded(sse(text("a"), {"error": {"message": "boom"}})), 0.0).error


def test_conversations_continue_with_what_was_said():
    stream = recorded(sse(text("a", token_ids=[7, 8]), text("b", token_ids=[9])))
    assert sender(needs_token_ids=True).continued([1, 2], stream, [3]) == [1, 2, 7, 8, 9, 3]
    chat = recorded(sse(delta(content="a"), delta(content="b")))
    assert sender(is_chat=True).continued("hello", chat, "more") == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "more"},
    ]


def test_a_request_has_what_was_asked_for():
    head, _, body = (
        sender("http://host:8/base", fields={"top_k": 1}, api_key="k").serialize([1, 2], 9).partition(b"\r\n\r\n")
    )
    assert head.startswith(b"POST /base/v1/completions HTTP/1.1\r\nhost: host:8\r\n")
    assert b"authorization: Bearer k" in head
    assert f"content-length: {len(body)}".encode() in head
    told = json.loads(body)
    assert (told["prompt"], told["max_tokens"], told["top_k"], told["stream"]) == ([1, 2], 9, 1, True)
    assert told["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InvalidRequest, match="is no URL"):
        sender(url)


async def answered(handle: Handle, num: int = 1, **fields: object) -> tuple[list[object], int]:
    """The errors of requests to a server, one after the other, and how many connections they took."""
    num_connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await handle(reader, writer)

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sends = sender(f"http://127.0.0.1:{port}", **fields)
        load = Load([sends.serialize([1], 1)] * num, [0.0] * num, max_concurrency=1)
        outcomes, _ = await offer(load, sends, lambda _: None)
        await sends.close()
    return [outcome.error for outcome in outcomes], num_connections


def saying(*parts: bytes, close: bool = False) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b'"include_usage": true}}'):
                for part in parts:
                    writer.write(part)
                    await writer.drain()
                if close:
                    break
        writer.close()

    return handle


def whole(status: bytes, body: bytes, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%scontent-length: %d\r\n\r\n%s" % (status, head, len(body), body)


async def test_connections_are_used_again_unless_the_server_closes_them():
    body = sse(text("a"))
    assert await answered(saying(whole(b"200 OK", body)), 3) == (["", "", ""], 1)
    assert await answered(saying(whole(b"200 OK", body, b"connection: close\r\n"), close=True), 3) == (["", "", ""], 3)


async def test_failures_are_outcomes():
    errors, _ = await answered(saying(whole(b"429 Too Many", b'{"error": "full"}')))
    assert errors == ['HTTP 429: {"error": "full"}']
    errors, _ = await answered(saying(whole(b"200 OK", b"0123456789")[:-3], close=True))
    assert "the connection was lost" in str(errors[0])
    errors, _ = await answered(saying(b"nonsense\r\n\r\n"))
    assert "is no HTTP" in str(errors[0])
    errors, _ = await answered(saying(), timeout_s=0.1)
    assert errors == ["the request took too long"]
    sends = sender("http://127.0.0.1:1")
    outcomes, _ = await offer(Load([sends.serialize([1], 1)], [0.0]), sends, lambda _: None)
    assert "127.0.0.1" in outcomes[0].error or "refused" in outcomes[0].error
    with pytest.raises(Unavailable, match="/v1/models"):
        await sends.ask("GET", "/v1/models")
