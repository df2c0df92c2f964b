"""Encodes what Generate answers. A delta, which is sent thousands of times per second, is encoded by hand.

Building it from message objects costs five times as much. A test holds the bytes equal to protobuf's own.
Field numbers: inference.proto.
"""

from collections.abc import Iterator, Sequence

from pagewire.v1 import inference_pb2
from pagewire_common.protobuf_bytes import length_delimited, varint

from pagewire_router.output.output_buffer import Output
from pagewire_router.output.sequence_output import Delta

MAX_DELTA_BYTES = 512 * 1024
"""Larger deltas are cut into several messages; the contract allows 1 MiB."""
_RESPONSE_DELTA = b"\x12"
_DELTA_INDEX = b"\x08"
_DELTA_TEXT = b"\x12"
_DELTA_TOKEN_IDS = b"\x1a"
_DELTA_LOGPROBS = b"\x22"


def encode_delta(
    index: int,
    text: str,
    token_ids: Sequence[int],
    logprobs: Sequence[inference_pb2.TokenLogprobs] = (),
) -> bytes:
    """GenerateResponse(delta=Delta(...)), serialized."""
    body = b""
    if index:
        body = _DELTA_INDEX + varint(index)
    if text:
        encoded = text.encode()
        body += length_delimited(_DELTA_TEXT, encoded)
    if token_ids:
        packed = varint(token_ids[0]) if len(token_ids) == 1 else b"".join([varint(i) for i in token_ids])
        body += length_delimited(_DELTA_TOKEN_IDS, packed)
    for entry in logprobs:
        body += length_delimited(_DELTA_LOGPROBS, entry.SerializeToString())
    return length_delimited(_RESPONSE_DELTA, body)


def encode_responses(outputs: Sequence[Output]) -> list[bytes]:
    """Serialized GenerateResponses, in order; usually one for each output."""
    messages: list[bytes] = []
    for output in outputs:
        if isinstance(output, inference_pb2.Finished):
            messages.append(inference_pb2.GenerateResponse(finished=output).SerializeToString())
            continue
        if isinstance(output, inference_pb2.PromptLogprobs):
            messages.append(inference_pb2.GenerateResponse(prompt_logprobs=output).SerializeToString())
            continue
        num_bytes = 4 * len(output.text) + 5 * len(output.token_ids)
        if output.logprobs:
            num_bytes += sum(entry.ByteSize() + 4 for entry in output.logprobs)
        if num_bytes <= MAX_DELTA_BYTES:
            messages.append(encode_delta(output.index, output.text, output.token_ids, output.logprobs))
        else:
            messages += _cut(output, num_bytes // MAX_DELTA_BYTES + 1)
    return messages


def _cut(delta: Delta, num_parts: int) -> Iterator[bytes]:
    """A delta in several messages, for a client that did not read for long.

    Tokens come before text, so that no text is ever received whose tokens are not: a client that resumes the request
    tells both, and text follows from tokens.
    """
    num_chars, num_tokens = -(-len(delta.text) // num_parts), -(-len(delta.token_ids) // num_parts)
    for first in range(0, len(delta.token_ids), num_tokens or 1):
        tokens = slice(first, first + num_tokens)
        yield encode_delta(delta.index, "", delta.token_ids[tokens], delta.logprobs[tokens])
    for first in range(0, len(delta.text), num_chars or 1):
        yield encode_delta(delta.index, delta.text[first : first + num_chars], ())
