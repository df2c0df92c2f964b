"""The hand-made encoding equals protobuf's, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pagewire.v1 import inference_pb2
from pagewire_router.grpc_front.delta_encoding import encode_delta, varint

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


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (16384, b"\x80\x80\x01")]
)
def test_varints_at_their_borders(value, encoded):
    assert varint(value) == encoded
