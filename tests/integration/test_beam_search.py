"""Beam search through generated stubs: what transformers finds, whole or not at all."""

import re
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import torch
from beam_reference import EARLY_STOPPING, Found, Search, search
from cluster import Cluster
from grammar_world import allowed_next, prepare
from pagewire import BeamSearchParams, Client
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from pagewire_shard.grammar.grammars import Grammars
from pagewire_shard.grammar.vocabulary import VocabularySource
from random_models import random_prompts
from reference_model import ReferenceModel

EOS = 0
LIKELY = tuple(range(3, 400, 12))
LONG_PROMPT, PROMPT = random_prompts((40, 11), seed=9)
EVER = 1500
"""Tokens that take some seconds."""


@pytest.fixture
def stub(cluster: Cluster):
    with grpc.insecure_channel(cluster.address) as channel:
        yield inference_pb2_grpc.InferenceStub(channel)


def request(prompt: list[int], wanted: Search, **fields: object) -> inference_pb2.GenerateRequest:
    params = inference_pb2.BeamSearchParams(
        beam_width=wanted.num_beams,
        max_tokens=wanted.max_new_tokens,
        n=wanted.num_return_sequences,
        length_penalty=wanted.length_penalty,
        early_stopping=EARLY_STOPPING[wanted.early_stopping],
        min_tokens=wanted.min_new_tokens,
        ignore_eos=EOS not in wanted.eos_token_ids,
        stop_token_ids=[token for token in wanted.eos_token_ids if token != EOS],
    )
    return inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=prompt), beam_search_params=params, **fields
    )


def check(completions: list[inference_pb2.Completion], expected: list[Found], wanted: Search) -> None:
    assert [list(completion.token_ids) for completion in completions] == [found.tokens for found in expected]
    for completion, found in zip(completions, expected, strict=True):
        finished, length = completion.finished, len(found.tokens)
        assert finished.beam_score == pytest.approx(found.score, abs=1e-4)
        assert finished.cumulative_logprob / length**wanted.length_penalty == pytest.approx(finished.beam_score)
        assert finished.usage.completion_tokens == length
        last = found.tokens[-1]
        is_stopped = last in wanted.eos_token_ids
        assert finished.finish_reason == (
            inference_pb2.FINISH_REASON_STOP if is_stopped else inference_pb2.FINISH_REASON_LENGTH
        )
        assert finished.stop_token_id == (last if is_stopped and last != EOS else 0)


WIDE = Search(32, max_new_tokens=10, num_return_sequences=5, eos_token_ids=(EOS,))
SHORT = Search(4, num_return_sequences=4, eos_token_ids=(EOS, *LIKELY), min_new_tokens=3, early_stopping="never")


@pytest.mark.parametrize("wanted", [WIDE, SHORT], ids=["wide", "short"])
def test_all_outputs_come_at_once_best_first(stub, reference: ReferenceModel, wanted: Search) -> None:
    expected = search(reference.model, PROMPT, wanted)
    check(stub.Complete(request(PROMPT, wanted)).completions, expected, wanted)


def test_a_stream_has_a_delta_and_an_end_for_each_output(stub, reference: ReferenceModel) -> None:
    events = list(stub.Generate(request(LONG_PROMPT, SHORT)))
    assert [event.WhichOneof("event") for event in events] == ["started", *["delta", "finished"] * 4]
    completions = [
        inference_pb2.Completion(token_ids=delta.delta.token_ids, finished=finished.finished)
        for delta, finished in zip(events[1::2], events[2::2], strict=True)
    ]
    assert [completion.finished.index for completion in completions] == [0, 1, 2, 3]
    check(completions, search(reference.model, LONG_PROMPT, SHORT), SHORT)


def test_the_text_is_that_of_the_tokens_without_the_one_that_ended_them(stub) -> None:
    message = request(PROMPT, SHORT)
    for includes in (False, True):
        message.beam_search_params.include_stop_str_in_output = includes
        for completion in stub.Complete(message).completions:
            is_cut = completion.finished.finish_reason == inference_pb2.FINISH_REASON_STOP and not includes
            ids = completion.token_ids[:-1] if is_cut else completion.token_ids
            assert completion.text == stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=ids)).text


def test_the_model_says_how_many_beams_it_serves(stub) -> None:
    assert stub.GetModel(inference_pb2.GetModelRequest()).max_beam_width == 32


def test_a_search_that_is_cancelled_or_late_leaves_nothing_behind(cluster: Cluster, stub) -> None:
    """That all blocks come back is checked after every test."""
    endless = Search(8, max_new_tokens=EVER)
    call = stub.Generate(request(PROMPT, endless))
    assert next(call).HasField("started")
    call.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        stub.Complete(request(PROMPT, endless), timeout=1.0)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_beams_stay_within_a_grammar_and_scores_are_of_the_whole_distribution(
    stub, reference: ReferenceModel, model: Path
) -> None:
    outputs = inference_pb2.StructuredOutputs(regex="[a-d]{3,5}")
    wanted = Search(4, max_new_tokens=9, num_return_sequences=4, eos_token_ids=(EOS,), early_stopping="never")
    with closing(Grammars()) as grammars:
        grammars.open(VocabularySource((model / "tokenizer.json").read_text(), 400, (EOS,)))
        prepare(grammars, "g", outputs)

        def allowed(batch_id: int, token_ids: torch.Tensor) -> list[int]:
            matcher = grammars.matcher("g", (EOS,))
            output = token_ids[len(PROMPT) :].tolist()
            # What follows a beam that has ended does not matter.
            return allowed_next(grammars, matcher) if matcher.advance(output) and EOS not in output else [EOS]

        expected = search(reference.model, PROMPT, wanted, prefix_allowed_tokens_fn=allowed)
    message = request(PROMPT, wanted)
    message.beam_search_params.structured_outputs.CopyFrom(outputs)
    completions = stub.Complete(message).completions
    check(completions, expected, wanted)
    assert all(re.fullmatch("[a-d]{3,5}", completion.text) for completion in completions)


def test_a_grammar_with_one_output_gives_one(stub) -> None:
    message = request(PROMPT, Search(4, num_return_sequences=4, eos_token_ids=(EOS,)))
    message.beam_search_params.structured_outputs.regex = "x"
    (completion,) = stub.Complete(message).completions
    assert completion.text == "x"
    events = [event.WhichOneof("event") for event in stub.Generate(message)]
    assert events == ["started", "delta", "finished"]


def test_wrong_parameters_are_refused_by_name(stub) -> None:
    message = request(PROMPT, Search(4))
    message.beam_search_params.beam_width = 33
    message.beam_search_params.length_penalty = float("nan")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Complete(message)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for name in ("beam_width", "length_penalty"):
        assert f"beam_search_params.{name}" in caught.value.details()


def test_the_client_brings_tokens_with_the_prompt_and_text(client: Client, reference: ReferenceModel) -> None:
    params = BeamSearchParams(4, 12, early_stopping="never", min_tokens=3, stop_token_ids=LIKELY)
    output = client.beam_search({"prompt_token_ids": PROMPT}, params)
    expected = search(reference.model, PROMPT, SHORT)
    assert len(output.sequences) == len(expected)
    for sequence, found in zip(output.sequences, expected, strict=True):
        tokens = found.tokens[:-1] if sequence.finish_reason == "stop" else found.tokens
        assert sequence.tokens == PROMPT + tokens
        assert sequence.beam_score == pytest.approx(found.score, abs=1e-4)
        assert sequence.text == client.detokenize(PROMPT) + client.detokenize(tokens)
