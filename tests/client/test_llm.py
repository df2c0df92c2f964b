import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from pagewire import (
    LLM,
    Cancelled,
    InvalidRequest,
    SamplingParams,
    StartupError,
    StructuredOutputsParams,
    server_process,
)
from pagewire.event_loop import background_loop
from pagewire.prompts import fill_chat
from pagewire.v1 import inference_pb2

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_server.py")))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """LLM starts the stand-in in place of `pagewire serve`."""
    started = []

    def start(arguments):
        server = server_process.ServerProcess(arguments, command=STAND_IN)
        started.append((server.pid, Path(server.address.removeprefix("unix:")).parent))
        return server

    monkeypatch.setattr("pagewire.llm.ServerProcess", start)
    return started


@pytest.fixture
def llm():
    with LLM(model="any") as llm:
        yield llm


def wait_until_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 20
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_the_quick_example_runs_as_it_is():
    prompts = ["Hello, my name is", "The capital of France is"]
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    llm = LLM(model="any")
    outputs = llm.generate(prompts, sampling_params)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert output.prompt == prompt
        assert output.outputs[0].text == output.outputs.text == f" {prompt}"
    llm.close()


def test_the_tokenizer_is_the_one_in_the_models_directory():
    pytest.importorskip("transformers")
    with LLM() as llm:
        tokenizer = llm.get_tokenizer()
    assert tokenizer.decode(tokenizer("Hello world").input_ids, skip_special_tokens=True) == "Hello world"


def test_prompts_come_in_every_form_and_keep_their_order(llm):
    prompts = ["a b", {"prompt": "c"}, {"prompt_token_ids": [4, 5]}]
    outputs = llm.generate(prompts, [SamplingParams(max_tokens=n) for n in (1, 2, 3)])
    assert [output.outputs.text for output in outputs] == [" a", " c", " 4 5"]
    assert [output.prompt for output in outputs] == ["a b", "c", None]
    assert outputs[2].prompt_token_ids == [4, 5]
    assert llm.generate({"prompt": "alone"})[0].outputs.text == " alone"


def _remember(sent, prompts, *_args, **_options):
    sent += prompts
    return []


def test_prefixes_are_shared_unless_that_is_turned_off(monkeypatch):
    for options, num_salts in (({}, 0), ({"enable_prefix_caching": True}, 0), ({"enable_prefix_caching": False}, 3)):
        with LLM(model="any", **options) as llm:
            sent: list[object] = []
            complete = partial(_remember, sent)
            monkeypatch.setattr(llm.client, "complete_many", complete)
            llm.generate(["a", {"prompt_token_ids": [4]}], use_tqdm=False)
            llm.chat([{"role": "user", "content": "hello"}], use_tqdm=False)
            salts = {prompt["cache_salt"] for prompt in sent if isinstance(prompt, dict) and "cache_salt" in prompt}
            assert (len(sent), len(salts)) == (3, num_salts)


def test_arguments_without_effect_are_noted(caplog):
    with caplog.at_level("INFO", "pagewire.llm"), LLM(model="any", swap_space=4, trust_remote_code=True):
        pass
    assert "no code from model repositories is needed or run" in caplog.text
    assert "without effect here: swap_space, trust_remote_code" in caplog.text


def test_more_prompts_than_the_queue_takes(llm):
    outputs = llm.generate([f"p{i}" for i in range(100)], use_tqdm=False)
    assert [output.outputs.text for output in outputs] == [f" p{i}" for i in range(100)]


def test_conversations_have_priorities(llm, monkeypatch):
    given = []
    monkeypatch.setattr(llm.client, "complete_many", lambda *_, priority, **__: given.append(priority) or [])
    hello = [{"role": "user", "content": "hello"}]
    llm.chat([hello, hello], priority=[1, 2])
    llm.chat(hello)
    assert given == [[1, 2], 0]


def test_one_conversation_and_several(llm):
    hello = [{"role": "user", "content": "hello"}]
    assert [output.outputs.text for output in llm.chat(hello)] == [" hello"]
    several = [hello, [{"role": "system", "content": "be"}, {"role": "user", "content": "brief"}]]
    assert [output.outputs.text for output in llm.chat(several)] == [" hello", " be brief"]
    with pytest.raises(InvalidRequest, match="messages"):
        llm.chat([])


def test_chat_takes_vllms_arguments(monkeypatch, llm):
    asked = []
    monkeypatch.setattr(llm, "generate", lambda prompts, *args, **kwargs: asked.extend(prompts))
    llm.chat(
        [{"role": "user", "content": "hi"}],
        chat_template="default",
        chat_template_content_format="string",
        add_generation_prompt=False,
        tools=None,
        chat_template_kwargs={"enable_thinking": False},
    )
    chat = inference_pb2.ChatPrompt()
    fill_chat(chat, asked[0])
    assert (chat.chat_template, chat.add_generation_prompt) == ("default", False)
    assert chat.content_format == inference_pb2.CHAT_CONTENT_FORMAT_STRING
    assert chat.template_kwargs_json == '{"enable_thinking": false}'
    assert not chat.HasField("tools_json")


def test_options_become_flags():
    with LLM("my model", dtype="float16", kv_cache_memory="2GiB", max_num_seqs=4, seed=None) as llm:
        command = llm.client.get_model().name
    assert command.startswith("--private-socket")
    assert command.endswith(
        "--trust-request-chat-template --dtype=float16 --kv-cache-memory=2GiB --max-num-seqs=4 -- my model"
    )


def test_an_unknown_option_is_named_before_anything_starts(stand_in):
    with pytest.raises(TypeError, match=r"unknown option 'max_model_length'; accepted: .*max_model_len"):
        LLM(model="any", max_model_length=5)
    assert not stand_in


def test_a_server_that_does_not_start_says_why(capfd):
    with pytest.raises(StartupError) as caught:
        LLM(model="broken")
    assert str(caught.value) == "the model broken is no model"
    assert capfd.readouterr().err == "loading\n"


def test_closing_stops_the_server_and_removes_its_socket(stand_in):
    llm = LLM()
    [(pid, folder)] = stand_in
    assert folder.stat().st_mode & 0o777 == 0o700
    llm.close()
    llm.close()
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


def test_the_server_stops_with_the_last_reference(stand_in):
    llm = LLM()
    llm.generate("x")
    del llm
    gc.collect()
    wait_until_gone(stand_in[0][0])


def test_an_interrupted_start_leaves_nothing_behind(monkeypatch):
    pids = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        process = popen(*args, **kwargs)
        pids.append(process.pid)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return process

    monkeypatch.setattr(server_process.subprocess, "Popen", start)
    # A test run in the background of a shell inherits that SIGINT is ignored.
    previous_int = signal.signal(signal.SIGINT, signal.default_int_handler)
    previous_alarm = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            LLM(model="slow")
    finally:
        signal.signal(signal.SIGALRM, previous_alarm)
        signal.signal(signal.SIGINT, previous_int)
    wait_until_gone(pids[0])


OWNER = """
import sys
from pagewire import llm, server_process
import functools
llm.ServerProcess = functools.partial(server_process.ServerProcess, command=sys.argv[1:3])
owned = llm.LLM()
owned.generate(["a", "b"])
print(owned._server.pid, flush=True)
exec(sys.argv[3])
"""


@pytest.mark.parametrize("end", ["pass", "raise SystemExit(3)", "sys.stdin.read()"])
def test_the_server_ends_with_its_owner_however_that_ends(end):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *STAND_IN, end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as owner:
        pid = int(owner.stdout.readline())
        if "stdin" in end:
            owner.kill()
        _, errors = owner.communicate(timeout=30)
        assert errors == ""
    wait_until_gone(pid)


def test_collecting_an_llm_waits_for_nothing_on_whatever_thread(stand_in):
    """Its finalizer may run on the thread of the client's own event loop, for which it then must not wait."""
    owned = LLM()
    owned.generate("a")
    kept = [owned]  # In a cycle, which the collector alone can free.
    kept.append(kept)
    del owned, kept

    async def collect() -> None:
        gc.collect()

    background_loop().run(asyncio.wait_for(collect(), 10))
    wait_until_gone(stand_in[0][0])


def test_a_synchronous_call_from_a_callback_is_refused(llm):
    def ask_again(_output):
        llm.generate("b")

    with pytest.raises(RuntimeError, match="use AsyncClient"):
        llm.client.complete_many(["a"], on_output=ask_again)


def test_a_forked_copy_of_the_owner_leaves_the_server_alone(llm, stand_in, monkeypatch):
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        llm.close()
    assert psutil.pid_exists(stand_in[0][0])


@pytest.mark.parametrize("options", [{"model": 5}, {"tokenizer": 5}, {"dtype": "int8"}], ids=str)
def test_an_option_of_another_type_is_refused_by_name(options):
    with pytest.raises(InvalidRequest, match=next(iter(options))):
        LLM(**options)


@pytest.mark.parametrize("kind", [list, tuple, iter], ids=["list", "tuple", "iterator"])
def test_conversations_come_in_any_collection(llm, kind):
    message = {"role": "user", "content": "a"}
    assert len(llm.chat(kind([message, message]))) == 1
    assert len(llm.chat(kind([kind([message]), [message]]))) == 2


@pytest.mark.parametrize("messages", [[], None, "hi", {"role": "user", "content": "a"}, [[{}], {}]], ids=str)
def test_what_is_no_conversation_is_refused(llm, messages):
    with pytest.raises(InvalidRequest, match="messages"):
        llm.chat(messages)


def test_a_closed_llm_says_so_at_once():
    llm = LLM(model="any")
    llm.close()
    with pytest.raises(Cancelled, match="closed"):
        llm.generate("a")


def test_what_vllm_says_of_all_constraints_is_said_of_each(monkeypatch):
    given = {"backend": "xgrammar", "disable_any_whitespace": True, "disable_additional_properties": False}
    with LLM(model="any", structured_outputs_config=given) as llm:
        sent: list[object] = []
        monkeypatch.setattr(llm.client, "complete_many", lambda _prompts, params, **_: sent.append(params) or [])
        constrained = SamplingParams(structured_outputs=StructuredOutputsParams(json={}))
        llm.generate(["a", "b"], [constrained, SamplingParams()], use_tqdm=False)
        llm.generate("a", use_tqdm=False)
    assert sent[1] is None
    assert sent[0][0].structured_outputs == StructuredOutputsParams(json={}, disable_any_whitespace=True)
    assert sent[0][1].structured_outputs is None
    assert constrained.structured_outputs == StructuredOutputsParams(json={}), "the caller's object stays as it is"
    assert given["disable_any_whitespace"]


@pytest.mark.parametrize("name", ["encode", "embed", "classify", "score", "reward"])
def test_pooling_is_refused_by_name(llm, name):
    with pytest.raises(InvalidRequest, match="pooling is not served"):
        getattr(llm, name)(["a"])
