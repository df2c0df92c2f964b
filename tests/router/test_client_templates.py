"""Chat templates that clients send: refused unless the router is told to take them, and then bounded in a process."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import grpc
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2
from pagewire.v1 import inference_pb2
from pagewire_router.caller import Caller
from pagewire_router.errors import QueueFull, Unavailable
from pagewire_router.text.chat_template import ChatTemplateError, Conversation, RenderedTooLong
from pagewire_router.text.template_process import TemplateProcess, encode_request

SOMEBODY = Caller.of("ipv4:10.0.0.9:1000")
TRUSTING = {"trust_request_chat_template": True}
MESSAGES = [{"role": "user", "content": "Hi"}]
FOREVER = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
HOLDS_THE_INTERPRETER = "{{ 9 ** (9 ** 9) }}"
EAT_MEMORY = {
    "string": "{{ ('a' * 1000000000) | length }}",
    "list": "{{ ([0] * 100000000) | length }}",
    "center": "{{ ('x' | center(1000000000)) | length }}",
    "format": "{{ ('%1000000000d' | format(1)) | length }}",
    "indent": "{{ ([1] | tojson(indent=1000000000)) | length }}",
    "join": "{{ (range(99999) | join('a' * 99999)) | length }}",
    "doubling": "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
}


def chat(template=None, **fields):
    messages = [inference_pb2.ChatMessage(role="user", content="Hi")]
    return inference_pb2.ChatPrompt(messages=messages, chat_template=template, **fields)


def request(template, max_chars=100_000):
    return encode_request(template, Conversation(MESSAGES), {}, max_chars)


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def violations(error):
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    for packed in status.details:
        found = error_details_pb2.BadRequest()
        if packed.Unpack(found):
            return {violation.field: violation.description for violation in found.field_violations}
    return {}


def may_come_back(error):
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    return any(packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for packed in status.details)


def workers():
    """Children that have ended count too, until their parent has taken note. Those of other tests of this process do
    not: one that compiles grammars, or multiprocessing's."""
    return [child for child in psutil.Process().children() if renders_or_has_ended(child)]


def renders_or_has_ended(process):
    try:
        return any("template_worker" in word for word in process.cmdline())
    except psutil.ZombieProcess:
        return True


async def all_gone():
    """Waits until every process is gone, and its parent has taken note."""
    deadline_s = time.monotonic() + 10
    while workers():
        assert time.monotonic() < deadline_s, workers()
        await asyncio.sleep(0.02)


async def test_a_template_is_refused_by_its_field_unless_the_router_takes_them(serve):
    async with serve() as router:
        error = await refusal(router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat("{{ 1 }}"))))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "--trust-request-chat-template" in violations(error)["chat.chat_template"]
        named = await router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat("default")))
        assert named.text == "<s><|user|>Hi</s><|assistant|>"
        assert not workers()


async def test_a_template_renders_as_the_models_would(serve):
    async with serve(config=TRUSTING) as router:
        prompt = chat(
            "{{ bos_token }}{{ messages[0].content }}{{ x | tojson }}", template_kwargs_json='{"x": [1.0, 1]}'
        )
        for _ in range(3):
            answer = await router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=prompt))
            assert answer.text == "<s>Hi[1.0, 1]"
        assert len(workers()) == 1
        assert await router.generate(chat=prompt)
    assert not workers()


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "chat template says"),
        ('{{ raise_exception("no \\ud800") }}', "no"),
        ('{{ "\\ud800" }}', "surrogate"),
        ("{% break %}", "SyntaxError"),
        ("{{a}}" * 20_000, "accepted: up to 65536"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "fit no context"),
        (HOLDS_THE_INTERPRETER, "takes more than 2 s"),
    ],
)
async def test_what_a_template_does_wrong_is_its_own_requests_error(serve, template, reason):
    async with serve(config=TRUSTING) as router:
        error = await refusal(router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat(template))))
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert reason in violations(error)["chat.chat_template"]
        assert "Traceback" not in error.details()
        assert (await router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat("{{ 1 }}")))).text == "1"


async def test_others_notice_nothing_of_a_template_that_never_ends(serve):
    async with serve(config=TRUSTING) as router:
        attack = asyncio.ensure_future(router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat(FOREVER))))
        await asyncio.sleep(0.3)
        for text in ("short", "long " * 300):
            await asyncio.wait_for(router.stub.Tokenize(inference_pb2.TokenizeRequest(text=text)), 5)
        await asyncio.wait_for(router.stub.Tokenize(inference_pb2.TokenizeRequest(chat=chat())), 5)
        assert not attack.done()
        assert (await refusal(attack)).code() == grpc.StatusCode.INVALID_ARGUMENT
        await all_gone()


@pytest.mark.parametrize("name", EAT_MEMORY)
async def test_memory_is_bounded(name):
    process = TemplateProcess(max_seconds=10)
    try:
        with pytest.raises(ChatTemplateError):
            await process.render(request(EAT_MEMORY[name]), SOMEBODY)
        assert await process.render(request("{{ messages[0].content }}"), SOMEBODY) == "Hi"
    finally:
        await process.close()


async def test_text_is_bounded_before_it_leaves_the_process():
    process = TemplateProcess()
    try:
        with pytest.raises(RenderedTooLong):
            await process.render(request("{{ 'a' * 11 }}", max_chars=10), SOMEBODY)
    finally:
        await process.close()


async def test_rendering_ends_when_its_client_goes_away():
    process = TemplateProcess(max_seconds=60)
    try:
        assert await process.render(request("{{ 1 }}"), SOMEBODY) == "1"
        attack = asyncio.ensure_future(process.render(request(HOLDS_THE_INTERPRETER), SOMEBODY))
        await asyncio.sleep(0.2)
        attack.cancel()
        await asyncio.wait([attack])
        await all_gone()
        assert await process.render(request("{{ 2 }}"), SOMEBODY) == "2"
    finally:
        await process.close()
    assert not workers()


async def test_too_many_at_once_are_told_to_come_back():
    process = TemplateProcess(max_seconds=60, max_waiting=2)
    try:
        waiting = [asyncio.ensure_future(process.render(request(FOREVER), SOMEBODY)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as caught:
            await process.render(request("{{ 1 }}"), SOMEBODY)
        assert caught.value.retry_after_s
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)
        assert await process.render(request("{{ 1 }}"), SOMEBODY) == "1"
    finally:
        await process.close()


async def test_one_client_leaves_the_process_to_others_too():
    async def ask(peer, template):
        return await process.render(request(template), Caller.of(peer))

    process = TemplateProcess(max_seconds=1)
    try:
        many = [asyncio.ensure_future(ask("ipv4:10.0.0.1:1", FOREVER)) for _ in range(20)]
        await asyncio.sleep(0)
        refused = [call for call in many if call.done()]
        assert all(isinstance(call.exception(), QueueFull) for call in refused)
        assert 1 < len(many) - len(refused) < 15
        assert await asyncio.wait_for(ask("ipv4:10.0.0.2:1", "{{ 2 }}"), 5) == "2"
        for call in many:
            call.cancel()
        await asyncio.wait(many)
        assert await asyncio.wait_for(ask("ipv4:10.0.0.1:1", "{{ 1 }}"), 5) == "1"
    finally:
        await process.close()


async def test_closing_ends_a_rendering():
    process = TemplateProcess(max_seconds=60)
    attack = asyncio.ensure_future(process.render(request(HOLDS_THE_INTERPRETER), SOMEBODY))
    waiting = asyncio.ensure_future(process.render(request("{{ 1 }}"), SOMEBODY))
    while not workers():
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.5)
    await process.close()
    for call in (attack, waiting):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(call, 5)
    assert not workers()


async def test_a_router_that_stops_tells_those_that_wait_to_come_back(serve):
    async with serve(config=TRUSTING) as router:
        request = inference_pb2.TokenizeRequest(chat=chat(HOLDS_THE_INTERPRETER))
        calls = [asyncio.ensure_future(refusal(router.stub.Tokenize(request))) for _ in range(4)]
        while not workers():
            await asyncio.sleep(0.02)
        await router.server.stop()
        for error in await asyncio.gather(*calls):
            assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "the router stops")
            assert may_come_back(error)


async def test_the_process_has_nothing_of_the_routers(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "s3cret")
    process = TemplateProcess()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        assert await process.render(request("{{ 1 }}"), SOMEBODY) == "1"
        (worker,) = workers()
        assert "SECRET_KEY" not in worker.environ()
        files = {os.readlink(f"/proc/{worker.pid}/fd/{number}") for number in os.listdir(f"/proc/{worker.pid}/fd")}
        assert not [file for file in files if not file.startswith(("pipe:", "socket:", "/dev/null"))]
        assert os.readlink(f"/proc/self/fd/{write}") not in files
    finally:
        os.close(read)
        os.close(write)
        await process.close()


PARENT = """
import asyncio
from pagewire_router.caller import Caller
from pagewire_router.text.chat_template import Conversation
from pagewire_router.text.template_process import TemplateProcess, encode_request
asyncio.run(TemplateProcess(max_seconds=60).render(
    encode_request("{{ 9 ** (9 ** 9) }}", Conversation([{"role": "user", "content": ""}]), {}, 10), Caller("", "")))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_process_ends_with_its_parent(number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        deadline_s = time.monotonic() + 30
        while not (children := psutil.Process(parent.pid).children()) or children[0].cpu_times().user < 0.5:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(10)
        assert psutil.wait_procs(children, 10)[1] == []
    finally:
        parent.kill()
        parent.wait()
