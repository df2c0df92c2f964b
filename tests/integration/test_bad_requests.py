"""Requests that are refused: each by a status and the name of what is wrong, and the server lives on."""

import grpc
import pytest
from cluster import Cluster
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from pagewire import Client, InvalidRequest, NotFound
from pagewire.v1 import inference_pb2, inference_pb2_grpc
from streams import GREEDY, TEXT


def violations(error: grpc.RpcError) -> list[str]:
    """The fields a refusal names."""
    status = rpc_status.from_call(error)
    assert status is not None
    for packed in status.details:
        if packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            return [v.field for v in error_details_pb2.BadRequest.FromString(packed.value).field_violations]
    return []


BAD_REQUESTS = {
    "no prompt": (inference_pb2.GenerateRequest(), "prompt"),
    "empty text": (inference_pb2.GenerateRequest(text=""), "text"),
    "empty token ids": (inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds()), "token_ids"),
    "unknown token ids": (
        inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[1, 400])),
        "token_ids",
    ),
    "over-long prompt": (
        inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[1] * 5000)),
        "token_ids",
    ),
    "over-long text": (inference_pb2.GenerateRequest(text="Hello, my name is " * 5000), "text"),
    "huge n": (
        inference_pb2.GenerateRequest(text="x", sampling_params=inference_pb2.SamplingParams(n=2**31 - 1)),
        "sampling_params.n",
    ),
    "wrong temperature": (
        inference_pb2.GenerateRequest(text="x", sampling_params=inference_pb2.SamplingParams(temperature=-1)),
        "sampling_params.temperature",
    ),
    "beam search": (
        inference_pb2.GenerateRequest(text="x", beam_search_params=inference_pb2.BeamSearchParams(beam_width=2)),
        "beam_search_params",
    ),
    "no messages": (inference_pb2.GenerateRequest(chat=inference_pb2.ChatPrompt()), "chat.messages"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_is_refused_by_the_name_of_its_field(cluster: Cluster, client: Client, name: str) -> None:
    request, named = BAD_REQUESTS[name]
    with grpc.insecure_channel(cluster.address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        for call in (lambda: list(stub.Generate(request, timeout=30)), lambda: stub.Complete(request, timeout=30)):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert any(field.startswith(named) for field in violations(caught.value)), caught.value
    assert len(client.complete(TEXT, GREEDY).outputs[0].token_ids) == 24


@pytest.mark.parametrize("method", ["Generate", "Complete", "Tokenize"])
@pytest.mark.parametrize(
    "data", [b"\x1a\x03a\xff\xfe", b"\x0a\x02\xc3\x28", b"\xff\xff\xff"], ids=["text", "request id", "no message"]
)
def test_bytes_that_are_no_message_are_an_invalid_argument(
    cluster: Cluster, client: Client, method: str, data: bytes
) -> None:
    """Field 3 of a GenerateRequest is its text; field 1 is its id, and the text of a TokenizeRequest."""
    with grpc.insecure_channel(cluster.address) as channel:
        # To a client a single answer looks like a stream of one.
        call = channel.unary_stream(f"/pagewire.v1.Inference/{method}", None, None)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(data, timeout=30))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, caught.value
    assert client.health()


def test_a_message_of_a_hundred_megabytes_is_refused(cluster: Cluster, client: Client) -> None:
    with Client(cluster.address, max_message_bytes=256 << 20) as big:
        with pytest.raises(InvalidRequest, match=r"104857\d+ vs. 16777216"):
            big.complete("a" * (100 << 20), GREEDY)
    assert len(client.complete(TEXT, GREEDY).outputs[0].token_ids) == 24


def test_another_models_name_is_not_found(client: Client) -> None:
    with pytest.raises(NotFound, match="other"):
        client.complete(TEXT, GREEDY, model="other")
