"""What sampling parameters make of a request before it runs, through generated stubs."""

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_router.scheduling.plans import PlanInFlight
from pagewire_router.scheduling.sequence import SequenceGroup
from pagewire_router.scheduling.sequence_state import SequenceEvent

PARAMS = inference_pb2.SamplingParams
LONG_TEXT = "the future of AI is what people make of it " * 3000
CHAT = inference_pb2.ChatPrompt(messages=[inference_pb2.ChatMessage(role="user", content=LONG_TEXT)])


async def refused_fields(call) -> dict[str, str]:
    """Description by field of an INVALID_ARGUMENT."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violations = error_details_pb2.BadRequest()
    for entry in rpc_status.from_call(caught.value).details:
        if entry.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            entry.Unpack(violations)
    return {violation.field: violation.description for violation in violations.field_violations}


def admit_of(request) -> shard_pb2.Admit:
    """The message that brings the request to a shard."""
    plan = PlanInFlight(shard_pb2.StepPlan(), 512)
    sequence = SequenceGroup(request, 256).sequences[0]
    sequence.on(SequenceEvent.ADMIT)
    sequence.enter_shard(1, num_computed_tokens=0, num_tokens=len(sequence.token_ids))
    plan.admit(sequence)
    return plan.message.admits[0]


async def prompt_of(router, **fields) -> list[int]:
    responses = await router.generate(**fields, return_prompt_token_ids=True)
    token_ids = list(responses[0].started.prompt_token_ids)
    assert router.runner.requests[-1].prompt_token_ids == token_ids
    return token_ids


@pytest.mark.parametrize("kind", ["text", "chat", "token_ids"])
async def test_only_the_last_tokens_of_a_prompt_are_kept(serve, kind):
    short = {"text": "of AI"}
    async with serve() as router:
        whole = await prompt_of(router, **short, sampling_params=PARAMS(max_tokens=1))
        if kind == "text":
            assert (
                await prompt_of(router, **short, sampling_params=PARAMS(max_tokens=1, truncate_prompt_tokens=2))
                == whole[-2:]
            )
            # More than there are: all of them, with the special token that begins a text.
            assert await prompt_of(router, **short, sampling_params=PARAMS(truncate_prompt_tokens=99)) == whole
        long = {
            "text": {"text": LONG_TEXT},
            "chat": {"chat": CHAT},
            "token_ids": {"token_ids": inference_pb2.TokenIds(ids=[*range(40, 400)])},
        }[kind]
        assert list(await refused_fields(router.generate(**long, sampling_params=PARAMS(max_tokens=1)))) == [kind]
        assert len(await prompt_of(router, **long, sampling_params=PARAMS(truncate_prompt_tokens=7))) == 7
        as_long_as_fits = PARAMS(max_tokens=56, truncate_prompt_tokens=-1)
        kept = await prompt_of(router, **long, sampling_params=as_long_as_fits)
        assert len(kept) == 200
        if kind == "token_ids":
            assert kept == [*range(200, 400)]


async def test_a_truncated_prompt_must_still_leave_room_for_a_token(serve):
    async with serve() as router:
        call = router.generate(text=LONG_TEXT, sampling_params=PARAMS(truncate_prompt_tokens=256))
        refusal = (await refused_fields(call))["text"]
        assert "256 tokens long; accepted: up to 255" in refusal
        # Programs know by these words that a conversation must be shortened.
        assert "this model's maximum context length is 256 tokens" in refusal


async def test_bad_words_reach_the_shard_as_tokens(serve, new_runner):
    runner = new_runner()
    runner.model.max_bad_word_tokens = 8
    async with serve(model=runner.model) as router:
        await router.generate(text="x", sampling_params=PARAMS(bad_words=["of", "is"], max_tokens=1))
        admit = admit_of(router.runner.requests[0])
        decoded = [
            (await router.stub.Detokenize(inference_pb2.DetokenizeRequest(token_ids=word.ids))).text
            for word in admit.bad_words
        ]
        assert decoded == ["of", " of", "is", " is"]
        assert not admit.sampling_params.bad_words
        too_many = router.generate(text="x", sampling_params=PARAMS(bad_words=["naïve façade", "xyz uvw"]))
        assert "accepted: up to 8" in (await refused_fields(too_many))["sampling_params.bad_words"]


async def test_bad_words_need_a_tokenizer(serve, new_runner):
    model = new_runner().model
    model.max_bad_word_tokens = 8
    async with serve(model=model, files={}) as router:
        token_ids = inference_pb2.TokenIds(ids=[40])
        call = router.generate(token_ids=token_ids, sampling_params=PARAMS(bad_words=["of"]))
        assert "needs a tokenizer" in (await refused_fields(call))["sampling_params.bad_words"]
