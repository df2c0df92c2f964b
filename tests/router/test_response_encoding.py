"""The hand-made encoding equals protobuf's, byte for byte, and cuts what is too large for a message."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagewire.v1 import inference_pb2, shard_pb2
from pagewire_common.protobuf_bytes import varint
from pagewire_router.groups.shard_client import encode_plan
from pagewire_router.grpc_front.response_encoding import encode_delta, encode_responses
from pagewire_router.output.sequence_output import Delta

UINT32 = st.integers(0, 2**32 - 1)
LOGPROBS = st.builds(
    inference_pb2.TokenLogprobs,
    token_id=UINT32,
    logprob=st.floats(-100, 0, width=32),
    rank=UINT32,
    top_token_ids=st.lists(UINT32, max_size=3),
    top_logprobs=st.lists(st.floats(-100, 0, width=32), max_size=3),
)


@given(UINT32, st.text(max_size=300), st.lists(UINT32, max_size=50), st.lists(LOGPROBS, max_size=3))
def test_delta_equals_protobufs_serialization(index, text, token_ids, logprobs):
    message = inference_pb2.GenerateResponse(
        delta=inference_pb2.Delta(index=index, text=text, token_ids=token_ids, logprobs=logprobs)
    )
    assert encode_delta(index, text, token_ids, logprobs) == message.SerializeToString(deterministic=True)


def test_an_empty_delta_is_still_a_delta():
    assert inference_pb2.GenerateResponse.FromString(encode_delta(0, "", [])).HasField("delta")


@given(st.builds(shard_pb2.StepPlan, step=UINT32, run_seq_ids=st.lists(UINT32, max_size=300)))
def test_a_plan_equals_protobufs_serialization(plan):
    assert encode_plan(plan) == shard_pb2.RouterMessage(plan=plan).SerializeToString()


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (16384, b"\x80\x80\x01")]
)
def test_varints_at_their_borders(value, encoded):
    assert varint(value) == encoded


def test_deltas_and_ends_are_encoded_in_order():
    end = inference_pb2.Finished(index=1, finish_reason=inference_pb2.FINISH_REASON_LENGTH)
    messages = [
        inference_pb2.GenerateResponse.FromString(data)
        for data in encode_responses([Delta(0, "a", [5], []), Delta(1, "b", [6], []), end])
    ]
    assert [message.WhichOneof("event") for message in messages] == ["delta", "delta", "finished"]
    assert [message.delta.text for message in messages[:2]] == ["a", "b"]
    assert messages[2].finished == end


def test_a_stalled_client_gets_messages_below_the_limit():
    text, token_ids = "世界 and so on " * 8000, list(range(72_000))
    logprobs = [
        inference_pb2.TokenLogprobs(token_id=token_id, logprob=-1, rank=1, top_token_ids=[1], top_logprobs=[-1])
        for token_id in token_ids
    ]
    data = encode_responses([Delta(0, text, token_ids, logprobs)])
    assert len(data) > 1
    assert max(map(len, data)) < 1 << 20
    deltas = [inference_pb2.GenerateResponse.FromString(message).delta for message in data]
    assert "".join(delta.text for delta in deltas) == text
    assert [token_id for delta in deltas for token_id in delta.token_ids] == token_ids
    assert [entry.token_id for delta in deltas for entry in delta.logprobs] == token_ids
