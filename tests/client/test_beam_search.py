"""Beam search in the client: what is sent, what comes back, what is refused."""

import math

import pytest
from pagewire import AsyncClient, BeamSearchParams, InvalidRequest, StructuredOutputsParams
from pagewire.cli import main
from pagewire.v1 import inference_pb2 as pb


def answer(*beams: tuple[list[int], str, "pb.FinishReason.ValueType"]) -> pb.GenerateResult:
    completions = [
        pb.Completion(
            index=index,
            text=text,
            token_ids=token_ids,
            finished=pb.Finished(
                index=index, finish_reason=reason, cumulative_logprob=-3.0 - index, beam_score=-1.5 - index
            ),
        )
        for index, (token_ids, text, reason) in enumerate(beams)
    ]
    return pb.GenerateResult(started=pb.Started(prompt_token_ids=[11, 12]), completions=completions)


@pytest.fixture
def beams(background_fake):
    """Answers with two beams: one that has ended, one that has become too long."""
    requests = []

    async def complete(request, context):
        requests.append(request)
        return answer(([5, 2], " five", pb.FINISH_REASON_STOP), ([6, 7], " six", pb.FINISH_REASON_LENGTH))

    background_fake.complete = complete
    background_fake.beam_requests = requests
    return background_fake


async def test_all_parameters_are_sent(beams) -> None:
    params = BeamSearchParams(
        beam_width=4,
        max_tokens=9,
        ignore_eos=True,
        length_penalty=0.5,
        include_stop_str_in_output=True,
        early_stopping="never",
        min_tokens=2,
        n=3,
        stop_token_ids=[8],
        skip_special_tokens=False,
        truncate_prompt_tokens=7,
        structured_outputs=StructuredOutputsParams(regex="a+"),
    )
    async with AsyncClient(beams.target) as client:
        await client.beam_search("one two", params, priority=-1)
    (request,) = beams.beam_requests
    assert (request.text, request.priority, request.WhichOneof("decoding")) == ("one two", -1, "beam_search_params")
    sent = request.beam_search_params
    assert (sent.beam_width, sent.max_tokens, sent.n, sent.min_tokens) == (4, 9, 3, 2)
    assert (sent.ignore_eos, sent.include_stop_str_in_output, sent.skip_special_tokens) == (True, True, False)
    assert (sent.length_penalty, sent.early_stopping) == (0.5, pb.EARLY_STOPPING_NEVER)
    assert (list(sent.stop_token_ids), sent.truncate_prompt_tokens) == ([8], 7)
    assert sent.structured_outputs.regex == "a+"


async def test_sequences_hold_the_prompt_and_leave_out_what_ended_them(beams) -> None:
    async with AsyncClient(beams.target) as client:
        output = await client.beam_search("one two", BeamSearchParams(2, 5))
        kept = await client.beam_search("one two", BeamSearchParams(2, 5, include_stop_str_in_output=True))
    first, second = output.sequences
    assert (first.tokens, second.tokens) == ([11, 12, 5], [11, 12, 6, 7])
    assert (first.text, second.text) == ("one two five", "one two six")
    assert (first.cum_logprob, second.cum_logprob) == (-3.0, -4.0)
    assert (first.beam_score, second.beam_score) == (-1.5, -2.5)
    assert (first.finish_reason, second.finish_reason) == ("stop", "length")
    assert kept.sequences[0].tokens == [11, 12, 5, 2]


async def test_many_prompts_are_answered_in_their_order(beams) -> None:
    async with AsyncClient(beams.target) as client:
        outputs = await client.beam_search_many(["a", "b", "c"], BeamSearchParams(2, 5), window=2)
    assert [output.sequences[0].text for output in outputs] == ["a five", "b five", "c five"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 0),
        ("beam_width", 2.0),
        ("max_tokens", 0),
        ("n", 5),
        ("n", 0),
        ("min_tokens", 10),
        ("temperature", 0.7),
        ("length_penalty", math.nan),
        ("length_penalty", 11),
        ("early_stopping", "always"),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "7"),
        ("ignore_eos", 1),
        ("truncate_prompt_tokens", 0),
        ("structured_outputs", {"regex": "a+"}),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"beam_search_params.{name}: "):
        BeamSearchParams(**{"beam_width": 4, "max_tokens": 9, name: value})
    assigned = BeamSearchParams(4, 9)
    setattr(assigned, name, value)
    with pytest.raises(InvalidRequest, match=f"beam_search_params.{name}: "):
        assigned.to_proto()


def test_the_command_prints_the_best_continuation_or_several(beams, capsys) -> None:
    command = ["complete", "one two", "--server", beams.target, "--beam-width", "3"]
    assert main([*command, "--length-penalty", "0", "--max-tokens", "6", "--n", "2"]) == 0
    assert capsys.readouterr().out == "[0]\n five\n[1]\n six\n"
    sent = beams.beam_requests[0].beam_search_params
    assert (sent.beam_width, sent.n, sent.max_tokens, sent.length_penalty) == (3, 2, 6, 0.0)
    assert main([*command, "--temperature", "0.5", "--top-p", "0.9"]) == 1
    assert "--beam-width: given with --top-p" in capsys.readouterr().err
