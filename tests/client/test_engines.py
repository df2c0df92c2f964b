"""vLLM's engines and their arguments."""

import argparse
import sys
from pathlib import Path

import pytest
from pagewire import (
    AlreadyExists,
    AsyncLLM,
    EngineArgs,
    InvalidRequest,
    LLMEngine,
    RequestOutputKind,
    SamplingParams,
    server_process,
)

STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_server.py")))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """Engines start the stand-in, whose answers are the words of the prompt."""
    monkeypatch.setattr(
        "pagewire.llm.ServerProcess", lambda words: server_process.ServerProcess(words, command=STAND_IN)
    )


def steps(engine):
    while engine.has_unfinished_requests():
        yield from engine.step()


def test_an_engine_returns_what_has_come_until_requests_have_finished():
    with LLMEngine.from_engine_args(EngineArgs("any", seed=3)) as engine:
        prompts = {"a": "one two three", "b": "four", "c": "five six"}
        for request_id, prompt in prompts.items():
            engine.add_request(request_id, prompt, SamplingParams(n=2 if request_id == "c" else 1))
        assert engine.get_num_unfinished_requests() == 3
        with pytest.raises(AlreadyExists):
            engine.add_request("a", "again", SamplingParams())
        told = list(steps(engine))
        last = {output.request_id: output for output in told if output.finished}
        for request_id, prompt in prompts.items():
            output = last[request_id]
            assert (output.prompt, output.prompt_token_ids, output.seed) == (prompt, [1, 2], 5)
            assert {each.text for each in output.outputs} == {f" {prompt}"}
            assert [each.finish_reason for each in output.outputs] == ["stop"] * len(output.outputs)
            texts = [each.outputs[0].text for each in told if each.request_id == request_id]
            assert all(f" {prompt}".startswith(text) for text in texts)
        assert len(last["c"].outputs) == 2
        assert engine.step() == []
        engine.add_request("a", "again", SamplingParams())
        engine.abort_request(["a"])
        assert not engine.has_unfinished_requests()


def test_kinds_of_answers():
    with LLMEngine("any") as engine:
        for kind in RequestOutputKind:
            engine.add_request(kind.name, "one two three", SamplingParams(output_kind=kind))
        told = list(steps(engine))
    texts = {
        kind: [each.outputs[0].text for each in told if each.request_id == kind.name] for kind in RequestOutputKind
    }
    assert texts[RequestOutputKind.FINAL_ONLY] == [" one two three"]
    assert "".join(texts[RequestOutputKind.DELTA]) == " one two three"
    assert texts[RequestOutputKind.CUMULATIVE][-1] == " one two three"


def test_a_failed_request_takes_no_others_along():
    with LLMEngine("any") as engine:
        engine.add_request("bad", "fail", SamplingParams())
        engine.add_request("good", "one", SamplingParams())
        told, errors = [], []
        while engine.has_unfinished_requests():
            try:
                told += engine.step()
            except InvalidRequest as error:
                errors.append(error)
        assert [output.outputs[0].text for output in told if output.finished] == [" one"]
        assert len(errors) == 1
        with pytest.raises(InvalidRequest):
            engine.add_request("c", "x", SamplingParams(logits_processors=[print]))


def test_a_reset_prefix_cache_is_not_hit_by_later_requests():
    with LLMEngine("any") as engine:
        told = []
        for request_id, reset in (("a", False), ("b", True), ("c", False), ("d", True)):
            if reset:
                assert engine.reset_prefix_cache(reset_running_requests=True)
            engine.add_request(request_id, {"prompt_token_ids": [7]}, SamplingParams())
            told += [output.outputs[0].text for output in steps(engine) if output.finished]
    # The stand-in answers token ids with their salt.
    first, second, same, third = told
    assert first == ""
    assert second == same
    assert len({first, second, third}) == 3


async def test_streams_of_an_asynchronous_engine():
    engine = AsyncLLM.from_engine_args(EngineArgs(model="any", enforce_eager=True))
    try:
        params = SamplingParams(output_kind=RequestOutputKind.DELTA)
        told = [output async for output in engine.generate(prompt="one two", sampling_params=params, request_id="r")]
        assert "".join(output.outputs[0].text for output in told) == " one two"
        assert [output.finished for output in told] == [False] * (len(told) - 1) + [True]
        async for output in engine.generate("one two", SamplingParams(), "left"):
            assert not output.finished
            break
        with pytest.raises(InvalidRequest):
            async for _ in engine.generate("fail", SamplingParams(), "bad"):
                pass
    finally:
        engine.shutdown()


def test_options_as_flags_of_another_program():
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    parser.set_defaults(model="m")
    args = parser.parse_args(
        ["--enforce-eager", "--max-model-len", "2k", "--no-enable-prefix-caching", "--swap-space", "4"]
    )
    given = EngineArgs.from_cli_args(args)
    assert given.model == "m"
    assert given.options == {
        "enforce_eager": True, "max_model_len": "2k", "enable_prefix_caching": False, "swap_space": "4"
    }  # fmt: skip
    # Programs give LLM all attributes of the parsed arguments.
    assert {name for name, value in vars(args).items() if value is not None} == {"model", *given.options}
    with LLMEngine.from_engine_args(given):
        pass


def test_the_kind_of_answers_is_kept_by_copies():
    params = SamplingParams(output_kind=RequestOutputKind.DELTA)
    assert params.clone().output_kind is RequestOutputKind.DELTA
    assert SamplingParams().output_kind is RequestOutputKind.CUMULATIVE
    params.output_kind = RequestOutputKind.FINAL_ONLY
    assert params.to_proto() == SamplingParams().to_proto()
    with pytest.raises(InvalidRequest, match="output_kind"):
        SamplingParams(output_kind="DELTA")
