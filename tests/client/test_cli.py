import contextlib
import io
import os
import subprocess
import sys

import pytest
from pagewire.cli import chat, main
from pagewire.v1 import inference_pb2 as pb


def test_complete_streams_to_standard_output(background_fake, capsys):
    assert main(["complete", "one two", "--server", background_fake.target, "--max-tokens", "5", "--stop", "a"]) == 0
    assert capsys.readouterr().out == " one two\n"
    params = background_fake.requests[0].sampling_params
    assert (params.max_tokens, list(params.stop)) == (5, ["a"])


def test_every_sampling_parameter_that_means_something_to_a_text_has_a_flag(background_fake):
    flags = [
        *("--temperature", "0.5", "--top-p", "0.9", "--top-k", "-1", "--min-p", "0.1", "--seed", "3"),
        *("--presence-penalty", "-1", "--frequency-penalty", "1", "--repetition-penalty", "1.5"),
        *("--max-tokens", "9", "--min-tokens", "2", "--stop", "a", "--stop", "b", "--stop-token-ids", "4,5"),
        *("--ignore-eos", "--include-stop-str-in-output", "--no-skip-special-tokens"),
        *("--no-spaces-between-special-tokens", "--logit-bias", "7=-1.5,8=2", "--allowed-token-ids", "7,8"),
        *("--bad-words", "x y", "--truncate-prompt-tokens", "-1"),
    ]
    assert main(["complete", "one", "--server", background_fake.target, *flags]) == 0
    assert background_fake.requests[0].sampling_params == pb.SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        seed=3,
        presence_penalty=-1,
        frequency_penalty=1,
        repetition_penalty=1.5,
        max_tokens=9,
        min_tokens=2,
        stop=["a", "b"],
        stop_token_ids=[4, 5],
        ignore_eos=True,
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        logit_bias={7: -1.5, 8: 2.0},
        allowed_token_ids=[7, 8],
        bad_words=["x y"],
        truncate_prompt_tokens=-1,
    )


@pytest.mark.parametrize("words", [["--logit-bias", "7"], ["--allowed-token-ids", "a"], ["--top-k", "1.5"]])
def test_flags_that_cannot_be_read_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit):
        main(["complete", "one", *words])
    assert words[0] in capsys.readouterr().err


def test_complete_at_once(background_fake, capsys):
    assert main(["complete", "one two", "--server", background_fake.target, "--no-stream"]) == 0
    assert capsys.readouterr().out == " one two\n"


def test_complete_says_which_model_how_urgent_and_with_which_cache(background_fake, capsys):
    options = ["--model", "fake", "--priority", "-2", "--cache-salt", "tenant"]
    for more in ([], ["--no-stream"]):
        assert main(["complete", "x", "--server", background_fake.target, *options, *more]) == 0
    for request in background_fake.requests:
        assert (request.model, request.priority, request.cache_salt) == ("fake", -2, "tenant")


def test_complete_prints_several_continuations(background_fake, capsys):
    async def complete(request, context):
        texts = [f" {index}" for index in range(request.sampling_params.n)]
        return pb.GenerateResult(completions=[pb.Completion(index=i, text=text) for i, text in enumerate(texts)])

    background_fake.complete = complete
    assert main(["complete", "x", "--server", background_fake.target, "--n", "2"]) == 0
    assert capsys.readouterr().out == "[0]\n 0\n[1]\n 1\n"


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_complete_prints_the_log_probabilities_of_the_text_before_its_continuation(background_fake, capsys, flags):
    best = {"top_token_ids": [8, 9], "top_logprobs": [-0.5, -1.25], "top_token_texts": [" b", " c"]}
    entries = [
        pb.TokenLogprobs(token_id=9, logprob=-1.25, rank=2, token_text=" c", **best),
        pb.TokenLogprobs(token_id=4, logprob=-12.5, rank=300, token_text="\n", **best),
    ]

    async def generate(request, context):
        yield pb.GenerateResponse(started=pb.Started())
        for position, entry in enumerate(entries, 1):
            yield pb.GenerateResponse(prompt_logprobs=pb.PromptLogprobs(first_position=position, logprobs=[entry]))
        yield pb.GenerateResponse(delta=pb.Delta(text=" d", token_ids=[1]))

    async def complete(request, context):
        return pb.GenerateResult(completions=[pb.Completion(text=" d")], prompt_logprobs=entries)

    background_fake.generate, background_fake.complete = generate, complete
    assert main(["complete", "a c", "--server", background_fake.target, "--prompt-logprobs", "2", *flags]) == 0
    assert background_fake.requests[0].sampling_params.prompt_logprobs == 2
    *lines, continuation = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["-1.2500", "2", "'", "c'", "-0.5000", "'", "b'"],
        ["-12.5000", "300", "'\\n'", "-0.5000", "'", "b'", "-1.2500", "'", "c'"],
    ]
    assert continuation == " d"


def test_complete_reads_standard_input(background_fake, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["complete", "-", "--server", background_fake.target]) == 0
    assert capsys.readouterr().out == " from a pipe\n"


@pytest.mark.slow
def test_errors_are_one_line(background_fake, capsys, tmp_path):
    assert main(["complete", "x", "--server", background_fake.target, "--temperature", "9"]) == 1
    assert capsys.readouterr().err.startswith("error: sampling_params.temperature: 9.0 given, accepted: ")
    assert main(["complete", "x", "--server", f"unix:{tmp_path}/none"]) == 1
    assert capsys.readouterr().err.startswith(f"error: no pagewire server answers at unix:{tmp_path}/none")


def test_chat_reads_lines_where_there_is_no_terminal(background_fake, capsys, monkeypatch):
    async def reply(request, context):
        text = f"{len(request.chat.messages)} messages"
        yield pb.GenerateResponse(delta=pb.Delta(text=text, token_ids=[1]))

    background_fake.generate = reply
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nagain\n/reset\nanew"))
    assert main(["chat", "--server", background_fake.target, "--system", "be brief"]) == 0
    assert capsys.readouterr().out == "2 messages\n4 messages\n2 messages\n"
    said = [(m.role, m.content) for m in background_fake.requests[1].chat.messages]
    assert said == [("system", "be brief"), ("user", "hello"), ("assistant", "2 messages"), ("user", "again")]


def test_chat_says_which_model_how_urgent_and_with_which_cache(background_fake, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    options = ["--model", "fake", "--priority", "3", "--cache-salt", "tenant"]
    assert main(["chat", "--server", background_fake.target, *options]) == 0
    (request,) = background_fake.requests
    assert (request.model, request.priority, request.cache_salt) == ("fake", 3, "tenant")


def test_chat_needs_a_chat_template(background_fake, capsys):
    background_fake.model.supports_chat = False
    assert main(["chat", "--server", background_fake.target]) == 1
    assert "no chat template" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_said_so_far(background_fake, monkeypatch):
    from pagewire import Client, SamplingParams

    def interrupted(events, reply):
        reply.text = "half a"
        raise KeyboardInterrupt

    monkeypatch.setattr(chat, "show", interrupted)
    with Client(background_fake.target) as client:
        conversation = chat.Conversation(client, SamplingParams(), None)
        conversation.answer("tell")
    assert conversation.messages[-1] == {"role": "assistant", "content": "half a"}


def test_a_refused_turn_counts_as_not_said(background_fake):
    from pagewire import Client, InvalidRequest, SamplingParams

    async def refuse(request, context):
        await background_fake.refuse(context, "INVALID_ARGUMENT", "too long")
        yield

    background_fake.generate = refuse
    with Client(background_fake.target) as client:
        conversation = chat.Conversation(client, SamplingParams(), None)
        with contextlib.suppress(InvalidRequest):
            conversation.answer("x" * 9)
    assert conversation.messages == []


@pytest.mark.parametrize("words", [[], ["unknown"], ["serve", "--no-such-flag"]])
def test_wrong_usage_ends_with_one_line_and_status_2(words):
    done = subprocess.run(
        [sys.executable, "-m", "pagewire", *words], capture_output=True, text=True, check=False, timeout=180
    )
    assert done.returncode == 2
    assert done.stderr.startswith("pagewire: error: ")
    assert done.stderr.endswith("(see pagewire --help)\n")
    assert done.stderr.count("\n") == 1


def test_names_keep_their_case_in_help(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    assert "Serve a model over gRPC." in capsys.readouterr().out


def test_chat_passes_variables_to_the_template(background_fake, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    flags = ["--chat-template-kwargs", '{"enable_thinking": false}']
    assert main(["chat", "--server", background_fake.target, *flags]) == 0
    assert background_fake.requests[0].chat.template_kwargs_json == '{"enable_thinking": false}'
    with pytest.raises(SystemExit):
        main(["chat", "--chat-template-kwargs", "[]"])
    assert "not a JSON object" in capsys.readouterr().err


def _shell(command: str, target: str) -> "subprocess.CompletedProcess[bytes]":
    """Runs a command of bash in which $P is `pagewire`, and $S says where the server is."""
    words = {"P": f"{sys.executable} -m pagewire", "S": f"--server {target} --max-tokens 4"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, **words},
        capture_output=True,
        check=False,
        timeout=180,
    )


@pytest.mark.parametrize(
    ("command", "status", "out", "error"),
    [
        ("$P complete x $S >&-", 0, b"", b""),
        ("$P complete x $S 2>&-", 0, b" x\n", b""),
        ("$P complete - $S <&-", 1, b"", b"error: "),
        ("$P chat $S <&-", 0, b"", b""),
        ("$P complete x $S >/dev/full", 1, b"", b"error: "),
        ("$P complete x $S --no-stream >/dev/full", 1, b"", b"error: "),
        ("$P complete x $S --no-stream | true", 141, b"", b""),
    ],
)
def test_standard_streams_may_be_closed_or_full(background_fake, command, status, out, error):
    async def refuse_empty(request, context):
        if not request.text:
            await background_fake.refuse(context, "INVALID_ARGUMENT", "empty")
        yield pb.GenerateResponse(delta=pb.Delta(text=f" {request.text}", token_ids=[1]))

    background_fake.generate = refuse_empty
    done = _shell(command, background_fake.target)
    assert (done.returncode, done.stdout) == (status, out)
    assert done.stderr.startswith(error)
    assert done.stderr.count(b"\n") == bool(error)


@pytest.mark.parametrize("given", ["$P complete 'é日' $S", "printf 'é日' | $P complete - $S"], ids=["word", "input"])
def test_text_is_utf_8_whatever_the_locale(background_fake, given):
    environment = "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; "
    assert _shell(environment + given, background_fake.target).returncode == 0
    assert background_fake.requests[0].text == "é日"


@pytest.mark.parametrize(
    "given", ["$P complete $'a\\xff' $S", "printf 'a\\xff' | $P complete - $S"], ids=["word", "input"]
)
def test_what_is_no_text_is_replaced(background_fake, given):
    assert _shell(given, background_fake.target).returncode == 0
    assert background_fake.requests[0].text == "a\ufffd"


@pytest.mark.parametrize(("flags", "named"), [(["--tls-ca", __file__], "tls_ca"), (["--server", ""], "target")])
def test_where_the_server_is_must_make_sense(background_fake, capsys, flags, named):
    assert main(["complete", "x", "--server", background_fake.target, *flags]) == 1
    assert capsys.readouterr().err.startswith(f"error: {named}: ")
